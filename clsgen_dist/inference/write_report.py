"""Writes an evaluation: ``index.html``, ``report.md``, ``report.json``, a TensorBoard log, and the model's card."""

from __future__ import annotations

import logging
from pathlib import Path

from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.model_card import write_model_card
from clsgen_dist.inference.report_sections import document
from clsgen_dist.inference.write_tensorboard import FOLDER, write_tensorboard
from clsgen_dist.io.files import atomic_write, writing
from clsgen_dist.report.html import render_html
from clsgen_dist.report.markdown import render_markdown

logger = logging.getLogger(__name__)


def write_report(evaluation: Evaluation, folder: Path, *, model_card: bool = True) -> Path:
    """Write the files, and unless ``model_card`` is false fill the model's ``README.md``; returns the page.

    A card that cannot be filled is a warning: models are often in folders that are not to be written.

    Raises:
        SettingsError: the report cannot be written.
    """
    written = document(evaluation)
    page = folder / "index.html"
    with writing(page):
        atomic_write(folder / "report.json", evaluation.to_json())
        atomic_write(folder / "report.md", render_markdown(written))
        atomic_write(page, render_html(written))
        write_tensorboard(evaluation, written, folder / FOLDER)
    if model_card:
        try:
            filled = write_model_card(evaluation, written)
        except OSError as error:
            logger.warning("the model card is not filled with the evaluation: %s", error)
        else:
            if not filled:
                logger.warning(
                    "%s has no README.md with a part for the evaluation, so none is filled", evaluation.model
                )
    return page
