"""``clsgen data thin FILE --output FILE --keep N``: explanations that are nearly the same are kept N times a class.

Exit status: 0 written, 2 the rows cannot be read, or the command is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import JaccardThreshold, PositiveInt


def run(
    files: list[str],
    output: str,
    keep: PositiveInt = 5,
    near: JaccardThreshold = 0.8,
    columns: Columns | None = None,
    label_space: Literal["auto", "single", "multilabel", "ordinal"] = "auto",
) -> None:
    """Remove explanations that are nearly the same as others of their class; the rows stay, all else in them too.

    Explanations that differ in numbers, or in words of their own texts, are not the same.

    Args:
        files: The rows: one .jsonl, .csv or .parquet file.
        output: File of the same kind to write; lines without a removed explanation are the input's, byte for byte.
        keep: How many of those that are nearly the same stay in each class, the first ones of the file.
        near: Jaccard index from which two explanations are near duplicates.
        columns: How your columns are called.
        label_space: What a row's label is, as in a recipe's data.label_space.
    """
    from clsgen_dist.curation.thin import thin, to_text
    from clsgen_dist.data.example import Columns
    from clsgen_dist.errors import SettingsError

    if len(files) != 1:
        raise SettingsError(f"data thin reads one file, and {len(files)} are named; name one, like rows/train.jsonl")
    report = thin(files[0], Path(output), keep=keep, near=near, columns=columns or Columns(), space=label_space)
    print(to_text(report, output))
