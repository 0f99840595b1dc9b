"""The model card: read as Hugging Face reads it, filled, filled anew, and left alone where people changed it."""

from __future__ import annotations

import pytest
from huggingface_hub import EvalResult
from huggingface_hub import ModelCard as Readme

from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.hf_export.readme import fill_evaluation, write_readme


def _card(backbone: str = "org/model", **changes: object) -> ModelCard:
    fields: dict = {
        "labels": [f"class {n}" for n in range(12)],
        "positive_label": "class 0",
        "system": None,
        "question": "Why?",
        "max_prompt_length": 8,
        "max_explanation_length": 8,
        "head_sha256": "",
        "trained": {"backbone": backbone, "step": 30},
    }
    return ModelCard(**fields | changes)


def _results(value: float) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-classification", dataset_type="t", dataset_name="t", metric_type="f1", metric_value=value
        )
    ]


@pytest.mark.parametrize(("backbone", "base"), [("org/model", "org/model"), ("./org/model", None), ("demo:x", None)])
def test_the_metadata_block_is_what_the_hub_reads(tmp_path, backbone, base):
    write_readme(tmp_path, _card(backbone, label_space="ordinal", decide="both"))
    readme = Readme.load(tmp_path / "README.md")
    assert (readme.data.base_model, readme.data.library_name) == (base, "transformers")
    assert "dual-head" in readme.data.tags and "`class 7` and 4 more (they are ordered" in readme.text
    assert "once more at the end of the explanation" in readme.text and "- step: 30" in readme.text
    assert "`AutoModelForSequenceClassification` does not" in readme.text and "Not evaluated yet" in readme.text


def test_an_evaluation_takes_the_place_of_the_last_and_leaves_the_rest(tmp_path):
    write_readme(tmp_path, _card())
    file = tmp_path / "README.md"
    text = file.read_text()
    file.write_text(
        text.replace("## Training", "Ours: ask Ada.\n\n## Training").replace("tags:", "license: mit\ntags:")
        + "\nLast.\n"
    )
    for value in (0.5, 0.75):
        assert fill_evaluation(tmp_path, f"## Evaluation\n\nF1 is {value}.", _results(value), "mine")
    readme = Readme.load(file)
    assert [result.metric_value for result in readme.data.eval_results] == [0.75]
    assert (readme.data.license, readme.data.model_name) == ("mit", "mine")
    assert "F1 is 0.75." in readme.text and "0.5" not in readme.text and "Not evaluated" not in readme.text
    assert "Ours: ask Ada." in readme.text and readme.text.rstrip().endswith("Last.")


@pytest.mark.parametrize("text", [None, "# My own card\n"])
def test_a_card_without_its_place_is_left_alone(tmp_path, text):
    if text:
        (tmp_path / "README.md").write_text(text)
    assert not fill_evaluation(tmp_path, "x", [], "mine")
    assert (tmp_path / "README.md").exists() == bool(text) and (
        not text or (tmp_path / "README.md").read_text() == text
    )
