"""The files of an export other than weights: those of the base, with only the necessary changes.

transformers 4 misreads a folder saved by transformers 5: the rotary base is in ``rope_parameters``, which version 4
ignores, and the tokenizer's class gets a name that version 4 does not have. So the base's ``config.json`` and tokenizer
files are copied, and if version 5 saved the base itself, the version 4 names are added.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from clsgen_dist.model.backbone import Backbone

_TOKENIZER_FILES = [
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "chat_template*",
]
_OTHER_FILES = ["generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*"]

_ROPE_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""Version 4's names of rotary settings, by model type, if they differ from version 5's."""


def write_config(folder: Path, base: Backbone, labels: list[str]) -> None:
    """Write the base's ``config.json`` with the exported class, labels and weight tying."""
    fields = json.loads((Path(base.path) / "config.json").read_text(encoding="utf-8"))
    fields["architectures"] = [type(base.meta).__name__]
    fields["id2label"] = {str(index): name for index, name in enumerate(labels)}
    fields["label2id"] = {name: index for index, name in enumerate(labels)}
    if base.unties:
        for part in (fields, fields.get("text_config")):
            if part is not None:
                part["tie_word_embeddings"] = False
    for part in (fields, fields.get("text_config")):
        if part is not None:
            _add_version_4_names(part)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _add_version_4_names(fields: dict[str, Any]) -> None:
    """Add the settings that transformers 4 does not find in a configuration written by version 5."""
    if "dtype" in fields:
        fields.setdefault("torch_dtype", fields["dtype"])
    rope = fields.get("rope_parameters") or {}
    by_layer = all(isinstance(value, dict) for value in rope.values())
    flat = rope.get("full_attention", {}) if by_layer else rope
    names = _ROPE_NAMES.get(fields.get("model_type", ""), {})
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in flat:
            fields.setdefault(names.get(name, name), flat[name])
    scaling = {name: value for name, value in flat.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") != "default":
        fields.setdefault("rope_scaling", flat if by_layer is False else scaling)
    if by_layer and "rope_theta" in rope.get("sliding_attention", {}):
        fields.setdefault("rope_local_base_freq", rope["sliding_attention"]["rope_theta"])


def copy_small_files(folder: Path, base: Path) -> None:
    """Copy tokenizer, generation settings and licence of the base; name a tokenizer class that both versions know."""
    for pattern in (*_TOKENIZER_FILES, *_OTHER_FILES):
        for path in base.glob(pattern):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    if (base / "additional_chat_templates").is_dir():
        shutil.copytree(base / "additional_chat_templates", folder / "additional_chat_templates")
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    fields = json.loads(file.read_text(encoding="utf-8"))
    before = dict(fields)
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(more := fields.get("extra_special_tokens"), list):
        del fields["extra_special_tokens"]
        fields.setdefault("additional_special_tokens", more)
    if fields != before:
        file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_chat_template(folder: Path, template: str) -> None:
    """Make ``template`` the tokenizer's default, so that stock engines render the prompt used in training."""
    file = folder / "tokenizer_config.json"
    fields = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    own = fields.get("chat_template")
    if isinstance(own, list):  # several named templates, as transformers 4 writes them
        others = [one for one in own if one["name"] != "default"]
        fields["chat_template"] = [{"name": "default", "template": template}, *others]
    elif own is not None:
        fields["chat_template"] = template
    if own is not None:
        file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not isinstance(own, list) or (folder / "chat_template.jinja").is_file():
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
