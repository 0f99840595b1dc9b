"""``clsgen data check FILE…``: what to run on rows before anything is trained on them.

Each FILE is a split. In ``checks``, ``measure`` reads it once, ``near`` finds near duplicates, ``format``, ``cells``,
``labels`` and ``copies`` say what is wrong, ``report`` prints it and ``page`` writes the page. Exit status: 0 nothing
that stops training, 1 there are errors (with ``--strict`` warnings too), 2 the command itself is wrong.

Cost: 100,000 short rows in three files in about 20 s on one core, of which loading libraries and tokenizer takes 5.
"""

from __future__ import annotations

import sys
from pathlib import Path

from clsgen_dist.config import DataSettings, PromptSettings, parse_settings, resolve_path
from clsgen_dist.data.checks.cells import cells
from clsgen_dist.data.checks.exact_duplicates import copies_within, leakage
from clsgen_dist.data.checks.finding import SEVERITIES, Finding, Limits
from clsgen_dist.data.checks.format import explanations, lengths, unreadable
from clsgen_dist.data.checks.labels import conflicts, label_names, labels, missing_names, unseen_classes
from clsgen_dist.data.checks.measure import Measured, measure, sources_of
from clsgen_dist.data.checks.near_duplicates import NearDuplicates, near_duplicates
from clsgen_dist.data.checks.page import page
from clsgen_dist.data.checks.report import Checked, to_json, to_text
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.io.files import atomic_write, writing

POSITIONAL = "files"
SWITCHES = ("strict",)
_ALL_TEMPLATE = 0.95
"""More of a typical text than this shared by nearly every row: they may all be copies of one."""


def run(
    files: list[str],
    config: str | None = None,
    tokenizer: str | None = None,
    columns: Columns | None = None,
    near: float = 0.8,
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
        report: HTML page to write; null: none.
        json: JSON file to write, with every affected row of every finding.
        strict: Exit with 1 for warnings too.
    """  # noqa: E501
    checked = check_files(files, config, tokenizer, columns, near)
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


def check_files(
    files: list[str],
    config: str | None = None,
    tokenizer: str | None = None,
    columns: Columns | None = None,
    near: float = 0.8,
) -> Checked:
    """Everything that :func:`run` prints, as values; arguments and errors as there.

    Raises:
        UserError: a file, recipe or tokenizer does not exist, or a setting cannot work.
    """
    from clsgen_dist.model.backbone import backbone_path, load_tokenizer

    if not 0.5 <= near < 1:
        raise SettingsError(f"--near is {near}, expected a Jaccard index from 0.5 to below 1, like 0.8")
    data, prompt, backbone = DataSettings(train=""), PromptSettings(), "demo:smollm2-135m"
    if config:
        settings = parse_settings(["--config", str(resolve_path(config))])
        data, prompt, backbone = settings.data, settings.prompt, settings.model.backbone
        files = files or [data.train, *([data.dev] if data.dev else [])]
    if not files:
        raise DataError("name the files to check, like rows/train.jsonl rows/test.jsonl, or a recipe with --config")
    sources = sources_of(files)
    vocabulary = load_tokenizer(backbone_path(tokenizer or backbone))
    encoder = Encoder(vocabulary, **vars(prompt), max_prompt_length=data.max_prompt_length)
    measured = measure(
        sources,
        columns=columns or data.columns,
        labels=data.labels,
        encoder=encoder,
    )
    limits = Limits(
        max_prompt_length=data.max_prompt_length,
        max_explanation_length=data.max_explanation_length,
        max_bad_fraction=data.max_bad_fraction,
        near=near,
    )
    alike = near_duplicates(measured.sketches, measured.sketch_split, len(sources), near)
    names = [source.name for source in sources]
    train = names.index("train") if "train" in names else 0
    return Checked(
        measured,
        find(measured, alike, limits, train),
        limits,
        columns=columns or data.columns,
        tokenizer=tokenizer or backbone,
    )


def find(measured: Measured, near: NearDuplicates, limits: Limits, train: int) -> list[Finding]:
    """Every finding, errors first; ``train`` is the index of the split that would be trained on."""
    found: list[Finding] = []
    for index, split in enumerate(measured.splits):
        found += unreadable(split, limits)
        if len(split):
            found += labels(split, measured.label_names, is_train=index == train)
            found += missing_names(split, measured)
            found += cells(split, measured.label_names)
            found += explanations(split, measured.label_names, limits)
            found += lengths(split, measured.label_names, limits)
            found += copies_within(measured, index, near, limits)
    found += label_names(measured)
    found += unseen_classes(measured, train, limits)
    found += conflicts(measured)
    for later in range(1, len(measured.splits)):
        for earlier in range(later):
            found += leakage(measured, earlier, later, near, limits)
    if share := measured.template.share:
        found.append(
            Finding(
                "shared-template",
                "warning" if share > _ALL_TEMPLATE else "info",
                tuple(split.source.name for split in measured.splits),
                f"{share:.0%} of a typical text is the same in nearly every row; it is left out when texts are "
                "compared for near duplicates",
                "see that the rows differ in more than a counter" if share > _ALL_TEMPLATE else "",
            )
        )
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))
