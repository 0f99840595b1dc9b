"""``clsgen data gate``: a file of rows divided into those to keep, those for a person to review, and those rejected.

    FOLDER/kept.*, review.*, rejected.*   the rows, in files of the input's kind, byte for byte (Parquet: row by row)
    FOLDER/reasons.jsonl                  for each row its line, id, destination, and issues with severity and detail
    FOLDER/summary.json                   counts by destination and code, the settings, the input's SHA-256

A row goes to the gravest of its issues' destinations; one that training could not read is rejected. The folder gets its
name once all of it is on disk and, for text, adding the files up again has given the input's SHA-256: after a kill
there is no folder. The same input and settings give the same bytes.

Cost: three passes on all cores and a fourth to verify; 1.1 ms of one core for a row of 70 words, measured by
``benchmarks/data_scale.py``. What is kept has a fixed size, but for ids that repeat.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from clsgen_dist.curation.explanation_checks import severity
from clsgen_dist.curation.gate_files import (
    Destination,
    Placed,
    gate_file,
    restored_batches,
    restored_lines,
    schema_of,
    split_lines,
    split_parquet,
)
from clsgen_dist.curation.raw_rows import compressed, raw_lines, suffix_of
from clsgen_dist.curation.row_checks import CheckedRow, checked_rows, survey_rows
from clsgen_dist.curation.row_source import RowSource, row_source
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.provenance_cells import Provenance, counted_as
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.data.reading.rejection import RejectedRow
from clsgen_dist.data.reading.sniff import kind_of_file
from clsgen_dist.errors import DataError, DiskFullError, SettingsError
from clsgen_dist.io.files import atomic_file, sync_folder, writing

logger = logging.getLogger(__name__)

SUMMARY, REASONS = "summary.json", "reasons.jsonl"
_REJECTED = "reject"
"""Severity of rows that cannot be read."""
_BLOCK = 2**20


@dataclass
class GateSummary:
    """What a gate did."""

    source: str
    """Name of the input file."""
    sha256: str
    """Of its bytes; of a gzip file's decompressed ones."""
    suffix: str
    """Of the files of rows."""
    settings: dict[str, Any]
    """Columns, label space, thresholds and severities."""
    lines_above: int = 0
    """Lines before the first row, which every file has."""
    rows: Counter[str] = field(default_factory=Counter)
    """By destination."""
    issues: Counter[str] = field(default_factory=Counter)
    """Rows by code of their issues."""
    rejections: Counter[str] = field(default_factory=Counter)
    """Rows that cannot be read, by code."""
    provenance: dict[Provenance, Counter[str]] = field(default_factory=dict)
    """Rows by where their explanations came from, each by destination; a row with several counts for each."""

    def to_json(self) -> str:
        """The summary file."""
        fields = {
            "schema": 1,
            "source": self.source,
            "sha256": self.sha256,
            "suffix": self.suffix,
            "lines_above": self.lines_above,
            "rows": {to: self.rows[to] for to in Destination},
            "issues": dict(sorted(self.issues.items())),
            "rejections": dict(sorted(self.rejections.items())),
            "provenance": [
                {"provenance": name, **{to: rows[to] for to in Destination}}
                for name, rows in sorted(self.provenance.items(), key=lambda item: (item[0] is None, str(item[0])))
            ],
            "settings": self.settings,
        }
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> GateSummary:
        """The summary in a gate's folder; DataError if it holds none."""
        try:
            fields = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            rows, issues, rejections = (Counter[str](fields[name]) for name in ("rows", "issues", "rejections"))
            sources = {entry.pop("provenance"): Counter[str](entry) for entry in fields.get("provenance", [])}
            facts = {name: fields[name] for name in ("source", "sha256", "suffix", "settings", "lines_above")}
            return cls(**facts, rows=rows, issues=issues, rejections=rejections, provenance=sources)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is not a folder of `clsgen data gate` ({error}); name one") from error


def gate(
    path: str,
    output: Path,
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    space: Space,
    settings: CurationSettings,
) -> GateSummary:
    """Divide the rows of a file; returns what was done, at once if the folder has it already.

    Args:
        path: a .jsonl, .csv or .parquet file.
        output: the folder, which must not hold anything else.
        columns: the names of the file's columns.
        labels: the classes; None accepts those found.
        space: how label cells are read.
        settings: thresholds and severities.

    Raises:
        DataError: the file cannot be read as rows, or changed meanwhile.
        SettingsError: the folder holds something else, or cannot be written.
    """
    part = find_source(path)
    if part.kind not in ("jsonl", "csv", "parquet"):
        raise DataError(f"{path} is no file, expected a .jsonl, .csv or .parquet file; save the rows as one")
    file = Path(part.path)
    used = {
        "columns": dataclasses.asdict(columns),
        "labels": None if labels is None else list(labels),
        "label_space": space,
        "curation": dataclasses.asdict(settings),
    }
    summary = GateSummary(file.name, _sha256(file), suffix_of(file), json.loads(json.dumps(used)))
    if (there := _earlier(output, summary)) is not None:
        logger.info("%s has these results already", output)
        return there
    with _new_folder(output) as folder:
        _write(file, folder, row_source(path, columns, labels, space), summary, settings)
    return summary


def restore(folder: Path, output: Path) -> None:
    """Write the file that a gate was given, from its folder: text byte for byte, Parquet row by row.

    Raises:
        DataError: the folder is none of a gate, or its files were changed.
        SettingsError: the output cannot be written.
    """
    summary = GateSummary.read(folder)
    with writing(output):
        if summary.suffix.lower() == ".parquet":
            _restore_parquet(folder, output, summary)
            return
        digest = hashlib.sha256()
        with atomic_file(output, "wb", durable=True) as file:
            with compressed(file, output) as target:
                for line in restored_lines(folder, summary.suffix, summary.lines_above, _placed(folder)):
                    digest.update(line)
                    target.write(line)
            if digest.hexdigest() != summary.sha256:
                raise DataError(
                    f"{folder} does not add up to {summary.source}: its files were changed; run the gate again"
                )


def gated_issues(file: Path) -> Iterator[list[dict[str, str]]] | None:
    """What a gate found in each row of a file that it wrote: code, severity and detail; None for any other file."""
    folder = file.parent
    if not (folder / SUMMARY).is_file() or not (folder / REASONS).is_file():
        return None
    suffix = GateSummary.read(folder).suffix
    here = next((to for to in Destination if gate_file(folder, to, suffix) == file), None)
    return None if here is None else (issues for _, to, issues in _reasons(folder) if to == here)


def _restore_parquet(folder: Path, output: Path, summary: GateSummary) -> None:
    import pyarrow.parquet

    schema = schema_of(gate_file(folder, Destination.KEPT, summary.suffix))
    with atomic_file(output, "wb", durable=True) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for batch in restored_batches(folder, summary.suffix, _placed(folder)):
            writer.write_batch(batch)


def _write(file: Path, folder: Path, source: RowSource, summary: GateSummary, settings: CurationSettings) -> None:
    """Everything in the folder."""
    survey = survey_rows(source, settings)
    with (folder / REASONS).open("w", encoding="ascii") as reasons:
        rows = _place_rows(checked_rows(survey, settings), reasons, summary, settings)
        if kind_of_file(file) == "parquet":
            split_parquet(file, folder, rows)
        else:
            summary.lines_above = split_lines(file, folder, rows)
    if kind_of_file(file) != "parquet":
        digest = hashlib.sha256()
        for line in restored_lines(folder, summary.suffix, summary.lines_above, _placed(folder)):
            digest.update(line)
        if digest.hexdigest() != summary.sha256:
            raise DataError(f"{file} changed while it was read; run the gate again once it is complete")
    (folder / SUMMARY).write_text(summary.to_json(), encoding="utf-8")


def _place_rows(
    rows: Iterator[CheckedRow],
    reasons: IO[str],
    summary: GateSummary,
    settings: CurationSettings,
) -> Iterator[Placed]:
    """Where each row goes; its reasons are written and counted on the way."""
    for row, found in rows:
        if isinstance(row, RejectedRow):
            destination, row_id = Destination.REJECTED, None
            issues = [{"code": row.code, "severity": _REJECTED, "detail": row.reason}]
            summary.rejections[row.code] += 1
        else:
            row_id = row.id
            issues = [{"code": i.code, "severity": severity(i.code, settings), "detail": i.detail} for i in found]
            destination = _destination({issue["severity"] for issue in issues})
            summary.issues.update({str(issue.code) for issue in found})
            for name in dict.fromkeys(row.provenance):
                rows_from = summary.provenance.setdefault(counted_as(name, summary.provenance), Counter())
                rows_from[destination] += 1
        summary.rows[destination] += 1
        reasons.write(json.dumps({"line": row.line, "id": row_id, "where": destination, "issues": issues}) + "\n")
        yield row.line, destination


def _destination(severities: set[str]) -> Destination:
    if "reject" in severities:
        return Destination.REJECTED
    return Destination.REVIEW if "review" in severities else Destination.KEPT


def _placed(folder: Path) -> Iterator[Placed]:
    """Lines and destinations of the rows, as the reasons have them."""
    return ((line, to) for line, to, _ in _reasons(folder))


def _reasons(folder: Path) -> Iterator[tuple[int, Destination, list[dict[str, str]]]]:
    """Line, destination and issues of each row."""
    with (folder / REASONS).open(encoding="ascii") as file:
        for line in file:
            try:
                fields = json.loads(line)
                found = int(fields["line"]), Destination(fields["where"]), list(fields["issues"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{folder / REASONS} is damaged ({error}); run the gate again") from error
            yield found


def _sha256(file: Path) -> str:
    """Of a text file's lines, decompressed; of a Parquet file's bytes."""
    digest = hashlib.sha256()
    if kind_of_file(file) == "parquet":
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    else:
        for line in raw_lines(file):
            digest.update(line)
    return digest.hexdigest()


def _earlier(output: Path, summary: GateSummary) -> GateSummary | None:
    """The summary of an earlier gate with the same input and settings, None without a folder; else SettingsError."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    what = "other files"
    if (output / SUMMARY).is_file():
        there = GateSummary.read(output)
        if all(getattr(there, name) == getattr(summary, name) for name in ("source", "sha256", "settings")):
            return there
        what = f"the results of {there.source}" + (", with other settings" if there.sha256 == summary.sha256 else "")
    raise SettingsError(f"{output} holds {what}; name another folder with --output, or delete it")


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name once the block has ended without an error and all of it is on disk."""
    output = output.resolve()
    for left in output.parent.glob(f".{glob.escape(output.name)}.*.gate"):
        if not _is_running(left.name.split(".")[-2]):
            shutil.rmtree(left, ignore_errors=True)
    folder = output.with_name(f".{output.name}.{os.getpid()}.gate")
    shutil.rmtree(folder, ignore_errors=True)
    with writing(folder):
        folder.mkdir()
    try:
        yield folder
        for file in folder.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        sync_folder(folder)
        folder.replace(output)
        sync_folder(output.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"{output} cannot be written ({error.strerror}): make room for the size of the input and 100 bytes a row"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
