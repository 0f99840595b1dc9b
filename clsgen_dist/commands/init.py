"""``clsgen init``."""

from __future__ import annotations

import shutil
from pathlib import Path


def run(to: str = ".") -> None:
    """Copy configs/, ds_configs/ and slurm/ of this version into a folder; existing files are left alone.

    Args:
        to: The folder; created if it does not exist.
    """
    from clsgen_dist.config import SHIPPED

    for name in ("configs", "ds_configs", "slurm"):
        for source in sorted(p for p in (SHIPPED / name).rglob("*") if p.is_file() and p.suffix != ".pyc"):
            target = Path(to) / source.relative_to(SHIPPED)
            if target.exists():
                print(f"left alone  {target}")
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            print(f"copied      {target}")
