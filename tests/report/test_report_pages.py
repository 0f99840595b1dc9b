"""The page and the Markdown: what is in them, and what a row's text cannot do to them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from clsgen_dist.report.document import Document, Example, Figure, Paragraph, Section, Table
from clsgen_dist.report.figures import Curve, curves_figure, intervals_figure, reliability_figure
from clsgen_dist.report.html import render_html
from clsgen_dist.report.markdown import render_markdown

EVIL = '</blockquote><script>alert("x")</script> | **bold** [link](http://example.org)'


def a_document() -> Document:
    edges = np.linspace(0.05, 0.95, 10)
    band = np.stack([edges - 0.08, edges + 0.08], axis=1)
    counts = np.array([40, 20, 10, 5, 0, 5, 8, 12, 30, 60])
    confidence = np.where(counts > 0, edges, np.nan)
    groups = np.array([0.9, 0.8, 0.95])
    reliability = reliability_figure(confidence, edges, counts, band)
    intervals = intervals_figure(["a", "b", "c"], groups, groups - 0.1, groups + 0.05, x="AUROC", reference=0.9)
    curves = [Curve("model", edges, edges**2), Curve("treat all", edges, edges)]
    return Document(
        title="Report on model A",
        summary=["Its probabilities can be trusted.", "Its explanations name what they decide."],
        facts=[("model", "exports/a"), ("rows", "190")],
        sections=[
            Section(
                "calibration",
                "Calibration",
                [
                    Paragraph("How often is it right when it says 80 %?"),
                    Paragraph("Few rows.", tone="warning"),
                    Figure("Reliability.", reliability, "Points lie on the line."),
                    Table("Figures", ["measure", "value"], [["ECE", "0.031 [0.010, 0.052]"], ["a < b & c", EVIL]]),
                ],
            ),
            Section(
                "groups",
                "Subgroups",
                [
                    Figure("AUROC.", intervals, "b is worst."),
                    Figure("Net benefit.", curves_figure(curves, x="threshold", y="net benefit"), "Above both."),
                ],
            ),
            Section(
                "examples",
                "Explanations",
                [Example("Row 7", f"size 12 mm, {EVIL}", [(5, 7), (6, 10), (0, 4)], EVIL, [("label", "malignant")])],
            ),
        ],
    )  # fmt: skip


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_loads_nothing_and_runs_nothing():
    tags = _Tags()
    page = render_html(a_document())
    tags.feed(page)
    assert not {tag for tag, _ in tags.found} & {"script", "link", "iframe", "object", "img"}
    addresses = [v for _, attributes in tags.found for n, v in attributes.items() if n in ("href", "src", "xlink:href")]
    assert addresses and all(address.startswith("#") for address in addresses)
    assert not re.search(r"url\((?!#)|@import", page)


def test_a_rows_text_is_text_in_both_forms():
    page, text = render_html(a_document()), render_markdown(a_document())
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<script" not in text.replace("\\<script", "") and "\\*\\*bold\\*\\*" in text


def test_sections_are_linked_and_named():
    tags = _Tags()
    tags.feed(render_html(a_document()))
    anchors = {a["href"] for tag, a in tags.found if tag == "a"}
    identifiers = {f"#{a['id']}" for _, a in tags.found if a.get("id")}
    assert {"#calibration", "#groups", "#examples", "#content"} <= anchors <= identifiers
    assert [tag for tag, _ in tags.found].count("h1") == 1
    drawings = [a for tag, a in tags.found if tag == "svg"]
    assert [a["aria-label"] for a in drawings] == ["Points lie on the line.", "b is worst.", "Above both."]
    assert all(a.get("viewbox") for a in drawings)


def test_evidence_is_marked_once_where_it_overlaps():
    example = a_document().sections[2].blocks[0]
    assert [piece for piece in example.pieces() if piece[1]] == [("size", True), ("12", True), (" mm", True)]
    assert "".join(piece for piece, _ in example.pieces()) == example.text
    assert "<mark>size</mark> <mark>12</mark>" in render_html(a_document())
    assert "**size** **12**" in render_markdown(a_document())


def test_a_table_whose_rows_do_not_fit_its_header_is_an_error():
    with pytest.raises(ValueError, match=r"rows of \[1\] cells, expected 2"):
        Table("t", ["a", "b"], [["1"]])


def test_the_same_document_gives_the_same_page():
    assert render_html(a_document()) == render_html(a_document())
