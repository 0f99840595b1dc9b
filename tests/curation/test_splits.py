"""Files divided into splits: nothing leaks, nothing is lost, bytes stay."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.cli import main
from clsgen_dist.curation.assignment import assign_by_time, assign_stratified, fractions_of
from clsgen_dist.curation.split_report import to_text
from clsgen_dist.curation.splits import SplitSettings, split_file
from clsgen_dist.errors import DataError, SettingsError

FRACTIONS = {"train": 0.6, "dev": 0.2, "test": 0.2}
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
]


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=20))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """150 rows: 2 of 3 are "a"; every tenth has a near copy and a copy in other letters."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for i in range(150):
        rows.append({"id": f"r{i}", "text": sentence(draw), "label": "aab"[i % 3], "patient": f"p{i % 23}", "day": i})
    for i in range(0, 150, 10):
        rows.append({**rows[i], "id": f"near{i}", "text": rows[i]["text"] + " pi", "patient": f"x{i}", "day": 149 - i})
        rows.append({**rows[i], "id": f"copy{i}", "text": rows[i]["text"].upper(), "patient": f"y{i}"})
    draw.shuffle(rows)
    return rows


@pytest.fixture
def written(rows: list[dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()] for name in FRACTIONS}


def split_of(folder: Path, key: Callable[[dict[str, Any]], Any]) -> dict[Any, set[str]]:
    """The splits in which each key occurs."""
    found: dict[Any, set[str]] = {}
    for name, split in read(folder).items():
        for row in split:
            found.setdefault(key(row), set()).add(name)
    return found


def test_copies_and_near_copies_stay_together_and_classes_are_balanced(written: Path, tmp_path: Path) -> None:
    report = split_file(str(written), tmp_path / "out", SplitSettings(fractions=FRACTIONS))
    family = split_of(tmp_path / "out", lambda row: row["id"].removeprefix("near").removeprefix("copy").lstrip("r"))
    assert len(family) == 150 and all(len(splits) == 1 for splits in family.values())
    assert report.components == 150 and report.copies == 15 and report.near_copies == 30
    assert report.sizes == pytest.approx({"train": 108, "dev": 36, "test": 36}, abs=2)
    share_of_b = Counter(row["label"] for split in read(tmp_path / "out").values() for row in split)["b"] / 180
    for name, size in report.sizes.items():
        assert report.classes[name]["b"] / size == pytest.approx(share_of_b, abs=0.03)


def test_lines_are_copied_byte_for_byte_in_order(written: Path, tmp_path: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    odd = [b'{"id": 1.0,   "text": "\\u00e4 odd line", "label": null, "x": [1, {"y": 2}]}\r\n', b"\n", b"   \n"]
    last = '{"text": "ünended", "label": "a"}'.encode()
    written.write_bytes(b"\xef\xbb\xbf" + b"".join([*lines[:50], *odd, *lines[50:], last]))
    split_file(str(written), tmp_path / "out", SplitSettings(fractions=FRACTIONS))
    source = [line for line in written.read_bytes().split(b"\n") if line.strip()]
    for name in FRACTIONS:
        own = [line for line in (tmp_path / "out" / f"{name}.jsonl").read_bytes().split(b"\n") if line]
        places = [source.index(line) for line in own]
        assert places == sorted(places)
        source = [line for line in source if line not in own]
    assert source == []


def test_groups_stay_whole_even_where_copies_join_them(written: Path, tmp_path: Path) -> None:
    settings = SplitSettings(fractions=FRACTIONS, by_group="patient", near=None)
    report = split_file(str(written), tmp_path / "out", settings)
    assert all(len(splits) == 1 for splits in split_of(tmp_path / "out", lambda row: row["patient"]).values())
    assert all(len(splits) == 1 for splits in split_of(tmp_path / "out", lambda row: row["text"].lower()).values())
    assert report.groups == 23 + 30 and report.components == 23 + 15  # the near copies are groups of their own


def test_the_latest_rows_are_the_test_rows(written: Path, tmp_path: Path) -> None:
    split_file(str(written), tmp_path / "out", SplitSettings(fractions=FRACTIONS, by_time="day", near=None))
    days = {name: [row["day"] for row in split] for name, split in read(tmp_path / "out").items()}
    assert max(days["train"]) <= min(days["dev"]) <= max(days["dev"]) <= min(days["test"])


def test_an_old_copy_of_a_late_row_is_never_trained_on(written: Path, tmp_path: Path) -> None:
    report = split_file(str(written), tmp_path / "out", SplitSettings(fractions=FRACTIONS, by_time="day"))
    family = split_of(tmp_path / "out", lambda row: row["id"].removeprefix("near").removeprefix("copy").lstrip("r"))
    assert all(len(splits) == 1 for splits in family.values())
    latest: dict[str, list[int]] = {name: [] for name in FRACTIONS}
    days: dict[str, list[int]] = {}
    for row in map(json.loads, written.open()):
        days.setdefault(row["id"].removeprefix("near").removeprefix("copy").lstrip("r"), []).append(row["day"])
    for key, [name] in family.items():
        latest[name].append(max(days[key]))
    assert max(latest["train"]) <= min(latest["dev"]) <= max(latest["dev"]) <= min(latest["test"])
    assert report.times["train"][1] == max(latest["train"])


def test_dates_are_times_and_a_missing_one_is_named(tmp_path: Path) -> None:
    days = ["2026-03-01", "2025-03-01T00:00:00+02:00", "2026-02-01 12:00", "1700000000", "2026-04-01", "2024-02-29"]
    path = tmp_path / "rows.csv"
    path.write_text("text,label,when\n" + "".join(f"{WORDS[i] * 5},a,{day}\n" for i, day in enumerate(days)))
    two = SplitSettings(fractions={"train": 0.5, "test": 0.5}, by_time="when", near=None)
    split_file(str(path), tmp_path / "out", two)
    assert [line.split(",")[2] for line in (tmp_path / "out/test.csv").read_text().split()[1:2]] == ["2026-03-01"]
    assert sorted(days.index(when) for when in ("2026-03-01", "2026-02-01 12:00", "2026-04-01")) == [0, 2, 4]
    assert (tmp_path / "out/test.csv").read_text().count("2026-") == 3
    path.write_text(path.read_text() + "one more,a,soon\n")
    with pytest.raises(DataError, match=r"rows.csv:8: when is 'soon', expected a number or a date"):
        split_file(str(path), tmp_path / "out2", two)


def test_the_order_of_rows_does_not_matter_and_the_seed_does(written: Path, tmp_path: Path) -> None:
    divided = []
    lines = written.read_text().splitlines(keepends=True)
    for number, (order, seed) in enumerate([(lines, 0), (lines[::-1], 0), (lines, 1)]):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(order))
        split_file(str(path), tmp_path / f"out{number}", SplitSettings(fractions=FRACTIONS, seed=seed))
        divided.append(split_of(tmp_path / f"out{number}", lambda row: row["id"]))
    assert divided[0] == divided[1] != divided[2]


def test_csv_records_of_several_lines_keep_their_bytes(tmp_path: Path) -> None:
    head = b'\xef\xbb\xbfsep=;\r\n"text";label\r\n'
    records = [
        f'"cell {word} {word[::-1]}\r\nwith ""quotes""; ü\rand more";{"ab"[i % 2]}\r\n'.encode()
        for i, word in enumerate(WORDS)
    ]
    path = tmp_path / "rows.csv"
    path.write_bytes(head + b"".join(records) + b"only one cell\r\n\r\n")
    settings = SplitSettings(fractions=FRACTIONS, near=None, max_bad_fraction=0.2)
    report = split_file(str(path), tmp_path / "out", settings)
    found = {name: (tmp_path / f"out/{name}.csv").read_bytes() for name in FRACTIONS}
    assert all(data.startswith(head) for data in found.values())
    kept = b"".join(data.removeprefix(head) for data in found.values())
    assert len(kept) == sum(map(len, records)) and all(record in kept for record in records)
    assert report.rejected == 1
    [bad] = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").open()]
    assert bad["code"] == "wrong-cell-count"


def test_parquet_keeps_types_and_class_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value, load_dataset

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "dose": Value("float32")})
    draw = random.Random(1)
    data = Dataset.from_dict(
        {"text": [sentence(draw) for _ in range(40)], "label": [i % 2 for i in range(40)], "dose": [0.1] * 40},
        features=features,
    )
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    for source in ("rows.parquet", "saved"):
        out = tmp_path / f"out-{source}"
        report = split_file(str(tmp_path / source), out, SplitSettings(fractions=FRACTIONS))
        assert report.classes["train"] == {"no": 12, "yes": 12} and report.sizes["test"] == 8
        texts = []
        for name in FRACTIONS:
            split = load_dataset(
                "parquet", data_files=str(out / f"{name}.parquet"), split="train", cache_dir=str(tmp_path / "cache")
            )
            assert split.features == features and len(split) == report.sizes[name]
            texts += split["text"]
        assert sorted(texts) == sorted(data["text"])


def test_gzipped_rows_give_the_same_bytes_each_time(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl.gz"
    path.write_bytes(gzip.compress(written.read_bytes()))
    for out in ("one", "two"):
        split_file(str(path), tmp_path / out, SplitSettings(fractions=FRACTIONS))
    data = {out: [(tmp_path / out / f"{name}.jsonl.gz").read_bytes() for name in FRACTIONS] for out in ("one", "two")}
    assert data["one"] == data["two"]
    assert sum(gzip.decompress(split).count(b"\n") for split in data["one"]) == 180


def test_rows_of_several_classes_and_without_label_are_divided_alike(tmp_path: Path) -> None:
    draw, labels = random.Random(2), [["x"], ["x", "y"], [], None, ["z"]]
    path = tmp_path / "rows.jsonl"
    rows = [{"text": sentence(draw), "label": labels[i % 5], "explanation": "so"} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = split_file(str(path), tmp_path / "out", SplitSettings(fractions=FRACTIONS))
    assert report.sizes == {"train": 60, "dev": 20, "test": 20}
    assert report.classes["dev"] == pytest.approx({"x": 8, "y": 4, "z": 4, "(none)": 4, "(no label)": 4}, abs=1)


def test_nothing_is_overwritten_and_nothing_half_done_remains(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "other.txt").write_text("mine")
    with pytest.raises(SettingsError, match="exists already and is not overwritten"):
        split_file(str(written), out, SplitSettings(fractions=FRACTIONS))
    assert [file.name for file in out.iterdir()] == ["other.txt"]
    with pytest.raises(DataError, match="dev would have no row: 180 rows are 1 component that must stay together"):
        split_file(str(one_patient(written)), tmp_path / "new", SplitSettings(fractions=FRACTIONS, by_group="patient"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.jsonl", "one.jsonl", "out"]


def one_patient(path: Path) -> Path:
    rows = [{**json.loads(line), "patient": "p"} for line in path.open()]
    one = path.with_name("one.jsonl")
    one.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return one


def test_a_source_that_changes_meanwhile_is_refused(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clsgen_dist.curation import splits

    assign = splits._assign

    def change(facts: Any, settings: Any) -> Any:
        written.write_text("".join(sorted(written.read_text().splitlines(keepends=True))))
        return assign(facts, settings)

    monkeypatch.setattr(splits, "_assign", change)
    with pytest.raises(DataError, match="is not the row that was put there"):
        split_file(str(written), tmp_path / "out", SplitSettings(fractions=FRACTIONS))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_sizes_and_balance(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["data", "split", str(written), "--output", str(out), "--fractions", "test=0.2,train=0.8"]
    main(words)
    printed = capsys.readouterr().out
    assert "train  144   80.0%" in printed and "checked: no text, near copy or group is in two splits" in printed
    described = json.loads((out / "split.json").read_text())
    assert described["sizes"] == {"train": 144, "test": 36} and described["settings"]["seed"] == 0
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    with pytest.raises(SystemExit):
        main([*words[:-3], str(tmp_path / "new"), "--by_group", "patiant"])
    assert "no row of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["train=0.8", "train=0.8,test=0.3", "train=0.8,tset=0.2", "train=0.8,test=x", "train=1,test=0", "a,b", ""]
)
def test_fractions_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--fractions"):
        fractions_of(text)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    shares=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_single_rows_meet_their_shares_in_each_class_and_in_all(
    counts: list[int], shares: list[int], seed: int
) -> None:
    fractions = [share / sum(shares) for share in shares]
    label_K = np.repeat(np.arange(len(counts)), counts)
    key_K = np.random.default_rng(seed).integers(0, 2**63, len(label_K)).astype(np.uint64)
    classes_K = [{int(label): 1} for label in label_K]
    split_K = assign_stratified(classes_K, np.ones(len(label_K), dtype=np.int64), key_K, fractions)
    for split, share in enumerate(fractions):
        assert abs((split_K == split).sum() - share * len(label_K)) <= 1.5
        for label, count in enumerate(counts):
            assert abs(((split_K == split) & (label_K == label)).sum() - share * count) < 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=80), seed=st.integers(0, 2**32))
def test_no_row_of_a_split_is_later_than_the_next_splits_components(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    time_K = generator.integers(0, 20, len(sizes)).astype(float)
    key_K = generator.integers(0, 2**63, len(sizes)).astype(np.uint64)
    fractions = [0.5, 0.3, 0.2]
    split_K = assign_by_time(time_K, np.array(sizes), key_K, fractions)
    rows = sum(sizes)
    for split in range(2):
        before, after = time_K[split_K <= split], time_K[split_K > split]
        assert not len(before) or not len(after) or before.max() <= after.min()
        placed = sum(size for size, at in zip(sizes, split_K, strict=True) if at <= split)
        assert abs(placed - rows * sum(fractions[: split + 1])) <= max(sizes)


def test_large_groups_are_shared_out_like_small_ones() -> None:
    generator = np.random.default_rng(0)
    size_K: Any = np.r_[np.full(100, 50), np.full(500, 2)]
    positive_K: Any = generator.binomial(size_K, 0.1)
    classes_K = [{0: int(size - positive), 1: int(positive)} for size, positive in zip(size_K, positive_K, strict=True)]
    key_K = generator.integers(0, 2**63, len(size_K)).astype(np.uint64)
    split_K: Any = assign_stratified(classes_K, size_K, key_K, [0.8, 0.1, 0.1])
    for split, share in enumerate([0.8, 0.1, 0.1]):
        here = split_K == split
        assert abs((here & (size_K == 50)).sum() - 100 * share) <= 3
        assert size_K[here].sum() == pytest.approx(share * size_K.sum(), rel=0.03)
        assert positive_K[here].sum() == pytest.approx(share * positive_K.sum(), rel=0.05)


def test_a_report_names_the_largest_component(written: Path, tmp_path: Path) -> None:
    rows = [{**json.loads(line)} for line in written.open()]
    for row in rows[:60]:
        row["patient"] = "same"
    written.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SplitSettings(fractions=FRACTIONS, by_group="patient", near=None)
    report = split_file(str(written), tmp_path / "out", settings)
    assert report.largest >= 60
    assert f"warning: the largest component has {report.largest} of 180 rows" in to_text(report, "out")
