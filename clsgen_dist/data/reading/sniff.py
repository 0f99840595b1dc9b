"""Formats by file name; why a text file cannot be read, from its first bytes: encoding, compression, JSON arrays."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from clsgen_dist.data.reading.columns import ColumnNames

_HEAD = 4000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
}
SUFFIXES = tuple(_KINDS)


def kind_of_file(path: Path) -> str | None:
    """jsonl, csv or parquet by the suffix, in any case, text also as ``.gz``; None for other names."""
    name = path.name.lower()
    kind = _KINDS.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def is_gzip_name(path: Path) -> bool:
    """Whether the file is decompressed as it is read."""
    return path.suffix.lower() == ".gz"


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, decompressed if its name ends in ``.gz``."""
    return cast(BinaryIO, gzip.open(path)) if is_gzip_name(path) else path.open("rb")


@dataclass(frozen=True)
class FileFault:
    """Why a file cannot be read."""

    kind: Literal["empty", "encoding", "format"]
    what: str
    """The end of a sentence that begins with the file's name."""
    remedy: str


def file_fault(path: Path) -> FileFault | None:
    """Why a .jsonl or .csv file cannot be read, None if it can; OSError if it cannot be opened."""
    try:
        with open_bytes(path) as file:
            head = file.read(_HEAD)
    except (gzip.BadGzipFile, EOFError) as error:
        return FileFault("format", f"is not a complete gzip file ({error})", "write it again, or name it without .gz")
    if not head.removeprefix(BYTE_ORDER_MARK).strip():
        is_all = len(head) < _HEAD or path.stat().st_size == _HEAD
        return FileFault("empty", "has no rows", "check what wrote the file, or leave it out") if is_all else None
    if head[:2] == b"\x1f\x8b":
        return FileFault(
            "format", "is compressed with gzip", f"name it {path.name}.gz, or decompress it: gunzip -c {path} > NEW"
        )
    if head[:4] == b"PK\x03\x04":
        return FileFault(
            "format", "is a zip archive or an Excel workbook", "save the sheet as CSV UTF-8, or extract the archive"
        )
    if not head.strip(b"\0"):
        return FileFault(
            "format", "begins with NUL bytes, as a file does after a crash while it was written", "write it again"
        )
    if encoding := _encoding(head):
        return FileFault(
            "encoding", f"is {encoding}, expected UTF-8", f"convert it: iconv -f {encoding} -t UTF-8 {path} > NEW"
        )
    if kind_of_file(path) == "jsonl" and (command := _one_value(head)):
        return FileFault(
            "format",
            "is a single JSON value, expected one object per line",
            f"convert it: jq -c '{command}' {f'<(zcat {path})' if is_gzip_name(path) else path} > NEW.jsonl",
        )
    return None


def has_byte_order_mark(path: Path) -> bool:
    """Whether the file begins with UTF-8's byte order mark, which is skipped."""
    with open_bytes(path) as file:
        return file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK


def _encoding(head: bytes) -> str | None:
    if head[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "UTF-32"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    if head.count(0) > len(head) // 4:
        return "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"
    return None


def _one_value(head: bytes) -> str | None:
    """The jq program that turns an array, or an object over several lines, into lines; None for a file of lines."""
    first, *others = (line.strip() for line in head.removeprefix(BYTE_ORDER_MARK).strip().splitlines())
    if first == b"{" and others and others[0].startswith(b'"'):
        return "."
    if not first.startswith(b"["):
        return None
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):  # truncated at the end of the line, or of the bytes read
        return ".[]" if first[1:].lstrip()[:1] in (b"", b"{") else None
    return ".[]" if value and all(isinstance(item, dict) for item in value) else None


_DELIMITERS = ",;\t|"


def csv_delimiter(header: str, names: ColumnNames) -> str:
    """The delimiter by which a CSV header has the text column, else the most frequent one."""
    for delimiter in _DELIMITERS:
        if names.text in [names.of(cell.strip().strip('"')) for cell in header.split(delimiter)]:
            return delimiter
    return max(_DELIMITERS, key=header.count)
