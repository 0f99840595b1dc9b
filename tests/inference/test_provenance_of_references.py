"""A report by where reference explanations came from: both heads, on rows of mixed provenance."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from clsgen_dist.data.example import Columns, Example
from clsgen_dist.evaluation.delong import auroc_interval
from clsgen_dist.explanations.references import rouge_l
from clsgen_dist.hf_export.artifact import ModelCard
from clsgen_dist.hf_export.readme import write_readme
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.group_measures import explanation_groups, groups_of
from clsgen_dist.inference.report_sections import document


def mixed(rows, name="mixed.jsonl", **columns):
    """The 80 rows, with other references: 0–39 human, 32–71 a teacher's (32–39 both), 72–75 not stated, 76–79 none."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for n, line in enumerate(lines):
        line.pop("explanation")
        given = [("human", f"size {n}")] * (n < 40) + [("teacher:big", "glioblastoma seen")] * (32 <= n < 72)
        given += [(None, "size")] * (72 <= n < 76)
        line["explanations"] = [text for _, text in given]
        line["provenance"] = [by for by, _ in given] if n >= 32 else "human"
        line |= {column: value(n) for column, value in columns.items()}
    path = rows.with_name(name)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.usefixtures("few_resamples")
def test_a_report_has_both_heads_by_provenance(folder, rows, tmp_path):
    found = evaluate(folder, str(mixed(rows)), columns=Columns(groups=("site",)), output=tmp_path / "report")
    written = json.loads((tmp_path / "report/report.json").read_text(), parse_constant=pytest.fail)
    decided, explained = written["decisions"]["groups"]["provenance"], written["explanations"]["groups"]["provenance"]
    p_N, told = found.probabilities_NC[:, 1], [p.explanation or "" for p in found.predictions]
    rows_of = {"human": range(40), "teacher:big": range(32, 72)}
    assert [group["name"] for group in decided["measured"]] == list(rows_of)
    assert [group["name"] for group in explained["measured"]] == list(rows_of)
    for group, others in zip(decided["measured"], explained["measured"], strict=True):
        own = list(rows_of[group["name"]])
        assert (group["rows"], group["positives"]) == (40, int(found.labels[own].sum()))
        assert group["auroc"]["value"] == pytest.approx(auroc_interval(p_N[own], found.labels[own] == 1).value)
        scores = others["scores"]
        reference = {n: f"size {n}" if group["name"] == "human" else "glioblastoma seen" for n in own}
        assert scores["rouge_l"]["mean"] == pytest.approx(np.mean([rouge_l(told[n], reference[n]) for n in own]))
        of_all = found.explanations.grounding.statements.values_N[own]
        assert scores["statements"]["mean"] == pytest.approx(np.nanmean(of_all))
        assert scores["statements"]["defined"] == np.count_nonzero(~np.isnan(of_all))
        assert scores["contradictions"]["mean"] == pytest.approx(found.explanations.contradictions.values_N[own].mean())
    assert [(group["name"], group["rows"]) for group in decided["too_small"]] == [("(not stated)", 4)]
    assert explained["too_small"] == {"(not stated)": 4}
    sites = written["explanations"]["groups"]["site"]["measured"]
    assert [(site["name"], site["rows"]) for site in sites] == [("A", 40), ("B", 40)]
    for name in ("report.md", "index.html"):
        page = (tmp_path / "report" / name).read_text()
        assert all(words in page for words in ("By provenance", "Explanations by provenance", "teacher:big"))
        assert "4 rows have none, and are in no group" in page


def test_one_provenance_or_none_is_no_group(folder, rows):
    same = [Example(id=str(n), text="t", explanations=("a",), provenance=("human",)) for n in range(3)]
    unknown = [Example(id=str(n), text="t", explanations=("a",), provenance=(None,)) for n in range(3)]
    none = [Example(id="x", text="t")]
    assert groups_of(same + none, Columns()) == groups_of(unknown + none, Columns()) == {}
    assert groups_of(same[:1] + none + unknown[:1], Columns()) == {"provenance": [("human",), (), ("(not stated)",)]}
    found = evaluate(folder, str(rows), explain=False)
    assert "sources" not in [section.name for section in document(found).sections]


def test_a_provenance_of_its_own_in_each_row_is_reported_in_bounded_space():
    examples = [
        Example(id=str(n), text="t", explanations=("a", "b"), provenance=(f"page {n}", "teacher:big"))
        for n in range(2000)
    ]
    found = groups_of(examples, Columns())["provenance"]
    names = {name for row in found for name in row}
    assert len(names) == 21 and {"teacher:big", "(others)"} <= names
    assert all("teacher:big" in row and len(row) == 2 for row in found)
    measured = explanation_groups(examples, ["a"] * 2000, {}, Columns())["provenance"]
    assert {group.name: group.rows for group in measured.measured} == {"(others)": 1981, "teacher:big": 2000}
    # Of the two references, those of the group alone count.
    assert [group.scores["rouge_l"].mean for group in measured.measured] == [1.0, 0.0]


def test_names_and_columns_that_mean_something_else_break_nothing(folder, rows, tmp_path):
    odd = ["$\\frac{$", "<b>x</b>", "|", 7, {"crawl": 1}, ["a", "b", "c"]]
    path = mixed(rows, provenance=lambda n: odd[n % 2] if n < 76 else odd[2 + n % 4])
    write_readme(folder, dataclasses.replace(ModelCard.read(folder), trained={"backbone": "org/base"}))
    found = evaluate(folder, str(path), output=tmp_path / "report", explain_sample=60)
    assert [group.name for group in found.decisions.groups["provenance"].measured] == ["$\\frac{$", "<b>x</b>"]
    assert len(found.predictions) == 80 and "<b>x" not in (tmp_path / "report/index.html").read_text()
    assert "### Decisions" in (folder / "README.md").read_text()
    assert "frac" not in (folder / "README.md").read_text(), "cells that nobody named are not published"
