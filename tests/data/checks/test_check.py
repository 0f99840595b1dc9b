"""`clsgen data check`: one planted fault at a time, each must be found, counted, placed, and nothing else claimed."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from html.parser import HTMLParser

import pytest

from clsgen_dist.cli import main
from clsgen_dist.commands.data_check import check_files
from clsgen_dist.data.checks.measure import sources_of
from clsgen_dist.data.checks.page import page as html_of
from clsgen_dist.data.checks.report import to_json, to_text
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.errors import DataError, ModelError, SettingsError

NOUNS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "market",
    "engine",
    "shadow",
    "copper",
    "violin",
    "harbour",
    "meadow",
    "lantern",
    "saddle",
]
VERBS = [
    "carries",
    "hides",
    "paints",
    "follows",
    "measures",
    "repairs",
    "forgets",
    "borrows",
    "polishes",
    "watches",
    "gathers",
    "opens",
]


def _rows(count, seed=0, labels=("no", "yes")):
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        words = [f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}" for _ in range(4)]
        text = f"{' and '.join(words)} {rng.randrange(10**6)}."
        rows.append(
            {"id": f"r{i}", "text": text, "label": labels[i % len(labels)], "explanation": f"Since {words[0]}."}
        )
    return rows


def _write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def train(tmp_path):
    """``train(rows)`` writes them as train.jsonl."""
    return lambda rows: _write(tmp_path / "train.jsonl", rows)


@pytest.fixture
def test(tmp_path):
    """``test(rows)`` writes them as test.jsonl."""
    return lambda rows: _write(tmp_path / "test.jsonl", rows)


def _found(*files, **options):
    """The findings by code, each as (severity, count, places as split:line)."""
    checked = check_files(list(files), **options)
    assert len({(f.code, f.splits) for f in checked.findings}) == len(checked.findings)
    return {f.code: f for f in checked.findings}


def _lines(finding):
    return [place.line for place in finding.rows]


def test_good_rows_have_no_findings(train, test):
    assert _found(train(_rows(200)), test(_rows(60, seed=1))) == {}


# --- format


def test_broken_lines_are_an_error_with_reasons_and_lines(tmp_path, train):
    path = train(_rows(200))
    with open(path, "a") as file:
        file.write('{"id": "x", "text": \n[1]\n{"id": "y", "text": " ", "label": "yes"}\n')
    found = _found(path)
    assert list(found) == ["unusable-rows"]
    finding = found["unusable-rows"]
    assert (finding.severity, finding.count, finding.of, _lines(finding)) == ("error", 3, 203, [201, 202, 203])
    assert "1 not JSON" in finding.what and "1 empty text" in finding.what
    assert finding.rows[0].excerpt == '{"id": "x", "text": '


def test_few_enough_broken_lines_are_a_warning(train):
    path = train(_rows(200))
    with open(path, "a") as file:
        file.write("{\n")
    assert _found(path)["unusable-rows"].severity == "warning"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_in_utf_16_is_named_so_with_the_command_that_mends_it(encoding, kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    text = (
        "".join(json.dumps(row) + "\n" for row in _rows(50)) if kind == "jsonl" else "id,text,label\na,some text,yes\n"
    )
    path.write_bytes(text.encode(encoding))
    found = _found(str(path))
    assert list(found) == ["encoding"]
    assert found["encoding"].severity == "error"
    assert f"iconv -f {encoding.upper().replace('-LE', 'LE')} -t UTF-8" in found["encoding"].remedy


def test_latin_1_rows_are_unusable_and_the_remedy_names_the_encoding(tmp_path):
    rows = [{**row, "text": row["text"] + " café"} if i < 30 else row for i, row in enumerate(_rows(200))]
    path = tmp_path / "train.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("latin-1"))
    finding = _found(str(path))["unusable-rows"]
    assert (finding.severity, _lines(finding)) == ("error", list(range(1, 31)))
    assert "iconv -f WINDOWS-1252 -t UTF-8" in finding.remedy


def test_a_byte_order_mark_costs_no_row(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(row) + "\n" for row in _rows(60)).encode())
    found = _found(str(path))
    assert {code: finding.severity for code, finding in found.items()} == {"byte-order-mark": "info"}


def test_wrongly_decoded_characters_are_told(train):
    rows = _rows(100)
    rows[4]["text"] += " café".encode().decode("latin-1")
    rows[7]["explanation"] += " \ufffd"
    rows[8]["text"] += " café"
    assert _lines(_found(train(rows))["mojibake"]) == [5, 8]


def test_an_empty_file_is_an_error_and_the_other_files_are_still_checked(tmp_path, train, test):
    rows = _rows(100)
    (tmp_path / "dev.jsonl").write_text("\n \n")
    found = _found(train(rows), str(tmp_path / "dev.jsonl"), test(rows[:50]))
    assert found["empty"].severity == "error"
    assert found["empty"].splits == ("dev",)
    assert found["leakage"].count == 50


@pytest.mark.parametrize(
    ("text", "told", "remedy"),
    [
        (json.dumps(_rows(30), indent=1), "is one JSON value", "jq -c '.[]'"),
        (json.dumps(_rows(30)), "is one JSON value", "jq -c '.[]'"),
        (json.dumps(_rows(1)[0], indent=1), "is one JSON value", "jq -c '.'"),
        ("\0" * 5000, "begins with NUL bytes", "write it again"),
        ("\x1f\x8b\x08\0abc", "is packed with gzip", "name it rows.json.gz, or unpack it: gunzip"),
        ("PK\x03\x04abc", "is a zip archive or an Excel workbook", "save the sheet as CSV UTF-8"),
    ],
)
def test_a_file_that_is_no_file_of_lines_gets_the_command_that_makes_it_one(tmp_path, text, told, remedy):
    path = tmp_path / "rows.json"
    path.write_bytes(text.encode("latin-1"))
    finding = _found(str(path))["format"]
    assert finding.severity == "error" and told in finding.what and remedy in finding.remedy
    with pytest.raises(DataError, match=told):
        find_source(str(path))


def test_lines_after_one_that_begins_like_an_array_are_still_rows(tmp_path, train):
    path = train(_rows(200))
    (tmp_path / "train.jsonl").write_text("[1, 2]\n" + (tmp_path / "train.jsonl").read_text())
    assert _lines(_found(path)["unusable-rows"]) == [1]


def test_a_text_of_200_000_combining_marks_takes_no_time(train):
    rows = _rows(200)
    rows[3]["text"] = rows[3]["text"] + "a" + "\u0301\u0327" * 100_000
    start = time.monotonic()
    assert set(_found(train(rows))) == {"truncation"}
    assert time.monotonic() - start < 40  # a few seconds; quadratic time would be minutes


def test_a_thousand_pairs_of_labels_are_one_warning_and_ten_examples(train):
    names = [f"class {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(100)]
    rows = [{**row, "label": names[i % 100] if i < 300 else names[i % 100].upper()} for i, row in enumerate(_rows(600))]
    checked = check_files([train(rows)])
    told = [finding.what for finding in checked.findings if finding.code == "label-names"]
    assert len(told) == 11 and told[0].startswith("100 groups of labels look alike")


def test_unnamed_columns_are_named_from_the_row(train):
    found = _found(train([{"text": row["text"], "verdict": row["label"]} for row in _rows(50)]))
    assert found["unusable-rows"].severity == "error"
    assert "line 1 has text, verdict" in found["unusable-rows"].remedy
    again = _found(
        train([{"text": r["text"], "verdict": r["label"]} for r in _rows(50)]), columns=Columns(label="verdict")
    )
    assert list(again) == ["none-explained"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved"])
def test_every_format_is_checked(kind, tmp_path):
    from datasets import Dataset

    rows = _rows(100)
    rows[9]["text"] = rows[3]["text"].upper()
    table = Dataset.from_list(rows)
    target = tmp_path / ("train" if kind == "saved" else f"train.{kind}")
    {"csv": table.to_csv, "parquet": table.to_parquet, "saved": table.save_to_disk}[kind](str(target))
    finding = _found(str(target))["exact-duplicates"]
    assert _lines(finding) == [11 if kind == "csv" else 10]  # a CSV file has a header
    assert "Duplicates" not in finding.what and finding.rows[0].like.id == "r3"


# --- labels


def test_one_class_is_an_error_in_training_rows_and_a_warning_in_others(train, test):
    found = check_files([train(_rows(100, labels=["yes"])), test(_rows(40, seed=1, labels=["yes"]))]).findings
    assert [(f.code, f.severity, f.splits) for f in found] == [
        ("one-class", "error", ("train",)),
        ("one-class", "warning", ("test",)),
    ]


def test_rows_without_any_label_are_an_error(train):
    rows = [{k: v for k, v in row.items() if k != "label"} for row in _rows(100)]
    found = _found(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"one-class": "error"}
    assert "no row has a label" in found["one-class"].what


def test_labels_that_look_alike_are_told_with_their_rows(train):
    """Case, full-width letters, a letter of another alphabet; a blank at the end makes no class."""
    rows = _rows(200, labels=["benign", "malignant"])
    rows[10]["label"] = "Benign "
    rows[12]["label"] = "ｂenign"
    rows[14]["label"] = "b\u0435nign"
    found = _found(train(rows))
    assert list(found) == ["label-names"]  # and not also a class of one row
    finding = found["label-names"]
    assert (finding.severity, _lines(finding)) == ("warning", [11, 13, 15])
    assert "'benign' (97)" in finding.what and "'Benign' (1)" in finding.what
    assert "write 'benign'" in finding.remedy


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"label": "None"}, "missing-label", "'None' (2)"),
        ({"explanation": "nan"}, "missing-explanation", "'nan' (2)"),
        ({"explanation": "['since', 'so']"}, "list-text", "its items are read as explanations"),
        ({"explanation": "[since, so]"}, "bracketed", "may be a list without quotes"),
        ({"label": "yes\u200b"}, "hidden-characters", "'yes\\u200b' (2)"),
        ({"label": "ye\u0301s"}, "hidden-characters", "it is read without them"),
        ({"label": "none"}, "missing-class", "'none' (2) may stand for a missing label"),
    ],
)
def test_cells_that_are_read_otherwise_than_they_look_are_told_with_their_rows(change, code, told, train):
    rows = _rows(200)
    for row in (rows[20], rows[50]):
        row.update(change)
    finding = _found(train(rows))[code]
    assert (finding.severity, _lines(finding), told in finding.what) == ("warning", [21, 51], True)
    assert finding.remedy


def test_labels_like_floats_and_texts_like_nothing_are_told(train):
    rows = _rows(200, labels=["0.0", "1.0"])
    rows[7]["text"] = "null"
    found = _found(train(rows))
    assert set(found) == {"respelt-label", "placeholder-text"}
    assert found["respelt-label"].count == 200 and _lines(found["placeholder-text"]) == [8]


def test_a_list_that_cannot_be_read_is_unusable(train):
    rows = _rows(200)
    rows[20]["explanation"] = "['it's', 'so']"
    finding = _found(train(rows))["unusable-rows"]
    assert _lines(finding) == [21] and "1 unreadable list" in finding.what


def test_a_rare_label_close_to_a_common_one_may_be_misspelt(train):
    rows = _rows(200, labels=["benign", "malignant"])
    rows[11]["label"] = "maligant"
    finding = _found(train(rows))["label-names"]
    assert _lines(finding) == [12]
    assert "misspelt" in finding.what


def test_true_classes_with_like_names_are_not_called_misspelt(train):
    found = _found(train(_rows(300, labels=["hateful", "non-hateful", "level 1", "level 2"])))
    assert found == {}


def test_labels_that_are_one_class_but_for_case_are_no_two_classes(train):
    found = _found(train(_rows(100, labels=["yes", "Yes"])))
    assert found["one-class"].severity == "error"


def test_a_label_column_of_free_text_neither_hangs_nor_floods(train):
    rows = [{**row, "label": f"verdict {row['text']}"} for row in _rows(3000)]
    start = time.monotonic()
    checked = check_files([train(rows)])
    assert time.monotonic() - start < 30
    [finding] = checked.findings
    assert finding.code == "few-rows" and finding.what.endswith("and 2992 more")
    assert len(to_text(checked).splitlines()) < 70


def test_very_unbalanced_classes_are_a_warning_with_the_share_of_the_larger(train):
    rows = _rows(600, labels=["no"])
    for row in rows[:30]:
        row["label"] = "yes"
    found = _found(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"imbalance": "warning"}
    assert "570 rows of 'no' for 30 of 'yes' (19 to 1)" in found["imbalance"].what
    assert "95%" in found["imbalance"].what


def test_a_set_of_seven_rows_is_told_to_be_small(train):
    found = _found(train(_rows(7)))
    assert {code: f.severity for code, f in found.items()} == {"few-rows": "warning"}
    assert "'no' (4), 'yes' (3)" in found["few-rows"].what


def test_a_class_that_training_has_not_is_an_error(train, test):
    found = _found(train(_rows(100)), test(_rows(60, seed=1, labels=["no", "yes", "unsure"])))
    assert (found["unseen-class"].severity, found["unseen-class"].count) == ("error", 20)
    assert "'unsure' (20)" in found["unseen-class"].what


def test_one_text_with_two_labels_is_an_error_that_names_all_its_rows(train, test):
    rows = _rows(100)
    rows[50] = {**rows[0], "id": "x", "text": " " + rows[0]["text"].lower(), "label": "yes"}
    other = _rows(60, seed=1)
    other[3] = {**rows[10], "id": "y", "label": "yes"}
    finding = _found(train(rows), test(other))["label-conflict"]
    assert finding.severity == "error"
    assert [(p.split, p.line, p.label) for p in finding.rows] == [
        ("train", 1, "no"),
        ("train", 51, "yes"),
        ("train", 11, "no"),
        ("test", 4, "yes"),
    ]
    assert "2 texts" in finding.what and "1 of them across files" in finding.what
    assert all(place.like and place.like.label != place.label for place in finding.rows)


# --- explanations and lengths


def test_none_explained_is_a_warning(train):
    found = _found(train([{k: v for k, v in row.items() if k != "explanation"} for row in _rows(100)]))
    assert {code: f.severity for code, f in found.items()} == {"none-explained": "warning"}


def test_the_share_explained_is_told_with_the_rows_that_are_not(train):
    rows = _rows(100)
    for row in rows[:25]:
        del row["explanation"]
    found = _found(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"partly-explained": "info"}
    assert "75 of 100" in found["partly-explained"].what
    assert _lines(found["partly-explained"]) == list(range(1, 26))


@pytest.mark.parametrize(("long", "severity"), [(1, "warning"), (5, "error")])
def test_explanations_that_are_too_long_are_told_as_training_would_take_them(long, severity, train):
    rows = _rows(200)
    for row in rows[:long]:
        row["explanation"] = "because " * 300
    finding = _found(train(rows))["long-explanations"]
    assert (finding.severity, finding.count, _lines(finding)) == (severity, long, list(range(1, long + 1)))
    assert "301" in finding.what and "data.max_explanation_length to 301" in finding.remedy


def test_texts_that_would_lose_their_middle_are_told_and_the_encoder_agrees(train, smollm2):
    from clsgen_dist.config import PromptSettings
    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.model.backbone import load_tokenizer

    rows = _rows(60)
    for extra in range(40):
        rows[extra]["text"] += " stone" * (660 + 4 * extra)
    finding = _found(train(rows))["truncation"]
    encoder = Encoder(
        load_tokenizer(str(smollm2)), system=None, question=PromptSettings().question, max_prompt_length=768
    )
    cut = [i + 1 for i, row in enumerate(rows) if encoder.prompt(row["text"])[1]]
    assert 0 < len(cut) < 40
    assert (finding.severity, _lines(finding)) == ("warning", cut)


def test_a_row_of_200_000_characters_is_told_and_takes_no_time(train):
    rows = _rows(100)
    rows[40]["text"] = "word and stone " * 13_334
    start = time.monotonic()
    found = _found(train(rows))
    assert time.monotonic() - start < 20
    assert list(found) == ["truncation"]
    assert _lines(found["truncation"]) == [41]


def test_the_recipe_decides_on_lengths_labels_and_columns(tmp_path):
    rows = [{"body": row["text"], "label": row["label"], "explanation": row["explanation"]} for row in _rows(100)]
    _write(tmp_path / "rows.jsonl", [*rows, {**rows[0], "body": "other words", "label": "unsure"}])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
data:
  train: {tmp_path / "rows.jsonl"}
  columns: {{text: body}}
  labels: ["no", "yes"]
  max_prompt_length: 64
model:
  backbone: demo:smollm2-135m
"""
    )
    checked = check_files([], config=str(recipe))
    found = {finding.code: finding for finding in checked.findings}
    assert found["truncation"].count > 50
    assert "unknown label" in found["unusable-rows"].what
    assert checked.measured.label_names == ["no", "yes"]


# --- copies


def test_copies_that_differ_in_case_and_space_are_told_with_what_they_copy(train):
    rows = _rows(100)
    rows[20]["text"] = rows[0]["text"].upper().replace(" ", "  ")
    rows[30]["text"] = f"\t{rows[0]['text']}\n"
    found = _found(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"exact-duplicates": "warning"}
    assert [(p.line, p.like.line) for p in found["exact-duplicates"].rows] == [(21, 1), (31, 1)]
    assert "98 different texts" in found["exact-duplicates"].what


def test_near_copies_are_told_in_groups(train):
    rows = _rows(100)
    rows[21]["text"] = rows[1]["text"].replace("The", "A", 1)
    rows[31]["text"] = rows[1]["text"] + " Indeed."
    found = _found(train(rows))
    assert {code: f.severity for code, f in found.items()} == {"near-duplicates": "warning"}
    assert _lines(found["near-duplicates"]) == [2, 22, 32]
    assert "in 1 group, the largest of 3" in found["near-duplicates"].what


def test_the_same_text_in_two_files_is_an_error_and_nearly_the_same_a_warning(tmp_path, train, test):
    rows, held_out, dev = _rows(200), _rows(60, seed=1), _rows(60, seed=2)
    held_out[5]["text"], held_out[5]["label"] = rows[10]["text"].title(), rows[10]["label"]
    held_out[7]["text"] = rows[12]["text"].replace(" and ", " & ", 1)
    dev[9]["text"], dev[9]["label"] = held_out[0]["text"], held_out[0]["label"]
    dev_file = _write(tmp_path / "dev.jsonl", dev)
    findings = check_files([train(rows), dev_file, test(held_out)]).findings
    assert [(f.code, f.severity, f.splits, f.count) for f in findings] == [
        ("leakage", "error", ("train", "test"), 1),
        ("leakage", "error", ("dev", "test"), 1),
        ("near-leakage", "warning", ("train", "test"), 1),
    ]
    leaked = [(p.split, p.line, p.like.split, p.like.line) for f in findings for p in f.rows]
    assert leaked == [("test", 6, "train", 11), ("test", 1, "dev", 10), ("test", 8, "train", 13)]


def test_rows_that_differ_in_a_counter_only_are_told(train):
    text = "the courier left the parcel with a neighbour and rang twice before leaving " * 2
    rows = [{**row, "text": f"{text} {i}"} for i, row in enumerate(_rows(200))]
    found = _found(train(rows))
    assert found["shared-template"].severity == "warning"


def test_a_shared_instruction_is_mentioned_and_hides_no_copies(train, test):
    rows, held_out = _rows(200), _rows(60, seed=1)
    held_out[7]["text"] = rows[12]["text"].replace(" and ", " & ", 1)
    for row in rows + held_out:
        row["text"] = (
            "You are a careful reviewer of short statements. Read what is written below twice, ask yourself who could "
            "have said so, weigh each word, do not guess at facts you cannot know, then decide. " + row["text"]
        )
    found = _found(train(rows), test(held_out))
    assert {code: f.severity for code, f in found.items()} == {"shared-template": "info", "near-leakage": "warning"}
    assert [(p.line, p.like.line) for p in found["near-leakage"].rows] == [(8, 13)]


def test_copies_with_the_same_id_are_refused_as_training_refuses_them(train):
    rows = _rows(100)
    finding = _found(train([*rows, rows[0], rows[1]]))["unusable-rows"]
    assert (finding.severity, _lines(finding)) == ("error", [101, 102])
    assert "id of its own" in finding.remedy


def test_many_identical_rows_are_all_counted_and_quickly(train):
    rows = [{"text": "all rows say this", "label": "yes" if i % 2 else "no"} for i in range(20_000)]
    start = time.monotonic()
    found = _found(train(rows))
    assert time.monotonic() - start < 60
    assert found["exact-duplicates"].count == 19_999
    assert found["label-conflict"].count == 20_000


# --- names, refusals, exit status


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


def test_what_cannot_be_checked_is_refused_with_a_remedy(tmp_path, train):
    path = train(_rows(10))
    for options, error, expected in (
        ({"files": []}, DataError, "name the files"),
        ({"files": [path, str(tmp_path / "none.jsonl")]}, DataError, "none.jsonl does not exist"),
        ({"files": [path], "near": 80}, SettingsError, "--near is 80"),
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


def test_the_exit_status_says_errors_warnings_if_strict_and_wrong_commands(train, test, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good, small = train(_rows(100)), test(_rows(7, seed=1))
    assert _exit_status("check", good) == 0
    assert _exit_status("check", good, small) == 0
    assert _exit_status("check", good, small, "--strict") == 1
    assert _exit_status("check", good, f"copy={test(_rows(100))}") == 1
    assert "remedy: delete them from train, or from copy" in capsys.readouterr().out
    assert _exit_status("check", "none.jsonl") == 2
    assert "none.jsonl does not exist" in capsys.readouterr().err
    assert _exit_status("check", good, "--repotr", "x") == 2
    assert _exit_status("chekc", good) == 2
    assert "did you mean 'check'?" in capsys.readouterr().err


def test_data_lists_its_verbs(capsys):
    for argv in ([], ["--help"]):
        assert _exit_status(*argv) == 0
        assert "clsgen data VERB" in (said := capsys.readouterr().out)
        assert "  check  " in said


# --- the reports


def test_the_text_has_tables_and_for_each_finding_file_line_and_remedy(train, test):
    rows = _rows(100)
    told = to_text(check_files([train(rows), test([*_rows(60, seed=1), {**rows[4], "id": "copy"}])]))
    assert "| train | 100  | 0        | 100 (100%) |" in told
    assert "| 'yes' | 50 (50.0%) |" in told
    assert "where: test.jsonl:61 = train.jsonl:5 (copy)" in told
    assert told.endswith("1 error")


def test_the_json_has_every_row_of_every_finding(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = _rows(100)
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


def test_the_page_is_whole_escapes_rows_and_asks_nothing_from_outside(train, test):
    evil = """<script>alert("x")</script></td><img src=http://evil.example/x onerror='alert(1)'> $\\frac{$"""
    rows = _rows(100, labels=["no", "<b>yes</b> & $x_"])
    rows[3]["text"] = evil
    rows[4] = {**rows[3], "id": "<i>4</i>", "label": "no"}
    path = train(rows)
    with open(path, "a") as file:
        file.write('{"text": "<script>broken"\n')
    page = html_of(
        check_files(
            [path, test([*_rows(50, seed=1, labels=["no", "<b>yes</b> & $x_"]), {**rows[3], "id": "</table>"}])]
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


def test_the_page_of_nothing_but_bad_rows_still_opens(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{\n" * 5)
    (tmp_path / "none.jsonl").touch()
    checked = check_files([str(tmp_path / "rows.jsonl"), str(tmp_path / "none.jsonl")])
    assert [f.code for f in checked.findings] == ["unusable-rows", "empty"]
    assert _Page(html_of(checked)).tags["article"] == 2
    assert json.loads(to_json(checked))["findings"][0]["count"] == 5


def test_the_real_sets_raise_no_false_alarm(shared_data):
    errors = {}
    for name in ("comve", "pubmedqa", "hatecheck", "contractnli"):
        files = [str(shared_data / name / f"{split}.jsonl") for split in ("train", "dev", "test")]
        found = check_files(files).findings
        errors[name] = [(f.code, f.splits, _lines(f)) for f in found if f.severity == "error"]
        shares = [f.count / f.of for f in found if f.code == "near-leakage"]
        assert all(share < 0.1 for share in shares)
    # ComVE's dev 628 is word for word its train 3544.
    assert errors == {
        "comve": [("leakage", ("train", "dev"), [628])],
        "pubmedqa": [],
        "hatecheck": [],
        "contractnli": [],
    }
