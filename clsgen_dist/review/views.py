"""The pages of a review, made on the server: what a template is given, with every text escaped and visible.

A page never holds another reviewer's decision on a row that the reader may still have to read.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from clsgen_dist.review.agreement import agreements
from clsgen_dist.review.decision import ReviewRow, Spans, Verdict
from clsgen_dist.review.overview import (
    Progress,
    State,
    double_readings,
    issue_codes,
    latest,
    listed,
    progress,
    reviewers,
)
from clsgen_dist.review.store import Filter, Store
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
        self._templates.filters |= {"shown": shown, "words": VERDICT_WORDS.get, "number": _number}

    # --- a row -----------------------------------------------------------------------------------------------------

    def next_row(self, reviewer: str, browser: str, query: Mapping[str, str]) -> str:
        """The queue's next row, or that nothing is left."""
        chosen = _filter(query)
        row = self._store.claim(reviewer, chosen, browser)
        common = self._common(reviewer, "queue") | self._filters(query)
        if row is None:
            return self._render("done.html.jinja", **common, is_filtered=chosen != Filter())
        return self._row_page(row, reviewer, common, may_decide=True)

    def one_row(self, reviewer: str, browser: str, number: int) -> str:
        """A row that was chosen, with the reviewer's own decision on it."""
        row = self._store.row(number)
        may_decide = self._store.claim_row(reviewer, number, browser)
        common = self._common(reviewer, "rows") | self._filters({})
        return self._row_page(row, reviewer, common, may_decide=may_decide)

    def _row_page(self, row: ReviewRow, reviewer: str, common: dict[str, Any], *, may_decide: bool) -> str:
        own = self._store.standing(row.number, reviewer)
        labels = self._store.labels()
        explanations = own.explanations if own else row.explanations
        return self._render(
            "row.html.jinja",
            **common,
            row=row,
            own=own,
            may_decide=may_decide,
            labels=labels,
            as_buttons=len(labels) <= MOST_BUTTONS,
            label=own.label if own else row.label,
            explanations=[(text, named(text)) for text in (explanations or ("",))],
            pieces=pieces(row.text, own.evidence if own else row.evidence),
            evidence=[list(span) for span in (own.evidence if own else row.evidence)],
            hidden=named(row.text),
            note=self._store.note(reviewer, row.number),
            key=secrets.token_hex(12),
        )

    # --- other pages -----------------------------------------------------------------------------------------------

    def rows(self, reviewer: str, query: Mapping[str, str]) -> str:
        """The list of rows, filtered."""
        page = int(query["page"]) if query.get("page", "").isdecimal() and len(query["page"]) < 9 else 1
        state = query.get("state")
        found, count = listed(
            self._store,
            reviewer,
            _filter(query),
            decided_by=query.get("decided_by") or None,
            state=State(state) if state in list(State) else None,
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
        differing = [
            row
            for row in double_readings(self._store)
            if len({(made.label, made.verdict == Verdict.REJECT) for made in row["decisions"].values()}) > 1
        ]
        return self._render(
            "agreement.html.jinja",
            **self._common(reviewer, "agreement"),
            found=agreements(self._store),
            differing=differing[:200],
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


def pieces(text: str, spans: Spans) -> Sequence[tuple[str, bool]]:
    """The text made visible, cut where evidence begins and ends: each piece and whether it is evidence."""
    visible, found, at = shown(text), [], 0
    for start, end in spans:
        found += [(visible[at:start], False), (visible[start:end], True)]
        at = end
    return [piece for piece in [*found, (visible[at:], False)] if piece[0]]


def _filter(query: Mapping[str, str]) -> Filter:
    return Filter(label=query.get("label") or None, issue=query.get("issue") or None)


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
