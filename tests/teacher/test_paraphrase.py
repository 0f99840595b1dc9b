"""Paraphrases by a teacher: what is asked, which are kept, and where explanations came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clsgen_dist.cli import main
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.errors import SettingsError
from clsgen_dist.teacher.budget import Limits
from clsgen_dist.teacher.candidates import explanation_checks
from clsgen_dist.teacher.explain import Explainer, ExplainReport, TeacherSettings
from clsgen_dist.teacher.explain_report import to_text
from tests.inference.conftest import hand_made_export
from tests.serving.live_server import live_server
from tests.teacher.hostile_server import HostileServer, hostile_server, row_of

TEXT = "A spiculated mass of 12 mm in the upper left, found at a routine visit; 40 % of it is dense."
ORIGINAL = "A spiculated outline of 12 mm is typical of invading tissue, so it is malignant."
GOOD = ["Invading tissue grows so: 12 mm, spiculated. Hence malignant.", "Malignant, since spikes of 12 mm invade."]


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    with hostile_server() as server:
        server.reply = lambda body: GOOD[body["seed"]]
        yield server


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**cells: Any) -> dict[str, Any]:
    return {"text": TEXT, "label": "malignant", "explanation": ORIGINAL, **cells}


def paraphrase(rows: Path, server: HostileServer, count: int = 2, **settings: Any) -> ExplainReport:
    asked = {"url": server.url, "model": "big", "timeout": 5, "labels": ("benign", "malignant"), **settings}
    checks = explanation_checks(CurationSettings())
    return Explainer(str(rows), TeacherSettings(**asked, paraphrases=count), checks).run(rows.with_name("out.jsonl"))


def read(rows: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows.with_name("out.jsonl").open()]


def test_each_explanation_is_paraphrased_and_all_else_stays(tmp_path: Path, hostile: HostileServer) -> None:
    second = "The 12 mm with spikes decide; malignant, I should say."
    others = ["It grows into its surroundings: 12 mm of spikes.", "A tumour of 12 mm; look at these spikes."]
    hostile.reply = lambda body: (GOOD if row_of(body)["explanation"] == ORIGINAL else others)[body["seed"]]
    bare = {"text": "no explanation", "label": "benign", "x": 1.50}
    unlabelled = {"text": "no label", "explanation": "It is so, they say."}
    rows = write(tmp_path / "rows.jsonl", row(x=1.50, explanations=[second]), bare, unlabelled)
    report = paraphrase(rows, hostile)
    before, after = rows.read_text().splitlines(), rows.with_name("out.jsonl").read_text().splitlines()
    assert after[1:] == before[1:]
    assert json.loads(after[0]) == {
        **json.loads(before[0]),
        "explanation": None,
        "explanations": [ORIGINAL, second, *GOOD, *others],
        "provenance": [None, None, *["teacher:big"] * 4],
    }
    [example, *_] = read_examples(
        str(rows.with_name("out.jsonl")), columns=Columns(), labels=None, max_bad_fraction=0, quarantine=None
    ).examples
    assert example.explanations == (ORIGINAL, second, *GOOD, *others)
    questions = [json.loads(question) for question in hostile.tries]
    assert sorted(body["seed"] for body in questions) == [0, 0, 1, 1]
    assert all(TEXT not in body["messages"][0]["content"] for body in questions), "the text is not sent"
    printed = to_text(report, "out.jsonl")
    assert "3 rows were read: 1 without explanation, 1 without label, 0 bad; 1 to paraphrase" in printed
    assert "1 of them have paraphrases, by 4 of 4 answers of big" in printed


BAD = {
    "other-class": "Growth with spikes of 12 mm like this is benign.",
    "added-number": "Malignant: 12 mm with spikes, and 40 % of it is dense.",
    "lost-number": "Malignant, since tissue that invades grows with spikes.",
    "repeated": "  A SPICULATED outline of 12 mm is typical of  invading tissue, so it is malignant.",
    "near-copy": "A spiculated outline of 12 mm is typical of invading tissue, so it's malignant!",
    "empty": " \n",
    "unreadable": '["Malignant: 12 mm", "two"]',
    "ungrounded-quote": "Malignant, as 12 mm and “never seen before” say.",
    "too-short": "Malignant: 12.",
    "copies-input": "Malignant. A spiculated mass of 12 mm in the upper left, found at a routine visit",
}


@pytest.mark.parametrize("code", BAD)
def test_a_bad_paraphrase_is_dropped_and_a_good_one_kept(tmp_path: Path, hostile: HostileServer, code: str) -> None:
    answers = [BAD[code], GOOD[0]]
    hostile.reply = lambda body: answers[body["seed"]]
    rows = write(tmp_path / "rows.jsonl", row())
    report = paraphrase(rows, hostile)
    assert dict(report.dropped) == {code: 1} and (report.kept, report.explained) == (1, 1)
    assert read(rows)[0]["explanations"] == [ORIGINAL, GOOD[0]]


def test_the_same_paraphrase_twice_is_kept_once_and_a_row_without_any_stays(
    tmp_path: Path, hostile: HostileServer
) -> None:
    hostile.reply = lambda body: GOOD[0] if "outline" in row_of(body)["explanation"] else "It is benign."
    rows = write(tmp_path / "rows.jsonl", row(), row(text=f"Another. {TEXT}", explanation="Malignant, as they said."))
    report = paraphrase(rows, hostile)
    assert dict(report.dropped) == {"repeated": 1, "other-class": 2} and (report.kept, report.explained) == (1, 1)
    assert rows.with_name("out.jsonl").read_text().splitlines()[1] == rows.read_text().splitlines()[1]


@pytest.mark.parametrize(
    ("numbers", "is_kept"),
    [("12 percent", True), ("0.12", True), ("12", True), ("13 %", False), ("12 % and 3", False), ("a share", False)],
)
def test_numbers_are_compared_by_value(tmp_path: Path, hostile: HostileServer, numbers: str, is_kept: bool) -> None:
    hostile.reply = lambda body: f"Stage 2, I say, since of this tissue {numbers} is dense."
    rows = write(
        tmp_path / "rows.jsonl", {"text": "The 12 % that are dense, 13 % and 3", "label": "stage 2", "explanation": ""}
    )
    rows = write(rows, json.loads(rows.read_text()) | {"explanation": "Density of 12 % means it is what they call so."})
    report = paraphrase(rows, hostile, 1, labels=("stage 1", "stage 2"))
    assert bool(report.kept) == is_kept, dict(report.dropped)


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ("human", ["human"]),
        (["human"], ["human"]),
        ('["human"]', ["human"]),
        (["human", "template"], [None]),
        (None, [None]),
        ("", [None]),
        ('["human"', ['["human"']),
    ],
)
def test_origins_that_are_known_stay_and_others_stay_unknown(
    tmp_path: Path, hostile: HostileServer, provenance: Any, expected: list[str | None]
) -> None:
    rows = write(tmp_path / "rows.jsonl", row(provenance=provenance))
    paraphrase(rows, hostile, 1)
    assert read(rows)[0]["provenance"] == [*expected, "teacher:big"]


def test_csv_rows_become_json_lines_and_equal_explanations_are_paid_for_once(
    tmp_path: Path, hostile: HostileServer
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(
        f'text,label,explanation,provenance\n"{TEXT}",malignant,"{ORIGINAL}",human\n'
        f'"Again. {TEXT}",malignant,"{ORIGINAL}","[""template""]"\n'
    )
    report = paraphrase(rows, hostile)
    assert [written["provenance"] for written in read(rows)] == [
        ["human", "teacher:big", "teacher:big"],
        ["template", "teacher:big", "teacher:big"],
    ]
    assert len(hostile.tries) == 2 and report.tokens == 240 and report.kept == 4


def test_a_budget_stops_paraphrasing_and_the_journal_goes_on(tmp_path: Path, hostile: HostileServer) -> None:
    rows = write(tmp_path / "rows.jsonl", *(row(explanation=f"{ORIGINAL} {'I ' * n}") for n in range(1, 7)))
    first = paraphrase(rows, hostile, limits=Limits(max_tokens_total=1000), max_tokens=100)
    assert first.is_over_budget and 0 < first.kept < 12
    whole = paraphrase(rows, hostile, max_tokens=100)
    assert whole.kept == 12 and set(hostile.answered.values()) == {1}


@pytest.mark.parametrize("words", [["--teacher", "self"], ["--without_label", "true"], ["--styles", "lay"],
                                   ["--candidates", "2"]])  # fmt: skip
def test_what_has_no_meaning_for_paraphrases_is_refused(tmp_path: Path, words: list[str], capsys: Any) -> None:
    rows = write(tmp_path / "rows.jsonl", row())
    command = ["data", "explain", str(rows), "--output", str(tmp_path / "out.jsonl"), "--url", "http://localhost:1"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--paraphrase", "2", *words])
    assert ended.value.code == 2 and "leave out --teacher self" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="--paraphrase is 3"):
        TeacherSettings(url="http://localhost:1", paraphrases=3, candidates=2)


def test_paraphrases_by_a_model_that_is_served(tmp_path: Path, free_port: Callable[[], str], capsys: Any) -> None:
    folder = hand_made_export(tmp_path / "m", ["no", "yes"])
    cells = [{"text": f"note {n}: {n} mm", "label": "yes", "explanation": f"Yes, {n} mm decide."} for n in range(3)]
    rows = write(tmp_path / "rows.jsonl", *cells)
    with live_server(folder, free_port()) as server:
        words = ["data", "explain", str(rows), "--output", str(tmp_path / "out.jsonl"), "--url", server.url]
        main([*words, "--paraphrase", "2", "--max_tokens", "8", "--concurrency", "2"])
    printed = capsys.readouterr().out
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl.journal").open()]
    assert len(answers) == 6 and all(0 < answer["completion_tokens"] <= 8 for answer in answers)
    assert "3 rows were read: 0 without explanation, 0 without label, 0 bad; 3 to paraphrase" in printed
    for old, new in zip(cells, read(rows), strict=True):
        kept = new.get("explanations", [old["explanation"]])
        assert new["text"] == old["text"] and kept[0] == old["explanation"]
        assert set(kept[1:]) <= {answer["content"].strip() for answer in answers}
