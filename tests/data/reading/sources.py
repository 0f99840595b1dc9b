"""Small sources of rows in every format, and how the tests read them."""

from __future__ import annotations

import csv
import gzip
import json

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import read_examples

GOOD = [
    {"id": "a", "text": "first text", "label": "yes", "explanations": ["one reason", "another"]},
    {"id": "b", "text": 'second, with "quotes"\nand a new line', "label": "no", "explanations": []},
    {"id": "c", "text": "third", "label": None, "explanations": ["only explained"]},
]


def read_rows(source, **options):
    defaults = {"columns": Columns(), "labels": None, "max_bad_fraction": 1.0, "quarantine": None}
    return read_examples(str(source), **{**defaults, **options})


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


KINDS = ["jsonl", "JSONL.gz", "csv", "tsv", "CSV.GZ", "Parquet", "saved", "saved splits", "saved as numpy"]


def write_as(kind, tmp_path, rows=GOOD):
    """The rows in a format; names are upper case here and there, as on other systems."""
    from datasets import Dataset, DatasetDict

    path = tmp_path / f"rows.{kind}"
    opened = gzip.open if kind.lower().endswith(".gz") else open
    if kind.lower().startswith("jsonl"):
        with opened(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return path
    if kind.lower().startswith(("csv", "tsv")):
        with opened(path, "wt", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            as_json = ({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
            writer.writerows(as_json)
        return path
    table = Dataset.from_list(rows)
    if kind == "Parquet":
        table.to_parquet(path)
    elif kind == "saved splits":
        DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")
        return f"{tmp_path / 'splits'}:train"
    else:
        (table.with_format("numpy") if kind == "saved as numpy" else table).save_to_disk(path)
    return path
