"""``clsgen data gate FILE --output FOLDER``: rows to keep, to review, and rejected ones, each with its reasons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.config import Settings


def run(settings: Settings, output: str, restore: str | None = None) -> None:
    """Divide the rows of a file into those to keep, those for a person to review, and rejected ones, with reasons.

    FILE has rows in JSON lines, CSV or Parquet; without it, the recipe's training rows. Thresholds and severities are
    the recipe's `curation`; every setting may follow, as for `clsgen train`.

    Args:
        output: Folder to write: kept, review and rejected rows in files of the same kind, reasons, a summary.
        restore: File to write instead, from the folder of an earlier run: its input, byte for byte (Parquet: its rows).
    """
    from clsgen_dist.curation.gate import gate
    from clsgen_dist.curation.gate import restore as restore_file
    from clsgen_dist.curation.gate_report import to_text

    if restore is not None:
        restore_file(Path(output), Path(restore))
        print(f"restored {restore}")
        return
    data = settings.data
    summary = gate(
        data.train,
        Path(output),
        columns=data.columns,
        labels=data.labels,
        space=data.label_space,
        settings=settings.curation,
    )
    print(to_text(summary, Path(output)))
