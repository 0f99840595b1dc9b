"""``README.md`` of an exported folder: a model card in Hugging Face's format.

``clsgen export`` writes it; ``clsgen evaluate`` replaces the part between the two markers and the ``model-index`` of
the metadata block. What people add elsewhere stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard
from clsgen_dist.io.files import atomic_write

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

README_FILE = "README.md"
_BEGIN, _END = "<!-- evaluation: written by clsgen evaluate -->", "<!-- /evaluation -->"
_SHOWN_LABELS = 8
_MERGED_FILES = """\
- `config.json`, `model*.safetensors`, the tokenizer: an ordinary causal language model for
  transformers, vLLM and others."""
_ADAPTER_FILES = """\
- `adapter_config.json`, `adapter_model.safetensors`: LoRA adapters for `{backbone}`, in peft's format.
  `base_model_name_or_path` says where that model is. The tokenizer is beside them."""


def write_readme(folder: Path, card: ModelCard) -> None:
    """The model card of a model that is not evaluated yet."""
    from huggingface_hub import ModelCardData

    backbone = str(card.trained["backbone"])
    names = ", ".join(f"`{label}`" for label in card.labels[:_SHOWN_LABELS])
    more = f" and {len(card.labels) - _SHOWN_LABELS} more" if len(card.labels) > _SHOWN_LABELS else ""
    space = {
        "single": "exactly one of them is right",
        "multilabel": "any number of them may apply",
        "ordinal": "they are ordered from low to high, and one is right",
    }[card.label_space]
    adapters = card.base_fingerprint is not None
    data = ModelCardData(
        library_name="peft" if adapters else "transformers",
        pipeline_tag="text-generation",
        tags=["clsgen-dist", "dual-head", "text-classification", *(["lora"] if adapters else [])],
        base_model=backbone if _is_hub_name(backbone) else None,
    )
    position = {
        "before": "the last token of the prompt",
        "after": "the end of the explanation",
        "both": "the last token of the prompt, and once more at the end of the explanation",
    }[card.decide]
    files = _ADAPTER_FILES.format(backbone=backbone) if adapters else _MERGED_FILES
    trained = "\n".join(f"- {name}: {value}" for name, value in card.trained.items() if value is not None)
    (folder / README_FILE).write_text(
        f"""---
{data.to_yaml()}
---

# A dual-head model

Made from `{backbone}` by clsgen_dist: one backbone, two heads. For a text it gives a probability of each of the classes
{names}{more} ({space}), and writes the reason.

## Use

```bash
clsgen predict --model . --text "…"      # {{"label": …, "probabilities": …, "explanation": …}}
```

It is decision support, not a decision. Its probabilities hold for rows like those on which it was calibrated, and an
explanation is what the model writes, which need not be why it decided. Do not use it on texts of another kind, or in
another language, without evaluating it there.

## Files

{files}
- `{HEAD_FILE}`: the classification head, `weight [K, D]` and `bias [K]`, linear on the state of
  {position} after the final norm. **It is a file of its own:** `AutoModelForSequenceClassification` does not
  read it, and would open the model with a random head.
- `clsgen.json`: label space, prompt, calibration, thresholds and fingerprints.

## Training

{trained}

{_BEGIN}
## Evaluation

Not evaluated yet: `clsgen evaluate --model . --data TEST --output REPORT` fills in this part.
{_END}
""",
        encoding="utf-8",
    )


def _is_hub_name(backbone: str) -> bool:
    """Whether it looks like ``organisation/name`` of the Hugging Face hub, and is no folder."""
    return backbone.count("/") == 1 and not backbone.startswith((".", "/", "~")) and not Path(backbone).exists()


def fill_evaluation(folder: Path, text: str, results: Sequence[EvalResult], name: str) -> bool:
    """Replace the evaluation in the model card; False if there is no card with the two markers.

    Args:
        folder: the exported folder.
        text: Markdown, with headings from the second level down.
        results: for the metadata block.
        name: of the model, in the metadata block.

    Raises:
        OSError: the folder cannot be written.
    """
    from huggingface_hub import ModelCard as Readme
    from huggingface_hub import ModelCardData

    file = folder / README_FILE
    if not file.is_file() or not (0 < (there := file.read_text(encoding="utf-8")).find(_BEGIN) < there.find(_END)):
        return False
    before, _, rest = there.partition(_BEGIN)
    readme = Readme(f"{before}{_BEGIN}\n{text.strip()}\n{_END}{rest.partition(_END)[2]}")
    assert isinstance(readme.data, ModelCardData)
    readme.data.model_name, readme.data.eval_results = name, list(results)
    atomic_write(file, str(readme))
    return True
