"""`clsgen data thin`: which explanations are the same, what is removed, and that all else stays byte for byte."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clsgen_dist.cli import main
from clsgen_dist.curation import row_edits, thin
from clsgen_dist.curation.near_explanations import NearExplanations
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import iter_rows
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.errors import DataError, SettingsError
from tests.curation.planted_rows import good_rows
from tests.data.checks.planted import write_rows

SAME = "Everything about this case points to the usual picture, as one would expect here"
VARIANTS = [f"{SAME}.", f"{SAME}!", f"{SAME.upper()}.", f"{SAME.replace('points', 'clearly points')}."]


def thinned(path, output, keep=2, **options):
    """The command's function."""
    return thin.thin(str(path), Path(output), **{"keep": keep, "columns": Columns(), "space": "auto"} | options)


def explanations_in(path):
    """The explanations of each row, as the reader has them."""
    rows = iter_rows(find_source(str(path)), columns=Columns(), labels=None, require_target=False)
    return [getattr(row, "explanations", None) for row in rows]


def groups_of(*pairs):
    """The groups of (text, explanation) pairs of one class, numbered in the order in which they occur."""
    found, numbers = NearExplanations(), {}
    for text, explanation in pairs:
        found.add(("x",), text, explanation)
    found.link(0.8)
    return [numbers.setdefault(found.group(("x",), explanation), len(numbers)) for _, explanation in pairs]


def planted():
    """40 good rows; in eight of each class the explanation is one of four variants of a sentence."""
    rows = good_rows(40)
    for place, row in enumerate(rows[:16]):
        row["explanation"] = VARIANTS[place % 4]
    return rows


def test_rewordings_and_copies_are_the_same_whatever_their_texts_say():
    texts = ["one long note", "another case, as one would expect", "the usual picture", "clearly a case"]
    assert groups_of(*zip(texts, VARIANTS, strict=True), ("a text", VARIANTS[0])) == [0, 0, 0, 1, 0]
    assert groups_of(*((f"note {n}", variant) for n, variant in enumerate(VARIANTS))) == [0, 0, 0, 0]


def test_explanations_that_differ_in_facts_of_their_texts_are_not_the_same():
    frame = "The outline of the finding in this picture is {}, and it measures {} mm in all, which decides it."
    facts = [("spiculated", 12), ("lobed", 12), ("spiculated", 31), ("spiculated", 12)]
    grounded = [(f"a {shape} mass of {size} mm", frame.format(shape, size)) for shape, size in facts]
    assert groups_of(*grounded) == [0, 1, 2, 0]
    invented = [("a mass", frame.format(shape, 12)) for shape, _ in facts]
    assert groups_of(*invented) == [0, 0, 0, 0], "what is not in the text is another wording, no fact"
    swapped = frame.format("{}", "{}").replace("in all", "and {} cm")
    pairs = [("1 and 2", swapped.format("round", 1, 2)), ("1 and 2", swapped.format("round", 2, 1))]
    assert groups_of(*pairs) == [0, 1]


def test_each_class_keeps_the_first_ones_and_every_row_stays(tmp_path):
    rows = planted()
    path = write_rows(tmp_path / "rows.jsonl", rows)
    report = thinned(path, tmp_path / "out.jsonl", keep=3)
    before, after = Path(path).read_bytes().splitlines(True), (tmp_path / "out.jsonl").read_bytes().splitlines(True)
    changed = [number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert changed == list(range(6, 16)), "classes alternate, so six rows have the first three of each"
    for number in changed:
        assert json.loads(after[number]) == {**rows[number], "explanation": None}
    assert report.removed == {("benign",): 5, ("malignant",): 5} and report.emptied == 10
    assert report.groups == {("benign",): 1, ("malignant",): 1} and set(report.largest.values()) == {8}
    assert [row.explanations for row in report.before] == [20, 20]
    assert [row.explanations for row in report.after] == [15, 15]
    for was, now in zip(report.before, report.after, strict=True):
        assert now.distinct_2 > was.distinct_2 and now.self_bleu < was.self_bleu
    again = thinned(tmp_path / "out.jsonl", tmp_path / "again.jsonl", keep=3)
    assert not again.removed.total()
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_only_the_bytes_of_the_cells_change_in_json_lines(tmp_path):
    same = json.dumps(SAME)
    other = '"It pürrs, and the \\u006eote says so\\n"'
    lines = [
        b"\xef\xbb\xbf" + f'{{"text": "a", "label": "x", "explanation": {same}}}\r\n'.encode(),
        f'{{ "n" : 1.50 , "text":"b\\u00e4", "label":"x", "explanation" :{same} ,'
        '"z":[1e3,  {"explanation": 1}]}\n'.encode(),
        b"\n",
        b'{"text": \n',
        f'{{"label": "x", "provenance": ["human", "teacher:big", null, "self:1"], "explanations": '
        f'[{other}, {same}, "n/a", "c"], "text": "c"}}\n'.encode(),
        f'{{"text": "d", "label": "x", "explanations": "[{same[1:-1]!r}, \'e\']", "x\xa0y": 0.10}}'.encode(),
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines))
    report = thinned(tmp_path / "rows.jsonl", tmp_path / "out.jsonl", keep=1)
    after = (tmp_path / "out.jsonl").read_bytes().splitlines(True)
    assert after[:1] + after[2:4] == lines[:1] + lines[2:4] and report.bad == 1
    assert after[1] == lines[1].replace(same.encode(), b"null")
    assert after[4].decode() == (
        '{"label": "x", "provenance": ["human", null, "self:1"], "explanations": ["It pürrs, and the note says so\\n", '
        '"n/a", "c"], "text": "c"}\n'
    )
    assert after[5].decode() == '{"text": "d", "label": "x", "explanations": "[\\"e\\"]", "x\xa0y": 0.10}'
    assert report.removed == {("x",): 3} and report.emptied == 1


CSV = (
    b"\xef\xbb\xbfsep=;\r\n"
    b'id;"text";explanation;label;"no\nte";provenance\r\n'
    b'1;a;"%s";x;"1;0";human\r\n'
    b'2;"b\r\n""q""";%s;x;  "raw;["human"]\r\n'
    b"\r\nonly one cell\r\n"
    b'3;c;"[""%s"", ""d; ""]";x;;"[""human"", ""teacher:big""]"\r\n'
    b"4;\xff;%s;x;;\r\n"
)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_only_the_bytes_of_the_cells_change_in_csv(tmp_path, is_compressed):
    data = CSV.replace(b"%s", SAME.encode())
    path, output = (tmp_path / (name + ".gz" * is_compressed) for name in ("rows.csv", "out.csv"))
    path.write_bytes(gzip.compress(data) if is_compressed else data)
    report = thinned(path, output, keep=1)
    expected = CSV.replace(b'"%s";x;"1', f'"{SAME}";x;"1'.encode()).replace(b";%s;x;  ", b";;x;  ")
    expected = expected.replace(b'"[""%s"", ""d; ""]"', b'"[""d; ""]"').replace(
        b'"[""human"", ""teacher:big""]"', b'"[""teacher:big""]"'
    )
    expected = expected.replace(b'"raw;["human"]', b'"raw;[]').replace(b"%s", SAME.encode())
    written = output.read_bytes()
    assert (gzip.decompress(written) if is_compressed else written) == expected
    assert report.bad == 2 and report.removed == {("x",): 2}


def test_parquet_rows_keep_the_schema_and_all_other_cells(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(row_edits, "PARQUET_ROWS", 7)
    rows = [
        {**row, "size": n, "explanations": [VARIANTS[0], f"own {n}"], "t": {"a": n}} for n, row in enumerate(planted())
    ]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"by": "us"})
    beyond_python = pyarrow.array([10**18] * len(rows), type=pyarrow.timestamp("us"))
    table = table.append_column("when", beyond_python)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=9)
    thinned(tmp_path / "rows.parquet", tmp_path / "out.parquet", keep=3)
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert written.schema.equals(pyarrow.parquet.read_schema(tmp_path / "rows.parquet"), check_metadata=True)
    same = ["id", "text", "label", "evidence", "size", "t", "when"]
    assert written.select(same).equals(table.select(same))
    left = written.drop_columns("when").to_pylist()
    assert left[39]["explanations"] == ["own 39"] and left[39]["explanation"] == rows[39]["explanation"]
    assert left[15]["explanation"] is None and left[0]["explanation"] == VARIANTS[0]
    lines = write_rows(tmp_path / "rows.jsonl", rows)
    thinned(lines, tmp_path / "out.jsonl", keep=3)
    assert explanations_in(tmp_path / "out.jsonl") == explanations_in(tmp_path / "out.parquet")


def test_what_training_does_not_take_for_an_explanation_of_the_class_stays(tmp_path):
    columns = Columns(chosen="good", rejected="bad", verdict="verdict")
    rows = [{"text": f"t {n}", "label": "x", "good": SAME, "bad": "no", "verdict": "accepted"} for n in range(5)]
    rows += [{"text": f"u {n}", "label": "x", "explanation": SAME, "verdict": "rejected"} for n in range(5)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert not thinned(path, tmp_path / "out.jsonl", keep=1, columns=columns).removed.total()
    assert (tmp_path / "out.jsonl").read_bytes() == Path(path).read_bytes()


def test_rows_with_several_classes_are_compared_with_rows_of_the_same_classes(tmp_path):
    sets = [["a"], ["b", "a"], ["a", "b"], ["a"], []]
    rows = [{"text": f"t {n}", "label": labels, "explanation": SAME} for n, labels in enumerate(sets)]
    report = thinned(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", keep=1)
    assert report.removed == {("a",): 1, ("a", "b"): 1, ("(none)",): 0}
    left = [json.loads(line)["explanation"] for line in (tmp_path / "out.jsonl").open()]
    assert left == [SAME, SAME, None, None, SAME]


def test_the_command_says_what_was_removed(tmp_path, capsys):
    path = write_rows(tmp_path / "rows.jsonl", planted())
    main(["data", "thin", path, "--output", str(tmp_path / "out.jsonl"), "--keep", "3"])
    printed = capsys.readouterr().out
    assert "| 'benign'    | 20           | 5       | 1" in printed and "| after " in printed and "self-BLEU" in printed
    assert "10 of 40 explanations removed; 10 rows have none left" in printed
    write_rows(tmp_path / "bare.jsonl", [{"text": "a", "label": "x"}])
    main(["data", "thin", str(tmp_path / "bare.jsonl"), "--output", str(tmp_path / "b.jsonl")])
    assert "0 of 0 explanations removed" in capsys.readouterr().out


def test_wrong_files_are_refused_and_a_changed_one_leaves_no_output(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", planted())
    with pytest.raises(SettingsError, match=r"expected a file like the input's, rows\.jsonl"):
        thinned(path, tmp_path / "out.csv")
    with pytest.raises(SettingsError, match="the rows themselves"):
        thinned(path, path)
    with pytest.raises(DataError, match="does not exist"):
        thinned(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    survey = thin._survey

    def changes(source, near):
        found = survey(source, near)
        write_rows(Path(path), [{"text": "a", "label": "benign", "explanation": "an altogether new one"}])
        return found

    monkeypatch.setattr(thin, "_survey", changes)
    with pytest.raises(DataError, match="changed while it was read"):
        thinned(path, tmp_path / "out.jsonl")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl"]


KILLED = """
import os, signal, sys
from clsgen_dist.curation import row_edits
from tests.curation.test_thin import thinned
each = row_edits.raw_rows
def dies(*arguments):
    for number, row in enumerate(each(*arguments)):
        if number == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row
row_edits.raw_rows = dies
thinned(sys.argv[1], sys.argv[2])
"""


def test_a_kill_leaves_the_earlier_output_and_the_next_run_writes_all(tmp_path):
    path, output = write_rows(tmp_path / "rows.jsonl", planted()), tmp_path / "out.jsonl"
    output.write_text("earlier")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", KILLED, path, str(output)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL and output.read_text() == "earlier"
    thinned(path, output)
    assert len(output.read_text().splitlines()) == 40
