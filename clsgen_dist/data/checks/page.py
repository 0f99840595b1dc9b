"""The page of `clsgen data check`: one self-contained HTML file, for light and dark mode.

The texts of rows are not trusted: all are escaped, and the page's own policy forbids scripts and requests.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape

from clsgen_dist.data.checks import plots
from clsgen_dist.data.checks.diversity import REMEDY
from clsgen_dist.data.checks.finding import Finding, RowRef, first_rows
from clsgen_dist.data.checks.report import CheckReport, classes, overview, provenances
from clsgen_dist.data.checks.row_statistics import excerpts
from clsgen_dist.io.text import visible

_MAX_ROWS = 20
"""Rows of a finding on the page; the JSON file has all."""
_EXCERPT = 200

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1f2933; --muted: #5b6773;
  --line: #dfe3e8; --s1: #1f5fa8; --s2: #c2691c; --s3: #3f8f5f; --s4: #7d5ba6; --error: #b3261e; --warning: #8a5a00;
  --info: #2f5f8f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --card: #1c2229; --ink: #e6e9ed; --muted: #9aa5b1;
  --line: #343c46; --s1: #7fb2ea; --s2: #eaa363; --s3: #7fcf9f; --s4: #bfa3e0; --error: #ff8a80; --warning: #f0b866;
  --info: #8fbcea; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0; } .muted { color: var(--muted); }
.verdict { font-size: 1.1rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--muted); }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 16rem; }
td.place { overflow-wrap: anywhere; white-space: pre-line; min-width: 11rem; }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure, article { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-family: inherit !important; }
article { margin-bottom: .75rem; border-left-width: .35rem; }
article h3 { font-size: 1rem; margin: 0 0 .25rem; }
article.error { border-left-color: var(--error); } article.warning { border-left-color: var(--warning); }
article.info { border-left-color: var(--info); }
.error b.severity { color: var(--error); } .warning b.severity { color: var(--warning); }
.info b.severity { color: var(--info); }
details { margin-top: .5rem; } summary { cursor: pointer; color: var(--s1); }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .9em; }
@media print { body { background: #fff; } details { display: block; } }
"""


def page(report: CheckReport) -> str:
    """The complete HTML document."""
    splits = report.statistics.splits
    names = " · ".join(escape(split.source.name) for split in splits)
    limits = report.limits
    texts = _excerpts(report)
    figures = "".join(
        f"<figure><figcaption>{escape(figure.title)}</figcaption>{_inline(figure, number)}</figure>"
        for number, figure in enumerate(plots.figures(report), start=1)
    )
    findings = "".join(_finding(report, finding, texts) for finding in report.findings)
    class_table = _table(
        f"Rows of each class (of {len(report.statistics.class_names)}, the largest first)",
        classes(splits, report.statistics),
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Rows: {names}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Rows: {names}</h1>
<p class="verdict">{escape(report.verdict().capitalize())}</p>
<p class="muted">Lengths in tokens of <code>{escape(report.tokenizer)}</code>; limits: prompt
{limits.max_prompt_length}, explanation {limits.max_explanation_length}; near duplicates from a Jaccard index of
{limits.near:g}.</p>
<section aria-labelledby="files"><h2 id="files">Files</h2>
{_table("Rows, and lengths as median / 95 % / longest", [overview(split) for split in splits])}
</section>
<section aria-labelledby="findings"><h2 id="findings">Findings</h2>
{findings or "<p>No problems found.</p>"}
</section>
<section aria-labelledby="classes"><h2 id="classes">Classes</h2>
{class_table}
</section>
{_provenance(report)}{_diversity(report)}<section aria-labelledby="plots"><h2 id="plots">Plots</h2>
<div class="figures">{figures}</div>
</section>
</main>
</body>
</html>
"""


def _provenance(report: CheckReport) -> str:
    """The section on where explanations came from; none where no row says so."""
    if not (rows := provenances(report.statistics.splits)):
        return ""
    table = _table("Explanations by where they came from, with their share of the file's", rows)
    return f'<section aria-labelledby="provenance"><h2 id="provenance">Provenance</h2>\n{table}\n</section>\n'


def _diversity(report: CheckReport) -> str:
    """The section on how different explanations are; none where they were not measured."""
    if not report.diversity:
        return ""
    caption = (
        "How different the explanations of a class are: different words and pairs of words by all, mean BLEU of one "
        "against the others, share that repeats another one but for numbers, class names and words of the text"
    )
    table = _table(caption, [row.cells() for row in report.diversity])
    remedy = f"<p><b>Remedy:</b> {escape(REMEDY)}</p>"
    return f'<section aria-labelledby="diversity"><h2 id="diversity">Explanations</h2>\n{table}\n{remedy}\n</section>\n'


def _finding(report: CheckReport, finding: Finding, texts: dict[tuple[str, int], str]) -> str:
    remedy = f"<p><b>Remedy:</b> {escape(finding.remedy)}</p>" if finding.remedy else ""
    rows = ""
    if finding.rows:
        refs = first_rows(finding, _MAX_ROWS)
        total = len(finding.rows)
        title = f"{total} row{'s' * (total != 1)}" + (f", the first {len(refs)}" if total > _MAX_ROWS else "")
        body = "".join(_table_rows(report, ref, texts) for ref in refs)
        rows = (
            f'<details><summary>{title}</summary><div class="scroll"><table><thead><tr><th scope="col">where</th>'
            f'<th scope="col">label</th><th scope="col">what</th><th scope="col">row</th></tr></thead>'
            f"<tbody>{body}</tbody></table></div></details>"
        )
    return (
        f'<article class="{finding.severity}"><h3><b class="severity">{finding.severity}</b> · '
        f"<code>{escape(finding.code)}</code> · {escape(', '.join(finding.splits))}</h3>"
        f"<p>{escape(finding.what)}</p>{remedy}{rows}</article>\n"
    )


def _table_rows(report: CheckReport, ref: RowRef, texts: dict[tuple[str, int], str]) -> str:
    line = _table_row(report, ref, ref.detail, texts)
    return line + (_table_row(report, ref.like, "matches this row", texts) if ref.like else "")


def _table_row(report: CheckReport, ref: RowRef, detail: str, texts: dict[tuple[str, int], str]) -> str:
    where = report.where(ref) + (f"\n{ref.id}" if ref.has_own_id else "")
    text = ref.excerpt or texts.get((ref.split, ref.line), "")
    return (
        f'<tr><td class="place">{escape(where)}</td><td>{escape(ref.label or "")}</td><td>{escape(detail)}</td>'
        f'<td class="text">{_visible(text)}</td></tr>'
    )


def _visible(text: str) -> str:
    """Escaped, with characters that are invisible or not allowed in HTML replaced."""
    return escape(visible(text))


def _excerpts(report: CheckReport) -> dict[tuple[str, int], str]:
    """Beginnings of the texts on the page, by split and line."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for finding in report.findings:
        for ref in first_rows(finding, _MAX_ROWS):
            for row in (ref, ref.like):
                if row and not row.excerpt:
                    wanted[row.split].add(row.line)
    return {
        (split, line): text
        for split, lines in wanted.items()
        for line, text in excerpts(report.path(split), report.columns, lines, _EXCERPT)
    }


def _table(caption: str, rows: Sequence[dict[str, str]]) -> str:
    if not rows:
        return '<p class="muted">No row has a label.</p>'
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_visible(cell)}</td>" for cell in row.values()) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _inline(figure: plots.Plot, number: int) -> str:
    """The SVG for use inside HTML: with unique ids and the page's colours."""
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="p{number}-', svg)
    svg = re.sub(r'(href="|url\()#(?=[A-Za-z_])', rf"\1#p{number}-", svg)
    for name, colour in plots.COLOURS.items():
        svg = svg.replace(f": {colour}", f": var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(figure.alt_text)}"', 1)
