"""Commands on few rows, one class, one cluster, and models whose logits are no numbers: a right report, or one line."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import expit
from transformers import LlamaForCausalLM

from clsgen_dist.cli import main
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import ModelError
from clsgen_dist.evaluation.report import Report, score
from clsgen_dist.explanations.estimates import row_scores
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.measures import measure_decisions
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.report_summary import _on_masking, summary
from clsgen_dist.model.label_space import LabelSpace
from tests.inference.conftest import hand_made_export, write_head

SPACES = {
    "binary": (["no", "yes"], "single"),
    "three classes": (["red", "green", "blue"], "single"),
    "multilabel": (["red", "green", "blue"], "multilabel"),
    "ordinal": (["low", "mid", "high"], "ordinal"),
}


@pytest.fixture
def exported(request, tmp_path):
    return hand_made_export(tmp_path, *SPACES[request.param])


def rows(space, count, choose=None):
    """Rows whose labels go round; ``choose`` takes classes and place, and returns the label."""
    names, kind = SPACES[space]
    rng = np.random.default_rng(0)

    def label(place):
        if choose is not None:
            return choose(names, place)
        if kind == "multilabel":
            return {name: (None, 0, 1)[(place + c) % 3] for c, name in enumerate(names)}
        return names[place % len(names)]

    return [
        {"id": f"r{n}", "text": f"note {n}: {rng.integers(1, 90)} mm{'~' * (n % 3 == 1)}", "label": label(n),
         "site": f"s{n % 40}", "patient": n // 3}
        for n in range(count)
    ]  # fmt: skip


def write(path, cells):
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return str(path)


def run(*words):
    """The command, with warnings as errors; returns its status."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            return ended.code
    return 0


CASES = {
    "1 row": (1, None),
    "7 rows": (7, None),
    "7 of one class": (7, lambda names, place: names[0]),
    "60, the last class never": (60, lambda names, place: names[place % (len(names) - 1)]),
}
ANSWERS = {
    "7 of one class": (7, lambda names, place: dict.fromkeys(names, 1)),
    "60, the last class never": (60, lambda names, place: {**dict.fromkeys(names, place % 2), names[-1]: None}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("exported", "space"), [(s, s) for s in SPACES], indirect=["exported"], ids=list(SPACES))
def test_odd_rows_give_a_report_that_claims_nothing(exported, space, case, tmp_path, capsys):
    given = (ANSWERS if space == "multilabel" else {}).get(case, CASES[case])
    data, output = write(tmp_path / "rows.jsonl", rows(space, *given)), tmp_path / "report"
    options = ("--columns.groups", "[site]", "--columns.cluster", "patient", "--train", data)
    if case == "7 rows":
        options = ("--faithfulness_rows", "3")
    else:
        options += ("--explain", "false")
    assert run("evaluate", "--model", exported, "--data", data, "--output", output, *options) == 0
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and "Warning" not in printed.err
    text = (output / "report.md").read_text()
    for shown in (printed.out, text):
        assert not re.search(r"\b(nan|inf)\b", shown, re.IGNORECASE)
    json.loads((output / "report.json").read_text(), parse_constant=pytest.fail)
    assert "can be read as they are:" not in text and not re.search(r"(?<!clearly) more than the best", text)
    status = run("calibrate", "--model", exported, "--data", data, "--columns.cluster", "patient")
    printed = capsys.readouterr()
    if status == 0:
        assert space == "multilabel" or case == "60, the last class never"
        assert "nan" not in printed.out.lower() and not re.search(
            "NaN|Infinity", (exported / "clsgen.json").read_text()
        )
    else:
        errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert status == 2 and len(errors) == 1 and "Traceback" not in printed.err
        assert re.search("expected|add some|add rows", errors[0])


def test_one_cluster_can_neither_be_judged_nor_calibrated_on(folder, tmp_path, capsys):
    cells = [{**cell, "patient": "one"} for cell in rows("binary", 40)]
    data = write(tmp_path / "rows.jsonl", cells)
    options = ("--data", data, "--columns.cluster", "patient")
    assert run("evaluate", "--model", folder, *options, "--output", tmp_path / "report", "--explain_sample", "8") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    explained = text.partition("## What the explanations say")[2].partition("\n## ")[0]
    assert "repeat" in explained and not re.search(r"\[[-+\d]", explained)  # figures, without intervals
    assert "they cannot say how far off that may be" in text
    assert "Whether its probabilities are right cannot be said: the rows are of one cluster." in text
    assert run("calibrate", "--model", folder, *options) == 2
    assert "all 40 rows are of one cluster, expected two or more" in capsys.readouterr().err


# Logits that are no numbers.


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "rows.jsonl", rows("binary", 40))


COMMANDS = [("evaluate", "--data"), ("calibrate", "--data"), ("predict", "--input")]


def command(name, option, folder, data, tmp_path):
    output = ("--output", tmp_path / "out") if name != "calibrate" else ()
    return run(name, "--model", folder, option, data, *output, *(("--explain", "false") if name != "calibrate" else ()))


@pytest.mark.parametrize(("name", "option"), COMMANDS)
def test_a_head_with_nan_is_refused_by_every_command(name, option, folder, data, tmp_path, capsys):
    head = load_file(folder / HEAD_FILE)
    head["weight"][1, 3] = float("nan")
    write_head(folder, head)
    card = ModelCard.read(folder)
    dataclasses.replace(card, head_sha256=head_fingerprint(head["weight"], head["bias"])).write(folder)
    assert command(name, option, folder, data, tmp_path) == 2
    assert "1 weights of the classification head are not finite" in capsys.readouterr().err


def break_some_texts(folder):
    """Those with a tilde overflow: its embedding is infinite."""
    lm, tokenizer = LlamaForCausalLM.from_pretrained(folder), Predictor(folder).tokenizer
    [*_, token] = tokenizer("~", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        lm.get_input_embeddings().weight[token] = float("inf")
    lm.save_pretrained(folder)


@pytest.mark.parametrize(("name", "option"), COMMANDS[:2])
def test_rows_without_finite_logits_are_named_and_nothing_is_measured(name, option, folder, data, tmp_path, capsys):
    break_some_texts(folder)
    bad = [cell["id"] for cell in rows("binary", 40) if "~" in cell["text"]]
    before = (folder / "clsgen.json").read_text()
    assert command(name, option, folder, data, tmp_path) == 2
    error = capsys.readouterr().err
    assert (
        f"{len(bad)} of 40 rows have class logits that are not finite (NaN or infinity): {', '.join(bad[:8])}" in error
    )
    assert not (tmp_path / "out" / "report.json").exists() and (folder / "clsgen.json").read_text() == before


def test_predict_gives_such_rows_an_error_and_answers_the_others(folder, data, tmp_path, capsys):
    break_some_texts(folder)
    assert command("predict", "--input", folder, data, tmp_path) == 0
    answers = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out").read_text().splitlines()]
    for cell, answer in zip(rows("binary", 40), answers, strict=True):
        assert answer["id"] == cell["id"] and ("~" in cell["text"]) == (answer.get("code") == "logits-not-finite")
        assert "error" in answer or sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert "rows have an error instead" in capsys.readouterr().err
    only_bad = write(tmp_path / "bad.jsonl", [{"id": "x", "text": "~"}])
    assert command("predict", "--input", folder, only_bad, tmp_path) == 2
    assert "1 of 1 rows have class logits that are not finite (NaN or infinity): x" in capsys.readouterr().err
    with pytest.raises(ModelError, match="1 of 2 rows have class logits"):
        Predictor(folder).predict(["fine", "~"], explain=False)


def test_a_stored_prediction_that_is_no_number_is_found(folder, data, tmp_path, capsys):
    assert command("evaluate", "--data", folder, data, tmp_path) == 0
    [part] = (tmp_path / "out" / "predictions").rglob("*.jsonl")
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    lines[0]["rows"]["12"]["first"][0] = float("nan")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command("evaluate", "--data", folder, data, tmp_path) == 2
    assert "1 of 40 rows have class logits that are not finite (NaN or infinity): r12" in capsys.readouterr().err


# The sentences that open a report.


def judged(p, yes):
    """An evaluation of two classes."""
    space, p_NC, labels = LabelSpace(("no", "yes"), "yes"), np.stack([1 - p, p], axis=1), yes.astype(int)
    return Evaluation(
        model="m",
        report=Report(len(p), [score("dual head, raw", p_NC, labels, positive=1)]),
        space=space,
        examples=[],
        predictions=[],
        labels=labels,
        probabilities_NC=p_NC,
        decided=(p >= 0.5).astype(int),
        decisions=measure_decisions(p_NC, p_NC, labels, space, None, [], Columns()),
        explained=[],
    )


def calibrated(count, seed=0, slope=1.0):
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 1.5, count)
    return expit(slope * logit), rng.random(count) < expit(logit)


@pytest.mark.parametrize("count", [7, 40, 120])
def test_no_error_found_on_few_rows_is_no_clearance(count):
    ranks, probabilities, _ = summary(judged(*calibrated(count, 3)))
    assert probabilities.startswith(
        f"Whether its probabilities can be read as they are, {count} rows are too few to tell"
    )
    assert ("not clearly better than guessing" in ranks) == (count == 7)


def test_many_calibrated_rows_clear_the_probabilities_and_over_confident_ones_do_not():
    _, probabilities, _ = summary(judged(*calibrated(4000)))
    found = re.fullmatch(
        r"Its probabilities can be read .* off by (0\.0\d+) at most \(95 % confidence\)\.", probabilities
    )
    assert float(found[1]) <= 0.05
    _, probabilities, _ = summary(judged(*calibrated(600, slope=3.0)))
    assert probabilities.startswith(
        "Do not take its probabilities literally, they are too extreme (over-confident): ECE "
    )


@pytest.mark.parametrize("value", [0.99, 0.5])
def test_rows_of_one_class_clear_nothing_however_many(value):
    rng = np.random.default_rng(0)
    ranks, probabilities, _ = summary(judged(value + 0.01 * rng.random(2000), np.ones(2000, dtype=bool)))
    assert ranks == "Whether it tells the classes apart cannot be said: the 2,000 rows are of one class."
    assert probabilities == "Whether its probabilities are right cannot be said: the 2,000 rows are of one class."


def test_a_constant_model_is_called_one():
    yes = np.arange(50) % 2 == 0
    ranks, *_ = summary(judged(np.full(50, 0.5), yes))
    assert "reaches AUROC 0.500, as it gives all rows the same probabilities" in ranks


def test_masking_is_judged_by_its_interval():
    rng = np.random.default_rng(0)
    cases = {
        "changes the probability more than masking": row_scores(0.2 + 0.1 * rng.random(40)),
        "no more than other words: do not act on them": row_scores(0.01 * rng.normal(size=40)),
        "40 rows are too few to tell": row_scores(0.5 * rng.normal(size=40)),
        "5 rows are too few to tell": row_scores([0.3] * 4 + [0.4]),
        "they name nothing": row_scores([np.nan] * 4),
    }
    for words, excess in cases.items():
        assert words in _on_masking(excess), words
