"""What `clsgen data check` keeps of the rows it reads: numbers, hashes and line numbers, never the texts.

Cost: one pass over each source; per row two runs of the tokenizer, one MinHash sketch (once per distinct text of a
split) and about 1.5 KB of memory.
"""

from __future__ import annotations

import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from clsgen_dist.data.checks.near_duplicates import Sketches, Template, normalised, text_hash
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.example import Columns, Example
from clsgen_dist.data.reading.cells import Notice
from clsgen_dist.data.reading.ingest import resolve_space, unique_rows
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.provenance_cells import Provenance, add_counts
from clsgen_dist.data.reading.records import find_source
from clsgen_dist.data.reading.rejection import RejectedRow
from clsgen_dist.data.reading.sniff import FileFault, file_fault, has_byte_order_mark, is_gzip_name, kind_of_file
from clsgen_dist.errors import DataError

logger = logging.getLogger(__name__)

_SAMPLE = 1000
"""First rows, from which the shared template is estimated."""
_MOJIBAKE = re.compile("\ufffd|Ã[\u0080-\u00bf]|â€")
"""The replacement character, and UTF-8 that was read as Latin-1 and written again."""
_MAX_RAW = 300


@dataclass(frozen=True)
class Source:
    """One FILE of the command line."""

    name: str
    """The split's name."""
    path: str
    """See :func:`clsgen_dist.data.reading.records.find_source`."""


@dataclass
class Split:
    """The rows of one source; row i of the arrays is the i-th usable row."""

    source: Source
    fault: FileFault | None = None
    """Why the file was not read."""
    has_byte_order_mark: bool = False
    ids: list[str] = field(default_factory=list)
    has_own_id: bytearray = field(default_factory=bytearray)
    """1 where the id is the user's, 0 where it is made from file and line."""
    lines: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    """Index into the label names, or -1."""
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    """Of the normalised text: equal for texts that differ only in case and white space."""
    sketches: array[int] = field(default_factory=lambda: array("q"))
    """Index of the text's sketch: the same for equal texts of the split."""
    prompt_tokens: array[int] = field(default_factory=lambda: array("q"))
    """Of the untruncated prompt, template and question included."""
    explanation_tokens: array[int] = field(default_factory=lambda: array("q"))
    """Of the longest explanation with its end token; 0 for a row without any."""
    explanations: array[int] = field(default_factory=lambda: array("i"))
    provenance: Counter[Provenance] = field(default_factory=Counter)
    """Explanations by where they came from."""
    mojibake: list[int] = field(default_factory=list)
    """Rows whose text or explanation looks wrongly decoded."""
    notices: dict[Notice, list[tuple[int, str]]] = field(default_factory=dict)
    """Rows with cells that were not read literally, and the beginning of the cell."""
    rejected: list[RejectedRow] = field(default_factory=list)
    """Rows that training would reject."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labelled(self) -> int:
        """Rows with a label."""
        return sum(label >= 0 for label in self.labels)

    @property
    def total(self) -> int:
        """Rows including the rejected ones."""
        return len(self.ids) + len(self.rejected)


@dataclass
class RowStatistics:
    """All splits, and what they share."""

    splits: list[Split]
    label_names: list[str]
    """What the labels of the splits mean. Multi-label: each set of classes that occurs, like ``a + b``."""
    class_names: list[str]
    """The recipe's, or those found, in order of appearance."""
    labels_are_listed: bool
    """Whether they are the recipe's."""
    sketches: Sketches
    sketch_split: list[int]
    """Split of each sketch."""
    sketch_row: list[int]
    """First row of its split with that text."""
    template: Template
    sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Multi-label: the classes of each label name."""

    def classes(self, label: int) -> tuple[str, ...]:
        """The classes of a label."""
        name = self.label_names[label]
        return self.sets.get(name, (name,))


def sources_of(files: Sequence[str]) -> list[Source]:
    """Names for the files: ``name=path`` as given, else the stem or the split's name, or the path if that is ambiguous.

    Raises:
        DataError: the same name or file twice.
    """
    named: list[tuple[str | None, str]] = []
    for file in files:
        name, equals, path = file.partition("=")
        given = bool(equals and name and "/" not in name and not Path(file).exists())
        named.append((name, path) if given else (None, file))
    stems = [name or _stem(path) for name, path in named]
    sources = [
        Source(stem if stems.count(stem) == 1 or name else path, path)
        for (name, path), stem in zip(named, stems, strict=True)
    ]
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{name!r} is given {names.count(name)} times; give each file once, or name it: NAME=PATH")
    return sources


def _stem(path: str) -> str:
    if ":" in path and not Path(path).exists():
        return path.rpartition(":")[2].rpartition("/")[2]
    file = Path(path)
    return Path(file.stem).stem if is_gzip_name(file) else file.stem


def measure(
    sources: Sequence[Source],
    *,
    columns: Columns,
    labels: Sequence[str] | None,
    encoder: Encoder,
    space: Space = "auto",
) -> RowStatistics:
    """Read each source once.

    Args:
        sources: the splits.
        columns: the names of their columns.
        labels: the recipe's label space; None accepts the labels that are found.
        encoder: counts tokens, template and question included.
        space: how label cells are read.

    Raises:
        DataError: a source does not exist, or has no text column.
    """
    splits = [_open(source) for source in sources]
    # All are opened before the first is read: a wrong path should fail at once, not after minutes.
    readable = sorted((s for s in splits if not s.fault), key=lambda split: split.source.name != "train")
    if readable:
        space = resolve_space(readable[0].source.path, columns, space)
    rows = [
        None if s.fault else unique_rows(s.source.path, columns=columns, labels=labels, space=space) for s in splits
    ]

    sketches: Sketches | None = None
    names = {name: index for index, name in enumerate([] if space == "multilabel" else labels or [])}
    empty = Sketches(Template.none())
    statistics = RowStatistics(splits, [], list(labels or []), labels is not None, empty, [], [], Template.none())
    for index, (split, split_rows) in enumerate(zip(splits, rows, strict=True)):
        if split_rows is None:
            continue
        logger.info("reading %s", split.source.path)
        sample = list(islice(split_rows, _SAMPLE))
        if sketches is None and any(isinstance(row, Example) for row in sample):
            statistics.template = Template.of(normalised(row.text) for row in sample if isinstance(row, Example))
            sketches = statistics.sketches = Sketches(statistics.template)
        seen: dict[int, int] = {}
        for row in chain(sample, split_rows):
            if isinstance(row, RejectedRow):
                split.rejected.append(replace(row, raw=row.raw[:_MAX_RAW]))
            else:
                _add(row, split, index, names, statistics, encoder, seen)
        del sample
    statistics.label_names = list(names)
    found = dict.fromkeys(name for label in range(len(names)) for name in statistics.classes(label))
    statistics.class_names = list(labels) if labels is not None else list(found)
    return statistics


def _add(
    row: Example,
    split: Split,
    index: int,
    names: dict[str, int],
    statistics: RowStatistics,
    encoder: Encoder,
    seen: dict[int, int],
) -> None:
    normal = normalised(row.text)
    digest = text_hash(normal)
    if digest not in seen:
        seen[digest] = len(statistics.sketches)
        statistics.sketches.add(normal)
        statistics.sketch_split.append(index)
        statistics.sketch_row.append(len(split))
    if _MOJIBAKE.search(row.text) or any(map(_MOJIBAKE.search, row.explanations)):
        split.mojibake.append(len(split))
    for notice, cell in row.notices:
        split.notices.setdefault(notice, []).append((len(split), cell))
    split.hashes.append(digest)
    split.sketches.append(seen[digest])
    split.ids.append(row.id)
    split.has_own_id.append(row.has_own_id)
    split.lines.append(row.line)
    split.labels.append(_label(row, names, statistics.sets))
    split.prompt_tokens.append(encoder.prompt_length(row.text))
    split.explanations.append(len(row.explanations))
    add_counts(split.provenance, row.provenance)
    split.explanation_tokens.append(max(map(len, encoder.explanations(row.explanations)), default=0))


def _label(row: Example, names: dict[str, int], sets: dict[str, tuple[str, ...]]) -> int:
    """Index of the row's label; a set of classes is a label of its own."""
    name = row.label
    if name is None and row.answers is not None:
        classes = tuple(sorted(c for c, answer in row.answers.items() if answer >= 0.5))
        name = " + ".join(classes) or "(none)"
        sets[name] = classes
    return -1 if name is None else names.setdefault(name, len(names))


def _open(source: Source) -> Split:
    """The split of a source, with the path of its file."""
    fault, has_mark = _inspect_bytes(source.path)
    return Split(source if fault else replace(source, path=find_source(source.path).source), fault, has_mark)


def _inspect_bytes(path: str) -> tuple[FileFault | None, bool]:
    """Why a text file cannot be read, None if it can, and whether it begins with UTF-8's byte order mark."""
    file = Path(path).expanduser()
    try:
        if kind_of_file(file) not in ("jsonl", "csv") or not file.is_file():
            return None, False
        fault = file_fault(file)
        return fault, fault is None and has_byte_order_mark(file)
    except OSError:
        return None, False  # the reader raises it again, as a DataError


def excerpts(source: str, columns: Columns, lines: set[int], length: int) -> Iterator[tuple[int, str]]:
    """The first characters of the texts on these lines; the file is read again, up to the last of them."""
    last = max(lines, default=0)
    columns = replace(columns, label="")
    for row in unique_rows(source, columns=columns, labels=None, require_target=False) if lines else ():
        line = row.line
        if line in lines and isinstance(row, Example):
            yield line, row.text if len(row.text) <= length else row.text[:length] + " …"
        if line >= last:
            return
