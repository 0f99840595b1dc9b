"""Cells that were not read literally (:class:`clsgen_dist.data.reading.cells.Notice`), by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clsgen_dist.data.checks.finding import Finding, row_ref
from clsgen_dist.data.checks.row_statistics import Split
from clsgen_dist.data.reading.cells import Notice
from clsgen_dist.io.text import counts_phrase, row_count_phrase

_MESSAGES = {
    Notice.MISSING_LABEL: (
        "a word for a missing value as label: {}; it is read as no label",
        "leave these cells empty; if it is a class, list it in data.labels",
    ),
    Notice.MISSING_EXPLANATION: (
        "a word for a missing value as explanation: {}; it is read as no explanation",
        "leave these cells empty",
    ),
    Notice.LIST_TEXT: (
        "the text of a list as explanation, like {}; its items are read as explanations",
        "check that they are what you mean, or write the column as JSON",
    ),
    Notice.RESPELT_LABEL: (
        "a label written as a float or boolean: {}; it is read as the class that it means, like '0' for 0.0",
        "write 0 or true, so that the class has the same name in every file and program",
    ),
    Notice.HIDDEN_CHARACTERS: (
        "a label with invisible characters: {}; it is read without them",
        "delete zero-width, non-breaking and direction marks, and compose accents (NFC)",
    ),
    Notice.BRACKETED: (
        "an explanation in brackets, like {}, which may be a list without quotes; it is kept as one text",
        "if it is a list, write it as JSON",
    ),
    Notice.PLACEHOLDER_TEXT: (
        "a word for a missing value as text: {}; it is kept",
        "delete these rows, if their text is missing",
    ),
    Notice.SCALED_PROBABILITIES: (
        "label probabilities that do not sum to 1, like {}; they are scaled",
        "check that they are shares of all classes; votes are whole numbers",
    ),
    Notice.TIED_EXPLANATION: (
        "an explanation that is both accepted and rejected, like {}; it counts as accepted",
        "delete one of the two, or the row's verdict",
    ),
    Notice.UNREAD_PROVENANCE: (
        "a cell that does not say where the explanations came from, like {}; the row is used without it",
        "write one short text, or a list with one for each explanation; if the column means something else, name "
        "another with columns.provenance",
    ),
    Notice.UNFOUND_EVIDENCE: (
        "evidence that is not in the text, like {}; the row is used without it",
        "quote the text literally, or give the characters [start, end] of the text as it is in the file",
    ),
}


def cells(split: Split, names: Sequence[str]) -> Iterator[Finding]:
    """Cells that are read as something else than they look, by kind of notice."""
    for notice, noticed_cells in split.notices.items():
        what, remedy = _MESSAGES[notice]
        rows = sorted({row for row, _ in noticed_cells})
        first, counts = dict(reversed(noticed_cells)), dict(Counter(cell for _, cell in noticed_cells).most_common())
        yield Finding(
            notice.value,
            "warning",
            (split.source.name,),
            f"{row_count_phrase(len(rows), 'has', 'have')} " + what.format(counts_phrase(counts)),
            remedy,
            len(rows),
            len(split),
            [row_ref(split, row, names, repr(first[row])) for row in rows],
        )
