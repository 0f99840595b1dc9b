"""The files beside the weights of an export: the base's own, with what changed and nothing else.

A folder saved anew by transformers 5 is misread by transformers 4: the rotary base moves into ``rope_parameters``,
which version 4 does not look at, and the tokenizer's class gets a name that version 4 does not have. So the base's
``config.json`` and tokenizer files are kept, and where the base itself was saved by version 5, the older names are
written beside the newer ones.
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
_ALONG = ["generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*"]

_ROPE_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""How version 4 calls rotary settings, by model type, where it is not as version 5 does."""


def write_config(folder: Path, base: Backbone, labels: list[str]) -> None:
    """``config.json`` of the base, with its class, labels and ties as they are now."""
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
            _add_older_names(part)
    (folder / "config.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _add_older_names(fields: dict[str, Any]) -> None:
    """What transformers 4 would not find in a configuration that version 5 wrote."""
    if "dtype" in fields:
        fields.setdefault("torch_dtype", fields["dtype"])
    rope = fields.get("rope_parameters") or {}
    by_layer = all(isinstance(value, dict) for value in rope.values())
    whole = rope.get("full_attention", {}) if by_layer else rope
    names = _ROPE_NAMES.get(fields.get("model_type", ""), {})
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in whole:
            fields.setdefault(names.get(name, name), whole[name])
    scaling = {name: value for name, value in whole.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") != "default":
        fields.setdefault("rope_scaling", whole if by_layer is False else scaling)
    if by_layer and "rope_theta" in rope.get("sliding_attention", {}):
        fields.setdefault("rope_local_base_freq", rope["sliding_attention"]["rope_theta"])


def copy_small_files(folder: Path, base: Path) -> None:
    """Tokenizer, generation settings and licence of the base, as they are; the tokenizer's class as both versions
    know it.
    """
    for pattern in (*_TOKENIZER_FILES, *_ALONG):
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
    """Make ``template`` the tokenizer's default: stock engines then render the prompt that was trained."""
    file = folder / "tokenizer_config.json"
    fields = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    own = fields.get("chat_template")
    if isinstance(own, list):  # several by name, as transformers 4 wrote them
        others = [one for one in own if one["name"] != "default"]
        fields["chat_template"] = [{"name": "default", "template": template}, *others]
    elif own is not None:
        fields["chat_template"] = template
    if own is not None:
        file.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not isinstance(own, list) or (folder / "chat_template.jinja").is_file():
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_readme(folder: Path, *, backbone: str, labels: list[str], head_file: str) -> None:
    """What the folder is, for whoever finds it."""
    (folder / "README.md").write_text(
        f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [clsgen-dist, dual-head]
---

# A dual-head model

Made from `{backbone}` by clsgen_dist: one backbone, two heads. For a text it gives the probability of each of
{", ".join(f"`{label}`" for label in labels[:8])}{" …" if len(labels) > 8 else ""}, and writes the reason.

```bash
clsgen predict --model . --text "…"      # {{"label": …, "probabilities": …, "explanation": …}}
```

- `config.json`, `model*.safetensors`, the tokenizer: an ordinary causal language model for
  transformers, vLLM and others.
- `{head_file}`: the classification head, `weight [C, D]` and `bias [C]`, linear on the state of
  the last prompt token after the final norm. **It is a file of its own:** `AutoModelForSequenceClassification` does not
  read it, and would open this folder with a random head.
- `clsgen.json`: labels, prompt, calibration, threshold and fingerprints.

Decision support, not a decision. Calibration holds for rows like those it was fitted on.
""",
        encoding="utf-8",
    )
