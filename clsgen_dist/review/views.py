"""The pages of a review, made on the server: what a template is given, with every text escaped and visible.

A page never holds another reviewer's decision on a row of which the reader may still have to make a blind reading. Who
settles a dispute sees both readings, and may start from one.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from clsgen_dist.review.agreement import agreements
from clsgen_dist.review.classes import by_class, claimed
from clsgen_dist.review.decision import Decision, ReviewRow, Spans, Verdict
from clsgen_dist.review.overview import (
    Progress,
    differing_rows,
    issue_codes,
    latest,
    listed,
    progress,
    reviewers,
)
from clsgen_dist.review.store import Filter, State, Store
from clsgen_dist.review.visible import named, shown

TEMPLATES = Path(__file__).with_name("page")
PAGE_SIZE = 50
MOST_BUTTONS = 12
"""Labels that are offered as buttons; more as a list."""
VERDICT_WORDS = {
    Verdict.ACCEPT: "accepted",
    Verdict.MEND: "mended",
    Verdict.RELABEL: "relabelled",
    Verdict.REJECT: "rejected",
}


class Views:
    """Makes the pages of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "shown": shown,
            "words": VERDICT_WORDS.get,
            "classes": class_words,
            "number": _number,
        }

    # --- a row -----------------------------------------------------------------------------------------------------

    def next_row(self, reviewer: str, browser: str, query: Mapping[str, str]) -> str:
        """The queue's next row, or that nothing is left."""
        chosen = _filter(query)
        row = self._store.claim(reviewer, chosen, browser)
        common = self._common(reviewer, "queue") | self._filters(query)
        if row is None:
            return self._render("done.html.jinja", **common, is_filtered=chosen != Filter())
        return self._row_page(row, reviewer, common, may_decide=True)

    def one_row(self, reviewer: str, browser: str, number: int, query: Mapping[str, str]) -> str:
        """A row that was chosen, with the reviewer's own decision on it, or the one of the reader ``query["from"]``."""
        row = self._store.row(number)
        may_decide = self._store.claim_row(reviewer, number, browser)
        common = self._common(reviewer, "rows") | self._filters({})
        return self._row_page(row, reviewer, common, may_decide=may_decide, start_from=query.get("from"))

    def _row_page(
        self, row: ReviewRow, reviewer: str, common: dict[str, Any], *, may_decide: bool, start_from: str | None = None
    ) -> str:
        made = self._store.readings(row.number)
        own = next((one for one in made if one.reviewer == reviewer), None)
        is_settling = own.settles if own else row.is_disputed
        readings = [one for one in made if not one.settles] if is_settling else []
        start = next((one for one in readings if one.reviewer == start_from), own)
        held = start or row
        labels = self._store.labels()
        return self._render(
            "row.html.jinja",
            **common,
            row=row,
            own=own,
            readings=readings,
            is_complete=start is not None,
            may_decide=may_decide,
            labels=labels,
            as_buttons=len(labels) <= MOST_BUTTONS,
            held=held,
            classes=class_choices(row, held, labels) if row.is_multilabel else [],
            explanations=[(text, named(text)) for text in (held.explanations or ("",))],
            pieces=pieces(row.text, held.evidence, held.counter_evidence),
            spans={"evidence": held.evidence, "counter_evidence": held.counter_evidence},
            hidden=named(row.text),
            note=self._store.note(reviewer, row.number),
            key=secrets.token_hex(12),
        )

    # --- other pages -----------------------------------------------------------------------------------------------

    def rows(self, reviewer: str, query: Mapping[str, str]) -> str:
        """The list of rows, filtered."""
        page = int(query["page"]) if query.get("page", "").isdecimal() and len(query["page"]) < 9 else 1
        found, count = listed(
            self._store,
            reviewer,
            _filter(query),
            decided_by=query.get("decided_by") or None,
            page=max(1, page),
            size=PAGE_SIZE,
        )
        pages = max(1, -(-count // PAGE_SIZE))
        kept = {name: value for name, value in query.items() if name != "page"}
        links = {n: "/rows?" + urlencode({**kept, "page": n}) for n in (page - 1, page + 1) if 1 <= n <= pages}
        common = self._common(reviewer, "rows") | self._filters(query)
        names = reviewers(self._store)
        return self._render(
            "rows.html.jinja", **common, found=found, count=count, page=page, pages=pages, links=links, names=names
        )

    def agreement(self, reviewer: str) -> str:
        """Agreement of reviewers, and the rows on which they differ."""
        return self._render(
            "agreement.html.jinja",
            **self._common(reviewer, "agreement"),
            found=agreements(self._store),
            differing=differing_rows(self._store)[:200],
        )

    def sign_in(self) -> str:
        """Where a token is asked for."""
        return self._render("sign_in.html.jinja", **_nobody())

    def who(self) -> str:
        """Where a name is asked for."""
        return self._render("who.html.jinja", **_nobody())

    def problem(self, reviewer: str | None, message: str) -> str:
        """What went wrong."""
        common = self._common(reviewer, "") if reviewer else _nobody()
        return self._render("problem.html.jinja", **common, message=message)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _common(self, reviewer: str, place: str) -> dict[str, Any]:
        done = progress(self._store, reviewer)
        last = latest(self._store, reviewer)
        return {"reviewer": reviewer, "place": place, "done": done, "pace": _pace_words(done), "last": last}

    def _filters(self, query: Mapping[str, str]) -> dict[str, Any]:
        return {"chosen": dict(query), "all_labels": self._store.labels(), "codes": issue_codes(self._store)}

    def _render(self, name: str, **values: Any) -> str:
        return self._templates.get_template(name).render(**values)


def pieces(text: str, evidence: Spans, counter_evidence: Spans) -> Sequence[tuple[str, str]]:
    """The text made visible, cut where marks begin and end; pieces are ``for``, ``against``, ``both`` or ``""``."""
    visible, kinds = shown(text), {"for": evidence, "against": counter_evidence}
    cuts = sorted({0, len(text), *(place for spans in kinds.values() for span in spans for place in span)})
    found = []
    for start, end in itertools.pairwise(cuts):
        of = [kind for kind, spans in kinds.items() if any(begin <= start and end <= stop for begin, stop in spans)]
        found.append((visible[start:end], "both" if len(of) == 2 else "".join(of)))
    return found


def class_choices(
    row: ReviewRow, held: ReviewRow | Decision, labels: Sequence[str]
) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """For each class of a multi-label row its answers to choose from: value, words, whether it is the one held."""
    before, now = by_class(row.answers, labels), by_class(held.answers, labels)
    lines = []
    for name, value in now.items():
        choices: list[tuple[float | None, str]] = [(1.0, "yes"), (0.0, "no"), (None, "unknown")]
        for share in dict.fromkeys((before.get(name), value)):
            if share is not None and share not in (0, 1):
                choices.append((share, f"{_number(share * 100)} %"))
        lines.append((name, [("" if one is None else repr(one), words, one == value) for one, words in choices]))
    return lines


def class_words(held: ReviewRow | Decision) -> str:
    """The classes that a row or decision has, in words."""
    names = claimed(held.label, held.answers)
    return ", ".join(names) or ("none of the classes" if held.answers else "no label")


def _filter(query: Mapping[str, str]) -> Filter:
    state = query.get("state")
    return Filter(
        label=query.get("label") or None,
        issue=query.get("issue") or None,
        state=State(state) if state in list(State) else None,
    )


def _nobody() -> dict[str, Any]:
    return {"reviewer": None, "place": "", "done": None, "pace": "", "last": None}


def _pace_words(done: Progress) -> str:
    """Pace and remaining time, empty before they are known."""
    if not done.rows_per_hour or not done.left_for_me:
        return ""
    minutes = round((done.hours_left or 0) * 60)
    left = f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return f"{_number(done.rows_per_hour)} rows an hour, about {left} left"


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    words = f"{value:,.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"
    return words.replace("-", "\N{MINUS SIGN}")
