"""Explanations from templates: a row's label and the quotes of its evidence in a sentence that the user wrote.

    {label}              the row's class; several by comma
    {evidence}           the quotes that speak for it, in the order of the text, by comma
    {counter_evidence}   those that speak against it; a template with it is for rows that have some

Overlapping quotes are one. Line breaks in a quote become spaces, and the mark that ends it is left out, since the
template has its own. Of several templates a hash of the row's id picks one, so that not all explanations read alike and
a second run writes the same. Texts are put in as they are: braces in them have no meaning.

An explanation must pass what a teacher's must (:mod:`clsgen_dist.teacher.candidates`). Cost: two passes over the rows.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from clsgen_dist.data.example import Example
from clsgen_dist.data.reading.evidence_cells import Spans
from clsgen_dist.errors import SettingsError
from clsgen_dist.teacher.candidates import FurtherChecks, read_candidate
from clsgen_dist.teacher.journal import Answer
from clsgen_dist.teacher.rows_to_explain import (
    ExplainedRows,
    RowsToExplain,
    class_indices,
    is_to_explain,
)

PROVENANCE = "template"
_PLACEHOLDERS = ("label", "evidence", "counter_evidence")
_ALLOWED = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)
_END_MARKS = " .,;:\u2026"


class Template:
    """A sentence with placeholders; SettingsError if it has wrong ones, or none for the evidence."""

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise SettingsError(
                f"--template {text!r} cannot be read ({error}); allowed are {_ALLOWED}, and {{{{ and }}}} for braces"
            ) from None
        for literal, name, form, conversion in parsed:
            if name is not None and (name not in _PLACEHOLDERS or form or conversion):
                written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise SettingsError(
                    f"--template {text!r} has the placeholder {{{written}}}; allowed are {_ALLOWED}, and {{{{ and }}}} "
                    "for braces"
                )
            self._parts.append((literal, name))
        names = {name for _, name in self._parts}
        if "evidence" not in names:
            raise SettingsError(
                f"--template {text!r} has no {{evidence}}, so that it would say the same of every row; allowed are "
                f"{_ALLOWED}"
            )
        self.needs_counter_evidence = "counter_evidence" in names

    def filled(self, **values: str) -> str:
        """The sentence with a value for each placeholder."""
        return "".join(literal + (values[name] if name else "") for literal, name in self._parts)


@dataclass
class TemplateReport(ExplainedRows):
    """What became of the rows."""

    without_evidence: int = 0
    """Rows to explain that have none in their text."""
    without_counter_evidence: int = 0
    """Rows to explain that no template is for, as all want what speaks against the label."""
    without_class: int = 0
    """Rows to explain to which no class applies."""


def explain_by_templates(
    rows: RowsToExplain, templates: Sequence[str], output: Path, checks: FurtherChecks
) -> TemplateReport:
    """Write the rows with explanations where a template could be filled, as ``clsgen data explain`` does.

    Args:
        rows: the rows.
        templates: sentences with placeholders.
        output: JSON lines: all rows in order.
        checks: what else may be wrong with an explanation.

    Raises:
        SettingsError: a template is wrong, or the output cannot be written.
    """
    known, report = [Template(text) for text in templates], TemplateReport()
    rows.require_output(output)

    def explain(row: Example) -> list[str] | None:
        if not is_to_explain(row):
            return None
        if not row.evidence:
            report.without_evidence += 1
            return []
        fitting = [t for t in known if row.counter_evidence or not t.needs_counter_evidence]
        report.without_counter_evidence += not fitting
        classes = row.classes
        report.without_class += bool(fitting) and not classes
        if not fitting or not classes:
            return []
        digest = blake2b(row.id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        text = fitting[int.from_bytes(digest, "little") % len(fitting)].filled(
            label=", ".join(classes),
            evidence=_quotes(row.text, row.evidence),
            counter_evidence=_quotes(row.text, row.counter_evidence),
        )
        candidate = read_candidate(
            Answer(text, "stop", 0, 0), row, class_indices(row, rows.names), rows.names, with_label=True, checks=checks
        )
        report.dropped.update(map(str, candidate.dropped))
        return [] if candidate.dropped else [candidate.text]

    rows.write(output, explain, PROVENANCE, report)
    return report


def _quotes(text: str, spans: Spans) -> str:
    """The quotes by comma, each on one line and without the mark that ends it."""
    quotes = [" ".join(text[start:end].split()) for start, end in spans]
    return ", ".join(quote.rstrip(_END_MARKS) or quote for quote in quotes)
