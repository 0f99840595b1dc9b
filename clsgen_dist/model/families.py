"""Which backbones are refused, by their configuration.

It must be a causal language model built into transformers, in full precision; others are refused with a one-line error
that names the alternative. Whether its layers can be packed, and its logits are those that the loss computes, is
measured on the loaded model (:mod:`clsgen_dist.model.self_test`), not inferred from its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clsgen_dist.errors import ModelError, first_line
from clsgen_dist.model.unsupported import Unsupported, UnsupportedBackboneError

_MERGED = "merge it into its base (peft: merge_and_unload, then save_pretrained) and name that folder"


def open_config(path: str) -> Any:
    """The configuration of a folder or hub id; ModelError if it is not a decoder that can be trained here."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    fields = _config_fields(path)
    _refuse_remote_code(path, fields)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the configuration of model.backbone {path!r} cannot be read: {first_line(error)}; name a folder with "
            "the model's files, or a hub id that this machine reaches or has in its cache"
        ) from error
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedBackboneError(
            Unsupported.ENCODER_DECODER,
            f"model.backbone {path!r} is an encoder-decoder ({kind}); the classification token must be the last prompt "
            "token of a decoder: use a causal language model (Llama, Qwen, Mistral, Gemma ...)",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedBackboneError(
            Unsupported.NO_CAUSAL_LM,
            f"model.backbone {path!r} has model_type {kind!r}, which is not a causal language model in transformers; "
            "use one that AutoModelForCausalLM opens",
        )
    if quantised := getattr(config, "quantization_config", None):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised.quant_method
        raise ModelError(
            f"model.backbone {path!r} is quantised ({getattr(method, 'value', method)}), and an update cannot be "
            "merged into quantised weights; name the model in full precision (with model.load_in_4bit=true to hold it "
            "in 4 bits while adapters train)"
        )
    return config


def _config_fields(path: str) -> dict[str, Any]:
    """``config.json`` of a local folder; empty for a hub id, which transformers resolves."""
    folder = Path(path)
    if not folder.is_dir():
        return {}
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(f"model.backbone {path!r} is an adapter, not a model; {_MERGED}")
        raise ModelError(f"model.backbone {path!r} has no config.json; name a folder that from_pretrained opens")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({first_line(error)}); copy it from the model again") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ModelError(f"{file} has no model_type, so transformers cannot identify the model; copy it again")
    if any(folder.glob("adapter_model*")) and (folder / "adapter_config.json").is_file():
        raise ModelError(f"model.backbone {path!r} has an adapter next to a model; {_MERGED}")
    return fields


def _refuse_remote_code(path: str, fields: dict[str, Any]) -> None:
    from transformers import CONFIG_MAPPING

    kind = fields.get("model_type")
    if not fields or kind in CONFIG_MAPPING:
        return
    if "auto_map" in fields:
        raise ModelError(
            f"model.backbone {path!r} has remote code ({kind}), which is not executed; use a model that is "
            "built into transformers"
        )
    raise ModelError(
        f"model.backbone {path!r} has model_type {kind!r}, which this version of transformers does not know; "
        "upgrade transformers, or use another model"
    )
