"""Whether an exported folder has what llama.cpp's ``convert_hf_to_gguf.py`` needs, without the converter.

    python -m clsgen_dist.hf_export.gguf_check runs/served/folded

The converter finds the model by ``architectures`` in ``config.json``, names each tensor by the table that the package
``gguf`` has too, and reads the tokenizer's files. Not checked: whether it knows the tokenizer's pre-tokenizer, which
it finds by a hash of its own. Cost: the headers of the weight files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from clsgen_dist.hf_export.adapters import CONFIG_FILE
from clsgen_dist.model.weight_files import WeightFiles

_OTHER_NAMES = {
    "mistral": "llama",
    "mixtral": "llama",
    "gemma3_text": "gemma3",
    "phi": "phi2",
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
"""GGUF's names of architectures, by ``model_type``, where they differ in more than punctuation."""
_LEFT_OUT = re.compile(r"\.(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")
"""Tensors that the converter leaves out."""
_EXPERT = re.compile(r"\.experts\.\d+\.")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def gguf_faults(folder: Path) -> list[str]:
    """What keeps the converter from an exported folder, a sentence each; empty if nothing was found."""
    if (folder / CONFIG_FILE).is_file():
        return ["it has LoRA adapters alone: export with --merge true (or convert them with convert_lora_to_gguf.py)"]
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = WeightFiles(folder)
    except (OSError, ValueError) as error:  # a ModelError is a ValueError
        return [str(error)]
    text = fields.get("text_config") or fields
    return [*_config_faults(fields), *_weight_faults(files, fields, text), *_tokenizer_faults(folder, text)]


def _config_faults(fields: dict[str, Any]) -> Iterator[str]:
    if not fields.get("architectures"):
        yield "config.json has no architectures, by which the converter finds the model"
    if "quantization_config" in fields:
        yield "its weights are quantised: the converter needs them in full precision"
    if _architecture(fields) is None:
        yield (
            f"gguf knows no architecture named like model_type {fields.get('model_type')!r}; look for "
            f"{', '.join(fields.get('architectures') or ['it'])} in: convert_hf_to_gguf.py --print-supported-models"
        )


def _architecture(fields: dict[str, Any]) -> Any:
    """GGUF's architecture of a model; None if it has none of that name."""
    import gguf

    kind = str(fields.get("model_type"))
    by_name = {_letters(name): architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
    return by_name.get(_letters(_OTHER_NAMES.get(kind, kind)))


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _weight_faults(files: WeightFiles, fields: dict[str, Any], text: dict[str, Any]) -> Iterator[str]:
    import gguf

    dtypes = {str(files.dtypes[name]): files.dtypes[name] for name, shape in files.shapes.items() if len(shape) > 1}
    if len(dtypes) > 1 or not set(dtypes.values()) <= set(_DTYPES):
        yield (
            f"its matrices are in {' and '.join(sorted(dtypes))}, expected one of float32, float16 and bfloat16 for "
            "all: the converter takes the first for all"
        )
    architecture = _architecture(fields)
    layers = next((text[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if name in text), 0)
    if architecture is None:
        return
    table = gguf.get_tensor_name_map(architecture, layers)
    unknown = [
        name
        for name in files.shapes
        if not _LEFT_OUT.search(name)
        and table.get_name(_EXPERT.sub(".experts.", name), try_suffixes=(".weight", ".bias")) is None
    ]
    if unknown:
        yield (
            f"gguf has no name for {len(unknown)} of {len(files.shapes)} tensors, first {unknown[0]}; the converter "
            "may rename them first"
        )


def _tokenizer_faults(folder: Path, text: dict[str, Any]) -> Iterator[str]:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        yield "there is neither tokenizer.json nor tokenizer.model"
        return
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    largest, size = max(tokenizer.get_vocab().values()), text.get("vocab_size", 0)
    if largest >= size:
        yield f"its tokenizer has token {largest}, and vocab_size in config.json is {size}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m clsgen_dist.hf_export.gguf_check FOLDER")
    if faults := gguf_faults(Path(sys.argv[1])):
        sys.exit("\n".join(f"{sys.argv[1]}: {fault}" for fault in faults))
    print(f"{sys.argv[1]}: nothing found that would keep convert_hf_to_gguf.py from it")
