"""``clsgen data combine FILE --voters [a, b, c] --output FILE``: votes become soft labels.

Exit status: 0 written, 2 the votes cannot be read, or the command is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns


def run(
    files: list[str],
    output: str,
    voters: list[str],
    method: Literal["dawid-skene", "shares"] = "dawid-skene",
    abstain: list[str] | None = None,
    columns: Columns | None = None,
) -> None:
    """Combine the votes of annotators or labelling functions, a column each, into labels with probabilities.

    Args:
        files: The rows: one file, saved folder or hub id.
        output: File of JSON lines for all rows, with the label `{"a": 0.9, "b": 0.1}`, or `a` where it is certain.
        voters: The columns of votes, like `[anna, ben, rule_1]`; an empty cell is no vote.
        method: Dawid and Skene's model, which learns how each voter errs (three votes a row or more), or the votes' shares.
        abstain: Cells that are no vote either, like `[-1, unsure]`.
        columns: How your columns are called; rows that have a label keep it.
    """  # noqa: E501
    from clsgen_dist.curation.combine_votes import combine_votes, to_text
    from clsgen_dist.data.example import Columns
    from clsgen_dist.errors import SettingsError

    if len(files) != 1:
        raise SettingsError(f"data combine reads one file, and {len(files)} are named; name one, like rows/votes.csv")
    report = combine_votes(
        files[0],
        Path(output),
        voters,
        columns=columns or Columns(),
        method=method,
        abstain=abstain or (),
    )
    print(to_text(report, output))
