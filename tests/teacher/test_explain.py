"""Explanations by a teacher: what is asked, kept, paid for; servers that misbehave; kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clsgen_dist.cli import main
from clsgen_dist.curation.settings import CurationSettings, SeveritySettings
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.ingest import read_examples
from clsgen_dist.errors import DataError, ServerError, SettingsError
from clsgen_dist.explanations.stated_class import ClassNames
from clsgen_dist.teacher import client
from clsgen_dist.teacher.budget import Limits
from clsgen_dist.teacher.candidates import explanation_checks
from clsgen_dist.teacher.explain import Explainer, ExplainReport, TeacherSettings
from clsgen_dist.teacher.explain_report import to_text
from clsgen_dist.teacher.journal import Answer, Journal
from tests.teacher.hostile_server import HostileServer, hostile_server, label_told, row_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the random waits."""
    monkeypatch.setattr("random.uniform", lambda low, high: low)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """12 rows: 9 to explain, one explained, one without label, one bad."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"n": i, "text": f"note {i}", "label": ("cat", "dog")[i % 2], "x": [1.50]}) for i in range(9)]
    lines.append('{"text": "explained",  "label": "cat", "explanation": "purrs", "x": 1.0}')
    lines.append('{"text": "no label", "label": null}')
    lines.append('{"text": ')
    path.write_text("\n".join(lines) + "\n")
    return path


def explain(rows: Path, server: HostileServer, output: str = "out.jsonl", **settings: Any) -> ExplainReport:
    asked = TeacherSettings(**{"url": server.url, "model": "big", "timeout": 5, **settings})
    return Explainer(str(rows), asked).run(rows.with_name(output))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open() if line.strip() != '{"text":']


def test_missing_explanations_are_written_and_all_else_stays(rows: Path, hostile: HostileServer) -> None:
    report = explain(rows, hostile, concurrency=3)
    before, after = rows.read_text().splitlines(), rows.with_name("out.jsonl").read_text().splitlines()
    assert after[9:] == before[9:] and len(after) == 12
    for old, new in zip(map(json.loads, before[:9]), map(json.loads, after[:9]), strict=True):
        told = f"It is {old['label']}, says the text."
        assert new == {**old, "explanations": [told], "provenance": "teacher:big"}
    assert (report.to_explain, report.explained, report.bad, report.unlabelled) == (9, 9, 1, 1)
    assert report.tokens == 9 * 120 and hostile.most_at_once <= 3
    questions = [json.loads(question) for question in hostile.tries]
    assert {row_of(body)["text"] for body in questions} == {f"note {i}" for i in range(9)}
    assert all(body["max_tokens"] == 256 and body["seed"] == 0 for body in questions)


UNREADABLE = ["garbage", "page", "shape", "nested", "huge"]


@pytest.mark.parametrize("fault", ["500", "503", "429:0", "408", "cut", "closed", "drip", *UNREADABLE])
def test_what_may_pass_is_asked_again(rows: Path, hostile: HostileServer, quick: None, fault: str) -> None:
    hostile.faults = [fault]
    report = explain(rows, hostile, timeout=0.6)
    assert report.explained == 9 and set(hostile.tries.values()) == {2}
    lost = fault in UNREADABLE
    assert (report.tokens > 9 * 120) == lost, "an answer that cannot be read was paid for too"


def test_the_server_says_how_long_to_wait(rows: Path, hostile: HostileServer, quick: None) -> None:
    rows.write_text(rows.read_text().splitlines()[0] + "\n")
    hostile.faults = ["429:1", "503:0.3"]
    assert explain(rows, hostile).explained == 1
    first, second = (b - a for a, b in zip(hostile.times, hostile.times[1:], strict=False))
    assert 1.0 <= first < 1.9 and 0.3 <= second < 0.95


def test_answers_that_the_gate_would_not_keep_are_dropped(rows: Path, hostile: HostileServer) -> None:
    hostile.reply = lambda body: (
        f"It is a {label_told(body)} " + ("of 99 kg." if "note 3" in row_of(body)["text"] else "who purrs.")
    )
    checks = explanation_checks(CurationSettings())
    asked = TeacherSettings(url=hostile.url, model="big", timeout=5)
    report = Explainer(str(rows), asked, checks).run(rows.with_name("out.jsonl"))
    assert dict(report.dropped) == {"ungrounded-number": 1} and report.explained == 8
    off = CurationSettings(severity=SeveritySettings(ungrounded_number="note"))
    report = Explainer(str(rows), asked, explanation_checks(off)).run(rows.with_name("other.jsonl"))
    assert not report.dropped and report.explained == 9


def test_waits_are_random_and_double(monkeypatch: pytest.MonkeyPatch, rows: Path, hostile: HostileServer) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.0

    monkeypatch.setattr("random.uniform", uniform)
    rows.write_text(rows.read_text().splitlines()[0] + "\n")
    hostile.faults = ["500"] * 8
    report = explain(rows, hostile, tries=9)
    assert asked == [(0, min(60, 2**n)) for n in range(9)] and report.explained == 1


def test_questions_refused_or_unanswered_leave_the_others(rows: Path, hostile: HostileServer, quick: None) -> None:
    hostile.faults = ["400"]
    report = explain(rows, hostile)
    assert (report.refused, report.waiting, report.explained) == (9, 9, 0)
    hostile.faults, again = ["", "500", "500"], explain
    hostile.tries.clear()
    rows.write_text(rows.read_text() + json.dumps({"text": "note 0", "label": "dog"}) + "\n")
    report = again(rows, hostile, tries=2)
    assert report.explained == 10 and report.unanswered == 0
    hostile.faults = ["500"] * 9
    report = again(rows, hostile, tries=2, seed=1)
    assert (report.unanswered, report.waiting) == (10, 10)
    assert "10 in all tries" in to_text(report, "out.jsonl")


def test_a_server_that_is_gone_ends_the_run_and_keeps_what_there_is(
    tmp_path: Path, hostile: HostileServer, quick: None
) -> None:
    rows = tmp_path / "many.jsonl"
    rows.write_text("".join(json.dumps({"text": f"note {i}", "label": "cat"}) + "\n" for i in range(60)))
    hostile.reply = lambda body: "It is a cat." if int(row_of(body)["text"].split()[1]) < 5 else fail()

    def fail() -> str:
        raise ConnectionError

    with pytest.raises(ServerError, match="20 questions one after the other had no answer"):
        explain(rows, hostile, tries=1, concurrency=1)
    written = read(rows.with_name("out.jsonl"))
    assert len(written) == 60 and sum("explanations" in row for row in written) == 5
    assert len(hostile.tries) == 25


@pytest.mark.parametrize("fault", ["401", "404", "quota", "302"])
def test_what_cannot_pass_ends_the_run_and_the_key_stays_secret(
    rows: Path, hostile: HostileServer, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any, fault: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    hostile.faults = [fault]
    words = ["data", "explain", str(rows), "--output", str(rows.with_name("out.jsonl")), "--url", hostile.url]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--concurrency", "1"])
    printed = capsys.readouterr()
    assert ended.value.code == 2 and "check --url, --model (big) and OPENAI_API_KEY (a key of 13" in printed.err
    assert len(hostile.tries) == 1 and hostile.keys == {"Bearer sk-verysecret"}
    files = "".join(path.read_text() for path in rows.parent.iterdir() if path.is_file())
    assert "verysecret" not in printed.err + printed.out + caplog.text + files


def test_a_budget_in_tokens_stops_cleanly_and_more_goes_on(rows: Path, hostile: HostileServer) -> None:
    small = explain(rows, hostile, limits=Limits(max_tokens_total=1000), max_tokens=100)
    assert small.is_over_budget and 120 <= small.tokens <= 1000 and 0 < small.explained < 9
    assert "stopped at the budget" in to_text(small, "out.jsonl")
    none = explain(rows, hostile, limits=Limits(max_tokens_total=1000), max_tokens=100)
    assert none.explained == small.explained and none.tokens == small.tokens
    whole = explain(rows, hostile, limits=Limits(max_tokens_total=100_000), max_tokens=100)
    assert whole.explained == 9 and not whole.is_over_budget
    assert set(hostile.answered.values()) == {1} and whole.tokens == 9 * 120


def test_a_budget_in_money_counts_both_prices(rows: Path, hostile: HostileServer) -> None:
    prices = Limits(max_cost=0.6, price_input=1000.0, price_output=5000.0)  # 0.2 an answer
    report = explain(rows, hostile, limits=prices, max_tokens=20, concurrency=1)
    assert report.is_over_budget and report.explained == 2 and report.cost == pytest.approx(0.4)
    with pytest.raises(SettingsError, match="--max_cost is 1, but what tokens cost is not known"):
        Limits(max_cost=1.0, price_input=1.0)


def test_candidates_and_styles_are_questions_of_their_own_and_other_classes_are_dropped(
    rows: Path, hostile: HostileServer
) -> None:
    replies = {0: "It is a {}.", 1: "It is a {}.", 2: "The {} it is not; clearly a goldfish, or a fox."}

    def reply(body: dict[str, Any]) -> str:
        other = "dog" if label_told(body) == "cat" else "cat"
        return replies[body["seed"]].format(label_told(body)) if body["seed"] < 2 else f"It is a {other}."

    hostile.reply = reply
    report = explain(rows, hostile, candidates=3, styles=("short", "evidence-first"))
    assert report.answers == 54 and report.kept == 9
    assert report.dropped == {"other-class": 18, "repeated": 27}
    assert read(rows.with_name("out.jsonl"))[1]["explanations"] == ["It is a dog."]


def test_agreement_is_measured_without_telling_the_label(rows: Path, hostile: HostileServer) -> None:
    hostile.reply = lambda body: f"**Class:** cat\nNote {row_of(body)['text']} is short."
    report = explain(rows, hostile, with_label=False)
    assert (len(report.agreed_D), sum(report.agreed_D), report.kept) == (9, 5, 5)
    assert report.dropped == {"other-class": 4}
    assert read(rows.with_name("out.jsonl"))[0]["explanations"] == ["Note note 0 is short."]
    assert not any("belongs to the class" in question for question in hostile.tries)
    assert "agreement with the labels: 55.6% of 9 decisions" in to_text(report, "out.jsonl")


def test_answers_without_content_or_end_are_dropped(rows: Path, hostile: HostileServer) -> None:
    hostile.reply = lambda body: "" if "note 1" in str(body) else "A sentence. And one that"
    hostile.usage = None
    report = explain(rows, hostile)
    assert report.dropped == {"empty": 1} and 9 * 100 < report.tokens < 9 * 300
    with Journal(rows.with_name("cut.journal")) as journal:
        journal.add("k", Answer("No end", "length", 3, 4))
        assert journal.get("k") == Answer("No end", "length", 3, 4)


@pytest.mark.parametrize("content", ["None", "-", "['a', 'b']", "['a' ... 'z']", "nul \0 byte", "half \ud83d emoji"])
def test_what_the_reader_of_rows_would_reject_is_dropped(rows: Path, hostile: HostileServer, content: str) -> None:
    hostile.reply = lambda body: content if "note 3" in str(body) else "One [sic] sentence, as it is: 'fine'."
    report = explain(rows, hostile)
    assert report.dropped == {"unreadable": 1} and report.explained == 8
    read_again = read_examples(
        str(rows.with_name("out.jsonl")), columns=Columns(), labels=None, max_bad_fraction=0.5, quarantine=None
    )
    written = [example.explanations for example in read_again.examples if example.text.startswith("note")]
    assert sorted(written) == [(), *[("One [sic] sentence, as it is: 'fine'.",)] * 8]


def test_further_checks_drop_candidates_by_their_codes(rows: Path, hostile: HostileServer) -> None:
    settings = TeacherSettings(url=hostile.url, model="big")

    def checks(row: Example, text: str, names: ClassNames) -> list[str]:
        assert len(names.stated(text)) == 1
        return ["too-short"] if row.text == "note 3" else []

    checked = Explainer(str(rows), settings, checks)
    report = checked.run(rows.with_name("out.jsonl"))
    assert report.dropped == {"too-short": 1} and report.explained == 8


def test_csv_rows_become_json_lines_with_every_column(tmp_path: Path, hostile: HostileServer) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text('text,label,site\n"one, two",cat,A\nthree,dog,\nonly one cell\n')
    assert explain(rows, hostile).bad == 1
    assert [(row["text"], row["site"], row["provenance"]) for row in read(tmp_path / "out.jsonl")] == [
        ("one, two", "A", "teacher:big"),
        ("three", None, "teacher:big"),
    ]


def test_who_wrote_an_explanation_is_read_back(tmp_path: Path, hostile: HostileServer) -> None:
    rows, columns = tmp_path / "rows.jsonl", Columns(verdict="verdict", rejected="rejected", provenance="by")
    human = {"label": "cat", "explanation": "It is soft.", "by": "human"}
    lines = [
        {"text": "a", **human},
        {"text": "b", **human, "verdict": "rejected"},
        {"text": "c", "label": "dog", "by": "crawl A"},
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = explain(rows, hostile, columns=columns)
    assert (report.explained, report.replaced) == (2, 1) and "something else" in to_text(report, "out")
    found = read_examples(
        str(tmp_path / "out.jsonl"), columns=columns, labels=None, max_bad_fraction=0, quarantine=None
    ).examples
    assert [(row.explanations, row.provenance, row.rejected) for row in found] == [
        (("It is soft.",), ("human",), ()),
        (("It is cat, says the text.",), ("teacher:big",), ("It is soft.",)),
        (("It is dog, says the text.",), ("teacher:big",), ()),
    ]


def test_wrong_addresses_names_and_files_are_refused(rows: Path, hostile: HostileServer, tmp_path: Path) -> None:
    for url in ("localhost:8000", "ftp://x", "http://user:key@host/v1"):
        with pytest.raises(SettingsError, match="expected an address such as"):
            client.base_url(url)
    assert client.base_url("http://h:1/") == "http://h:1/v1"
    assert client.base_url("https://h/v1beta/openai/chat/completions") == "https://h/v1beta/openai"
    with pytest.raises(SettingsError, match=r"ends in \.jsonl"):
        explain(rows, hostile, output="out.csv")
    with pytest.raises(SettingsError, match="the rows themselves"):
        explain(rows, hostile, output="rows.jsonl")
    (tmp_path / "mine.jsonl").write_text("mine")
    with pytest.raises(SettingsError, match="exists, and not by this command"):
        explain(rows, hostile, output="mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == "mine"
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="has no labels"):
        explain(unlabelled, hostile)
    assert not hostile.tries


def test_a_torn_journal_goes_on_and_two_runs_do_not_share_one(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.add("a", Answer("ä", "stop", 1, 2))
        with pytest.raises(SettingsError, match="is written by another run"):
            Journal(path)
    path.write_bytes(path.read_bytes() + b'{"key": "b", "content": "to')
    with Journal(path) as journal:
        assert "b" not in journal and len(journal) == 1
        journal.add("c", Answer("y", "stop", 3, 4, decision=["cat"]))
    with Journal(path) as journal:
        assert journal.get("a") == Answer("ä", "stop", 1, 2) and journal.prompt_tokens == 4
        assert journal.get("c") == Answer("y", "stop", 3, 4, decision=["cat"])


def test_after_kill_9_no_answer_is_paid_for_twice(tmp_path: Path, hostile: HostileServer) -> None:
    rows, output = tmp_path / "many.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"text": f"note {i}", "label": "cat"}) + "\n" for i in range(40)))
    hostile.seconds = 0.1
    words = ["data", "explain", str(rows), "--output", str(output), "--url", hostile.url, "--concurrency", "3"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "clsgen_dist", *words], env=environment, stderr=subprocess.DEVNULL
    )
    journal, until = output.with_name("out.jsonl.journal"), time.monotonic() + 60
    while time.monotonic() < until and (not journal.exists() or journal.read_bytes().count(b"\n") < 12):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_bytes().count(b"\n")
    assert 12 <= kept < 40 and not output.exists()
    time.sleep(0.3)
    hostile.seconds, before = 0.0, dict(hostile.tries)
    main(words)
    again = [question for question, tries in hostile.tries.items() if tries > before.get(question, 0)]
    assert len(again) == 40 - kept, "what the journal has is not asked again"
    assert sum(question in before for question in again) <= 3, "only what was on its way is"
    assert all("explanations" in row for row in read(output)) and len(read(output)) == 40
