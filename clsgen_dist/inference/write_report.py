"""Writes an evaluation as a folder: ``index.html``, ``report.md``, ``report.json``."""

from __future__ import annotations

from pathlib import Path

from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.report_sections import document
from clsgen_dist.io.files import atomic_write, writing
from clsgen_dist.report.html import render_html
from clsgen_dist.report.markdown import render_markdown


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write the files; returns the page. SettingsError if they cannot be written."""
    written = document(evaluation)
    page = folder / "index.html"
    with writing(page):
        atomic_write(folder / "report.json", evaluation.to_json())
        atomic_write(folder / "report.md", render_markdown(written))
        atomic_write(page, render_html(written))
    return page
