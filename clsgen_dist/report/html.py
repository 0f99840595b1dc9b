"""A document as one HTML page: styles and figures are in it, it has no script and loads nothing.

Read on a phone (tables and figures scroll on their own), on paper (sections start unbroken, links are plain), by
keyboard (scrolling regions take the focus, the first Tab stop skips to the text) and by screen readers (one h1,
captions, scopes, descriptions of figures). Colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from clsgen_dist.report.document import Document, Example, Figure, Paragraph, Table

_TEMPLATE = "page.html.jinja"


def render_html(document: Document) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["kind"] = _kind
    environment.filters["inline_svg"] = _inline_svg
    source = files("clsgen_dist.report").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(document=document) + "\n"


def _kind(block: Any) -> str:
    kinds = {Paragraph: "paragraph", Table: "table", Figure: "figure", Example: "example"}
    return kinds[type(block)]


def _inline_svg(figure: Figure) -> Any:
    """The drawing without its XML header, named for screen readers by its description."""
    import markupsafe

    found = re.search(r"<svg\b(.*?)>(.*)</svg>", figure.drawing.svg, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"figure {figure.caption!r} is no SVG, expected an <svg> element")
    box = re.search(r'viewBox="[^"]*"', found[1])
    label = markupsafe.escape(figure.description)
    return markupsafe.Markup(f'<svg role="img" aria-label="{label}" {box[0] if box else ""}>{found[2]}</svg>')
