"""``clsgen data check FILE…``: what to run on rows before anything is trained on them.

Exit status: 0 nothing that stops training, 1 there are errors (with ``--strict`` warnings too), 2 the command itself is
wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import JaccardThreshold


def run(
    files: list[str],
    config: str | None = None,
    tokenizer: str | None = None,
    columns: Columns | None = None,
    near: JaccardThreshold = 0.8,
    issues: bool = True,
    report: str | None = "report.html",
    json: str | None = None,
    strict: bool = False,
) -> None:
    """Look for what would spoil training: bad rows, imbalance, duplicates, leakage, contradicting labels, truncation.

    Exit status 1 if there are errors.

    Args:
        files: The splits, training rows first (or named train): `rows/train.jsonl rows/test.jsonl`, or `NAME=PATH`; without any, the recipe's train and dev rows.
        config: Recipe that will be trained: its columns, labels, prompt, lengths and backbone count.
        tokenizer: Folder or hub id of the tokenizer; none: the recipe's backbone, or the embedded one.
        columns: How your columns are called.
        near: Jaccard index from which two texts are near duplicates.
        issues: Also look for issues of each row, as `clsgen data gate` does, and measure how different explanations are: about 4 ms a row.
        report: HTML page to write; null: none.
        json: JSON file to write, with every affected row of every finding.
        strict: Exit with 1 for warnings too.
    """  # noqa: E501
    from clsgen_dist.data.checks.page import page
    from clsgen_dist.data.checks.report import to_json, to_text
    from clsgen_dist.io.files import atomic_write, writing
    from clsgen_dist.training.check_files import check_files

    checked = check_files(files, config, tokenizer, columns, near, issues)
    print(to_text(checked))
    if json:
        with writing(Path(json)):
            atomic_write(Path(json), to_json(checked))
    if report:
        with writing(Path(report)):
            atomic_write(Path(report), page(checked))
        print(f"\npage: {report}")
    severities = {finding.severity for finding in checked.findings}
    if "error" in severities or (strict and "warning" in severities):
        sys.exit(1)
