"""Tasks of lm-evaluation-harness, run by itself where it is installed, against a computation by hand."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from clsgen_dist.errors import SettingsError
from clsgen_dist.evaluation.interval import mean_interval
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.harness import load_tasks, measure_tasks
from clsgen_dist.inference.report_sections import document

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not INSTALLED, reason="lm_eval is not installed: pip install 'clsgen-dist[lm-eval]'")
DOCUMENTS = [
    {"country": country, "cities": ["Paris", "Rome", "Oslo"], "answer": n % 3}
    for n, country in enumerate(("France", "Italy", "Norway", "Gaul", "Latium", "Viken", "Savoy", "Apulia", "Troms"))
]
COMMON = {"dataset_path": "json", "test_split": "test"}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a multiple-choice task and one of perplexity, on nine documents."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    common = {**COMMON, "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    choice = {"task": "capitals", "output_type": "multiple_choice", "doc_to_text": "The capital of {{country}} is",
              "doc_to_choice": "{{cities}}", "doc_to_target": "answer",
              "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]}  # fmt: skip
    text = {"task": "sentences", "output_type": "loglikelihood_rolling", "doc_to_text": "",
            "doc_to_target": "The capital of {{country}} is {{cities[answer]}}",
            "metric_list": [{"metric": "word_perplexity"}]}  # fmt: skip
    (folder / "capitals.yaml").write_text(yaml.safe_dump(common | choice))
    (folder / "sentences.yaml").write_text(yaml.safe_dump(common | text))
    return folder


@pytest.fixture
def lm(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def right_answers(lm, tokenizer) -> np.ndarray:
    """Whether the right city is the likeliest continuation, of each document."""
    found = []
    for row in DOCUMENTS:
        prompt = tokenizer(f"The capital of {row['country']} is")["input_ids"]
        scores = []
        for city in row["cities"]:
            ids = tokenizer(f"The capital of {row['country']} is {city}")["input_ids"]
            assert ids[: len(prompt)] == prompt
            with torch.no_grad():
                log_p = torch.log_softmax(lm(torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
            scores.append(log_p[range(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]].sum().item())
        found.append(np.argmax(scores) == row["answer"])
    return np.array(found, dtype=float)


@needs_harness
def test_scores_and_drops_are_those_of_a_computation_by_hand(folder, lm, tasks):
    trained = copy.deepcopy(lm)
    torch.manual_seed(1)
    trained.lm_head.weight.data += 0.5 * torch.randn_like(trained.lm_head.weight)
    found = measure_tasks([tasks], trained, lm, folder)
    assert list(found.scores) == ["capitals acc", "sentences word_perplexity"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs, ours = right_answers(lm, tokenizer), right_answers(trained, tokenizer)
    assert theirs.tolist() != ours.tolist()
    acc = found.scores["capitals acc"]
    assert (acc.documents, acc.higher_is_better) == (9, True)
    assert (acc.backbone, acc.model) == pytest.approx((theirs.mean(), ours.mean()))
    assert acc.model_stderr == pytest.approx(ours.std(ddof=1) / 3)
    assert acc.drop.value == pytest.approx(theirs.mean() - ours.mean())
    assert acc.drop.interval == mean_interval(theirs - ours)
    perplexity = found.scores["sentences word_perplexity"]
    assert not perplexity.higher_is_better and np.isnan(perplexity.drop.interval.low)
    assert perplexity.drop.value == pytest.approx(perplexity.model - perplexity.backbone) != 0


@needs_harness
@pytest.mark.usefixtures("few_resamples")
def test_an_evaluation_reports_tasks_beside_the_backbone(folder, tasks, tmp_path):
    dataclasses.replace(ModelCard.read(folder), trained={"backbone": str(folder)}).write(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"note {n}", "label": ("no", "yes")[n % 2]}) + "\n" for n in range(20)))
    found = evaluate(
        folder, str(rows), explain=False, lm_eval_tasks=[tasks / "capitals.yaml"], output=tmp_path / "report"
    )
    written = json.loads((tmp_path / "report/report.json").read_text())["lm_eval"]
    assert list(written["scores"]) == ["capitals acc"]
    assert written["scores"]["capitals acc"]["drop"] == {"value": 0, "interval": {"low": 0, "high": 0, "dropped": 0}}
    [table] = [
        block for section in document(found).sections if section.name == "capability" for block in section.blocks
    ][1:]
    accuracy, stderr = (written["scores"]["capitals acc"][name] for name in ("model", "model_stderr"))
    both = f"{accuracy:.3f} ± {stderr:.3f}"
    assert table.rows == [["capitals acc", "9", "higher", both, both, "+0.000 [+0.000, +0.000]"]]
    assert both in (tmp_path / "report/report.md").read_text()


@needs_harness
def test_tasks_that_cannot_be_loaded_are_errors(tasks, tmp_path):
    def fails(message, *paths):
        with pytest.raises(SettingsError, match=message):
            load_tasks(paths)

    fails("does not exist; give a task's YAML file", tmp_path / "nowhere.yaml")
    fails("has the task 'capitals' twice", tasks, tasks / "capitals.yaml")
    (tmp_path / "empty").mkdir()
    fails("has no task", tmp_path / "empty")
    (tmp_path / "bad.yaml").write_text("task: [")
    fails("cannot be loaded .*; fix the task", tmp_path / "bad.yaml")
    missing = COMMON | {"task": "x", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "none.jsonl")}}}
    (tmp_path / "missing.yaml").write_text(yaml.safe_dump(missing))
    fails("missing.yaml cannot be loaded", tmp_path / "missing.yaml")


@pytest.mark.skipif(INSTALLED, reason="lm_eval is installed")
def test_without_the_harness_the_remedy_comes_before_the_model_is_opened(tmp_path):
    with pytest.raises(
        SettingsError, match=r"lm_eval, which is not installed; run: pip install 'clsgen-dist\[lm-eval\]'"
    ):
        evaluate(tmp_path / "no model", "no rows", lm_eval_tasks=["tasks"])
