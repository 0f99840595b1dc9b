"""`clsgen data check`: names of splits, refusals, exit status, and the reports as text, JSON and HTML."""

from __future__ import annotations

import json
from collections import defaultdict
from html.parser import HTMLParser

import pytest

from clsgen_dist.cli import main
from clsgen_dist.data.checks.page import page as html_of
from clsgen_dist.data.checks.report import to_json, to_text
from clsgen_dist.data.checks.row_statistics import sources_of
from clsgen_dist.errors import DataError, ModelError, SettingsError
from clsgen_dist.training.check_files import check_files
from tests.data.checks.planted import make_rows


def test_splits_are_named_after_files_given_names_and_hub_splits(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").touch()
    a, b = (str(tmp_path / folder / "rows.jsonl") for folder in "ab")
    assert [s.name for s in sources_of([a, f"held-out={b}", "owner/name:test"])] == ["rows", "held-out", "test"]
    assert [s.name for s in sources_of([a, b])] == [a, b]
    assert sources_of([f"held-out={b}"])[0].path == b
    assert [s.name for s in sources_of(["rows/train.jsonl.gz", "rows/Test.CSV.GZ"])] == ["train", "Test"]
    with pytest.raises(DataError, match="given 2 times"):
        sources_of([a, a])


def test_wrong_files_and_options_are_refused(tmp_path, train):
    path = train(make_rows(10))
    for options, error, expected in (
        ({"files": []}, DataError, "name the files"),
        ({"files": [path, str(tmp_path / "none.jsonl")]}, DataError, "none.jsonl does not exist"),
        ({"files": [path], "near": 80}, SettingsError, "near is 80, expected a share from 0.5 to below 1"),
        ({"files": [path], "tokenizer": str(tmp_path)}, ModelError, "config.json"),
        ({"files": [path], "tokenizer": "nobody/nothing"}, ModelError, "--tokenizer"),
        ({"files": [path], "config": "none.yaml"}, SettingsError, "none.yaml"),
    ):
        with pytest.raises(error, match=expected):
            check_files(**options)


def _exit_status(*argv):
    try:
        main(["data", *argv])
    except SystemExit as stop:
        return stop.code
    return 0


def test_the_exit_status_reflects_errors_strict_warnings_and_wrong_commands(train, test, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good, small = train(make_rows(100)), test(make_rows(7, seed=1))
    assert _exit_status("check", good) == 0
    assert _exit_status("check", good, small) == 0
    assert _exit_status("check", good, small, "--strict") == 1
    assert _exit_status("check", good, f"copy={test(make_rows(100))}") == 1
    assert "remedy: delete them from train, or from copy" in capsys.readouterr().out
    assert _exit_status("check", "none.jsonl") == 2
    assert "none.jsonl does not exist" in capsys.readouterr().err
    assert _exit_status("check", good, "--repotr", "x") == 2
    assert _exit_status("chekc", good) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_data_lists_its_commands(capsys):
    for argv in ([], ["--help"]):
        assert _exit_status(*argv) == 0
        assert "clsgen data COMMAND" in (output := capsys.readouterr().out)
        assert "  check  " in output


def test_the_text_report_has_tables_and_the_places_of_each_finding(train, test):
    rows = make_rows(100)
    message = to_text(check_files([train(rows), test([*make_rows(60, seed=1), {**rows[4], "id": "copy"}])]))
    assert "| train | 100  | 0        | 100 (100%) |" in message
    assert "| 'yes' | 50 (50.0%) |" in message
    assert "where: test.jsonl:61 = train.jsonl:5 (copy)" in message
    assert message.endswith("1 error")


def test_an_id_is_shown_if_it_is_the_users_though_it_ends_like_the_line(train):
    rows = make_rows(100)
    own, made = {**rows[4], "id": "ward:101"}, {**rows[5], "id": None}
    message = to_text(check_files([train([*rows, own, made])]))
    assert "train.jsonl:101 = train.jsonl:5 (ward:101)" in message
    assert "train.jsonl:102 = train.jsonl:6" in message and "(train.jsonl:102)" not in message


def test_the_json_report_has_every_row_of_every_finding(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = make_rows(100)
    path = train(rows + [{**row, "id": f"copy{i}"} for i, row in enumerate(rows[:40])])
    assert _exit_status("check", path, "--report", "null", "--json", "out/findings.json") == 0
    assert not (tmp_path / "report.html").exists()
    [finding] = json.loads((tmp_path / "out" / "findings.json").read_text())["findings"]
    assert (finding["finding"], finding["severity"], finding["count"], len(finding["rows"])) == (
        "exact-duplicates",
        "warning",
        40,
        40,
    )
    assert finding["rows"][39] == {
        "split": "train",
        "source": path,
        "line": 140,
        "id": "copy39",
        "label": "yes",
        "like": {"split": "train", "source": path, "line": 40, "id": "r39", "label": "yes"},
    }


class _Page(HTMLParser):
    """Elements, their attributes and text; fails on ill-nested tags."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.cells = [], defaultdict(int), [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data


def test_the_html_report_is_complete_escaped_and_self_contained(train, test):
    evil = """<script>alert("x")</script></td><img src=http://evil.example/x onerror='alert(1)'> $\\frac{$"""
    rows = make_rows(100, labels=["no", "<b>yes</b> & $x_"])
    rows[3]["text"] = evil
    rows[4] = {**rows[3], "id": "<i>4</i>", "label": "no"}
    path = train(rows)
    with open(path, "a") as file:
        file.write('{"text": "<script>broken"\n')
    page = html_of(
        check_files(
            [path, test([*make_rows(50, seed=1, labels=["no", "<b>yes</b> & $x_"]), {**rows[3], "id": "</table>"}])]
        )
    )
    parsed = _Page(page)
    assert (
        parsed.tags["script"]
        == parsed.tags["img"]
        == parsed.tags["b"] - page.count("<b class=") - page.count("<b>R")
        == 0
    )
    assert evil in parsed.cells
    assert '{"text": "<script>broken"' in parsed.cells
    assert parsed.tags["svg"] == 5
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    outside = [v for n, v in parsed.attributes if n in ("href", "src", "xlink:href") and not v.startswith("#")]
    assert outside == []
    assert "url(http" not in page and "@import" not in page
    assert "&lt;b&gt;yes&lt;/b&gt; &amp; $x_" in page


def test_the_html_report_of_bad_rows_only_is_valid(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{\n" * 5)
    (tmp_path / "none.jsonl").touch()
    checked = check_files([str(tmp_path / "rows.jsonl"), str(tmp_path / "none.jsonl")])
    assert [f.code for f in checked.findings] == ["unusable-rows", "empty"]
    assert _Page(html_of(checked)).tags["article"] == 2
    assert json.loads(to_json(checked))["findings"][0]["count"] == 5


def test_explanations_are_counted_by_where_they_came_from(train, test):
    rows = make_rows(20)
    for number, row in enumerate(rows[:15]):
        row |= {"explanations": ["one", "two"], "provenance": ["human", "teacher:big"] if number < 5 else "teacher:<b>"}
        row.pop("explanation", None)
    rows[15]["provenance"] = 7
    report = check_files([train(rows), test(make_rows(4, seed=1))])
    written = json.loads(to_json(report))
    assert written["splits"][0]["provenance"] == {"human": 5, "teacher:big": 5, "teacher:<b>": 20}
    assert [split["explanations"] for split in written["splits"]] == [35, 4]
    assert [split["provenance_not_stated"] for split in written["splits"]] == [5, 4]
    text = to_text(report)
    assert (
        "| teacher:<b>       | 20 (57%) | 0 (0%)   |" in text and "| (not stated)      | 5 (14%)  | 4 (100%) |" in text
    )
    assert "<td>teacher:&lt;b&gt;</td><td>20 (57%)</td>" in html_of(report)
    (found,) = [finding for finding in written["findings"] if finding["finding"] == "unread-provenance"]
    assert (found["severity"], found["count"], found["rows"][0]["detail"]) == ("warning", 1, "'7'")
    plain = check_files([train(make_rows(20))])
    assert "explanations from" not in to_text(plain) and 'id="provenance"' not in html_of(plain)
