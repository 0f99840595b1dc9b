"""``clsgen data self-label FILE --model FOLDER --output FILE --round N --guard ROWS``: labels for self-training.

Exit status: 0 written; 1 the guard says no, and nothing is written; 2 the command, a model or rows are wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, NonNegativeInt, OpenUnitInterval, PositiveInt


def run(
    files: list[str],
    model: str,
    output: str,
    round: NonNegativeInt,
    guard: str,
    previous: str | None = None,
    confidence: OpenUnitInterval = 0.95,
    precision: OpenUnitInterval = 0.9,
    class_shares: str = "guard",
    max_per_class: PositiveInt | None = None,
    soft: bool = False,
    explain: bool = True,
    columns: Columns | None = None,
    batch_size: PositiveInt = 16,
    max_bad_fraction: ClosedUnitInterval = 0.01,
    config: str | None = None,
) -> None:
    """Label the rows that a calibrated model is sure of, if held-out rows say that it is right where it is sure.

    A command that was killed goes on where it was. Over ranks: torchrun --nproc_per_node 8 -m clsgen_dist data self-label ...

    Args:
        files: The unlabelled rows: one file, saved folder or hub id; rows with a label are left out.
        model: Folder that `clsgen export` wrote and `clsgen calibrate` calibrated.
        output: File of JSON lines for the rows that are kept, with label, explanation and the provenance `self:ROUND`.
        round: Number of the round.
        guard: Labelled rows that were neither trained nor calibrated on.
        previous: The last round's model; if this one is significantly worse on the guard, nothing is written.
        confidence: Least calibrated probability of a label.
        precision: How often labels must be right: the lower end of the guard's 95 % interval must reach it.
        class_shares: Shares of the classes among the kept rows: `guard`, as its labels have them; `a=0.2,b=0.1`; `none`, as they come.
        max_per_class: Most rows of a class.
        soft: Write the probabilities of all classes as the label; training then needs data.label_space, as printed.
        explain: Have the model write explanations too; kept are those that state the label and pass the checks.
        columns: How your columns are called; of rows of one `cluster` the guard's interval allows for their likeness.
        batch_size: Rows decoded together.
        max_bad_fraction: Stop when more than this share of the guard rows is bad.
        config: Recipe whose `curation` says which explanations are dropped; none: the defaults.
    """  # noqa: E501
    from clsgen_dist.config import CurationSettings, parse_settings, resolve_path
    from clsgen_dist.data.example import Columns
    from clsgen_dist.engine.world import set_launch_variables
    from clsgen_dist.errors import SettingsError
    from clsgen_dist.self_training.report import to_text
    from clsgen_dist.self_training.self_label import SelfLabelSettings, self_label
    from clsgen_dist.teacher.candidates import explanation_checks

    if len(files) != 1:
        raise SettingsError(
            f"data self-label reads one file, and {len(files)} are named; name one, like rows/pool.jsonl"
        )
    curation = parse_settings(["--config", str(resolve_path(config))]).curation if config else CurationSettings()
    settings = SelfLabelSettings(
        number=round,
        confidence=confidence,
        precision=precision,
        class_shares=class_shares,
        max_per_class=max_per_class,
        soft=soft,
        explain=explain,
        columns=columns or Columns(),
        batch_size=batch_size,
        max_bad_fraction=max_bad_fraction,
    )
    report = self_label(model, files[0], Path(output), guard, settings, explanation_checks(curation), previous=previous)
    if set_launch_variables().rank == 0:
        print(to_text(report, settings, output))
