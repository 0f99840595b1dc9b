"""``clsgen data split FILE --output FOLDER``: train, dev, calibration and test rows that do not leak.

Exit status: 0 written and checked, 2 the rows cannot be divided so, or the command is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, JaccardThreshold, NonNegativeInt


def run(
    files: list[str],
    output: str,
    fractions: str = "train=0.8,dev=0.1,calibration=0.05,test=0.05",
    by_group: str | None = None,
    by_time: str | None = None,
    near: JaccardThreshold | None = 0.8,
    seed: NonNegativeInt = 0,
    columns: Columns | None = None,
    label_space: Literal["auto", "single", "multilabel", "ordinal"] = "auto",
    max_bad_fraction: ClosedUnitInterval = 0.01,
) -> None:
    """Divide one file into train, dev, calibration and test rows: by class, group or time, and no copy in two of them.

    Args:
        files: The rows: one file, saved folder or hub id.
        output: New folder for train.jsonl, dev.jsonl … (in the file's own format), and split.json.
        fractions: Shares of the splits, by comma: some of train, dev, calibration and test; they sum to 1.
        by_group: Column of what must stay in one split, such as a patient or contract.
        by_time: Column of numbers or ISO dates: the latest rows are the test rows; classes are not balanced then.
        near: Jaccard index from which two texts are near duplicates, and stay together; null: only copies do.
        seed: Another one, another division.
        columns: How your columns are called.
        label_space: What a row's label is, as in a recipe's data.label_space.
        max_bad_fraction: Stop when more than this share of the rows is bad; bad rows are in quarantine.jsonl.
    """
    from clsgen_dist.curation.assignment import fractions_of
    from clsgen_dist.curation.split_report import to_text
    from clsgen_dist.curation.splits import SplitSettings, split_file
    from clsgen_dist.data.example import Columns
    from clsgen_dist.errors import SettingsError

    if len(files) != 1:
        raise SettingsError(f"data split divides one file, and {len(files)} are named; name one, like rows/all.jsonl")
    settings = SplitSettings(
        fractions=fractions_of(fractions),
        by_group=by_group,
        by_time=by_time,
        near=near,
        seed=seed,
        columns=columns or Columns(),
        space=label_space,
        max_bad_fraction=max_bad_fraction,
    )
    print(to_text(split_file(files[0], Path(output), settings), output))
