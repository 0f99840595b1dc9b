"""The files of splits: the source's own lines and rows, unchanged and in order.

JSONL lines and CSV records are copied byte for byte (a CSV file's header into each split); Parquet rows keep the
file's schema; saved folders and hub datasets become Parquet. All are written into a temporary folder, which takes its
name once they have been checked, so a kill leaves nothing half done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsgen_dist.curation.raw_rows import compressed, raw_lines, suffix_of
from clsgen_dist.curation.row_facts import RowFacts
from clsgen_dist.data.reading.records import Part, dataset_of
from clsgen_dist.data.reading.rejection import write_quarantine
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.files import sync_folder

MANIFEST, QUARANTINE = "split.json", "quarantine.jsonl"
_BATCH = 4096
_NOWHERE, _HEADER = -1, -2


def split_suffix(part: Part) -> str:
    """The suffix of the files: the source's own, ``.parquet`` where it is no file."""
    if part.kind not in ("jsonl", "csv"):
        return ".parquet"
    return suffix_of(Path(part.path))


def split_name(name: str, suffix: str) -> str:
    """The file of a split."""
    return name + suffix


@contextlib.contextmanager
def write_splits(
    part: Part,
    folder: Path,
    names: Sequence[str],
    facts: RowFacts,
    split_R: NDArray[np.int8],
    report: Any,
    settings: Any,
) -> Iterator[list[Path]]:
    """Write all files into a temporary folder, yield them to be checked, then give the folder its name."""
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        files = [temporary / split_name(name, split_suffix(part)) for name in names]
        write = _write_lines if part.kind in ("jsonl", "csv") else _write_tables
        write(part, files, facts, split_R)
        write_quarantine(temporary / QUARANTINE, facts.rejected)
        yield files
        described = {"settings": asdict(settings), **asdict(report)}
        (temporary / MANIFEST).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written ({error}); choose another --output") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_lines(part: Part, files: Sequence[Path], facts: RowFacts, split_R: NDArray[np.int8]) -> None:
    """Lines of text; a CSV record has those from its first to the one before the next record."""
    rows = zip(facts.lines, split_R.tolist(), strict=True)
    owners = iter(sorted([*rows, *((row.line, _NOWHERE) for row in facts.rejected)]))
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(compressed(stack.enter_context(f.open("wb")), f)) for f in files]
        next_line, next_owner = next(owners, (0, _NOWHERE))
        owner = _HEADER if part.kind == "csv" else _NOWHERE
        for number, line in enumerate(raw_lines(Path(part.path)), start=1):
            if number == next_line:
                owner = next_owner
                next_line, next_owner = next(owners, (0, _NOWHERE))
            elif part.kind == "jsonl":
                continue  # a blank line
            if owner == _HEADER:
                for output in outputs:
                    output.write(line)
            elif owner != _NOWHERE:
                outputs[owner].write(line)


def _write_tables(part: Part, files: Sequence[Path], facts: RowFacts, split_R: NDArray[np.int8]) -> None:
    """Rows of a Parquet file, a saved folder or a hub dataset, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, tables = _tables(part)
    owner = np.full(max(facts.lines, default=0) + 1, _NOWHERE, dtype=np.int8)
    owner[np.asarray(facts.lines)] = split_R
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(pq.ParquetWriter(file, schema)) for file in files]
        first = 1
        for table in tables:
            owner_B = np.full(len(table), _NOWHERE, dtype=np.int8)
            known = owner[first : first + len(table)]
            owner_B[: len(known)] = known
            for index, writer in enumerate(writers):
                if (is_here := owner_B == index).any():
                    writer.write_table(table.filter(pa.array(is_here)))
            first += len(table)


def _tables(part: Part) -> tuple[Any, Iterator[Any]]:
    """The schema of a source, and its rows in pieces."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if part.kind == "parquet":
        file = pq.ParquetFile(part.path)
        return file.schema_arrow, (pa.Table.from_batches([batch]) for batch in file.iter_batches(_BATCH))
    data = dataset_of(part).with_format("arrow")
    # The schema's metadata has the names of classes.
    schema = data.features.arrow_schema
    return schema, (data[at : at + _BATCH].cast(schema) for at in range(0, len(data), _BATCH))
