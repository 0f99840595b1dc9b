"""The checks of rows with the tokenizer, prompt, labels and limits of the recipe that will be trained."""

from __future__ import annotations

from collections.abc import Sequence

from clsgen_dist.config import DataSettings, PromptSettings, parse_settings, resolve_path
from clsgen_dist.data.checks.finding import Limits
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
) -> CheckReport:
    """Look for what would spoil training: bad rows, imbalance, duplicates, leakage, contradicting labels, truncation.

    Args:
        files: the splits, training rows first (or named train), each a source or ``NAME=SOURCE``; without any, the
            recipe's train and dev rows.
        config: recipe that will be trained; none: default settings.
        tokenizer: folder or hub id; none: the recipe's backbone, or the embedded one.
        columns: how the columns are called; none: as in the recipe.
        near: Jaccard index from which two texts are near duplicates, from 0.5 to below 1.

    Raises:
        UserError: a file, recipe or tokenizer does not exist, or a setting cannot work.
    """
    data, prompt, backbone = DataSettings(train=""), PromptSettings(), _BACKBONE
    if config:
        settings = parse_settings(["--config", str(resolve_path(config))])
        data, prompt, backbone = settings.data, settings.prompt, settings.model.backbone
        files = files or [data.train, *([data.dev] if data.dev else [])]
    if not files:
        raise DataError("name the files to check, like rows/train.jsonl rows/test.jsonl, or a recipe with --config")
    limits = Limits(
        max_prompt_length=data.max_prompt_length,
        max_explanation_length=data.max_explanation_length,
        max_bad_fraction=data.max_bad_fraction,
        near=near,
    )
    return check_rows(
        sources_of(files),
        columns=columns or data.columns,
        class_names=data.labels,
        encoder=encoder_of_settings(tokenizer or backbone, prompt, data.max_prompt_length),
        tokenizer=tokenizer or backbone,
        limits=limits,
        space=data.label_space,
    )
