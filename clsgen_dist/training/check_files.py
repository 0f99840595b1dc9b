"""The checks of rows with the tokenizer, prompt, labels and limits of the recipe that will be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clsgen_dist.config import CurationSettings, DataSettings, PromptSettings, parse_settings, resolve_path
from clsgen_dist.curation.check_findings import check_source
from clsgen_dist.curation.row_source import row_source
from clsgen_dist.data.checks.finding import SEVERITIES, Limits
from clsgen_dist.data.checks.report import CheckReport
from clsgen_dist.data.checks.row_statistics import sources_of
from clsgen_dist.data.checks.run_checks import check_rows
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import DataError
from clsgen_dist.training.datasets import encoder_of_settings

_BACKBONE = "demo:smollm2-135m"


def check_files(
    files: Sequence[str],
    config: str | None = None,
    tokenizer: str | None = None,
    columns: Columns | None = None,
    near: float = 0.8,
    issues: bool = False,
) -> CheckReport:
    """Look for what would spoil training: bad rows, imbalance, duplicates, leakage, contradicting labels, truncation.

    Args:
        files: the splits, training rows first (or named train), each a source or ``NAME=SOURCE``; without any, the
            recipe's train and dev rows.
        config: recipe that will be trained; none: default settings.
        tokenizer: folder or hub id; none: the recipe's backbone, or the embedded one.
        columns: how the columns are called; none: as in the recipe.
        near: Jaccard index from which two texts are near duplicates, from 0.5 to below 1.
        issues: also look for what `clsgen data gate` looks for in each row, and measure how different explanations are.

    Raises:
        UserError: a file, recipe or tokenizer does not exist, or a setting cannot work.
    """
    data, prompt, backbone, curation = DataSettings(train=""), PromptSettings(), _BACKBONE, CurationSettings()
    if config:
        settings = parse_settings(["--config", str(resolve_path(config))])
        data, prompt, backbone = settings.data, settings.prompt, settings.model.backbone
        curation = settings.curation
        files = files or [data.train, *([data.dev] if data.dev else [])]
    if not files:
        raise DataError("name the files to check, like rows/train.jsonl rows/test.jsonl, or a recipe with --config")
    limits = Limits(
        max_prompt_length=data.max_prompt_length,
        max_explanation_length=data.max_explanation_length,
        max_bad_fraction=data.max_bad_fraction,
        near=near,
    )
    columns = columns or data.columns
    report = check_rows(
        sources_of(files),
        columns=columns,
        class_names=data.labels,
        encoder=encoder_of_settings(tokenizer or backbone, prompt, data.max_prompt_length),
        tokenizer=tokenizer or backbone,
        limits=limits,
        space=data.label_space,
    )
    if not issues:
        return report
    checked = [
        check_source(name, row_source(path, columns, data.labels, data.label_space), curation)
        for name, path in ((s.source.name, s.source.path) for s in report.statistics.splits if len(s))
    ]
    findings = [*report.findings, *(finding for source in checked for finding in source.findings)]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return replace(report, findings=findings, diversity=[row for source in checked for row in source.diversity])
