"""The user's cache: converted backbones and generated demo rows, built once and atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/clsgen_dist``, by default ``~/.cache/clsgen_dist``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clsgen_dist"


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The folder ``name`` in the cache, filled by ``build(folder)`` if it does not exist yet.

    Built aside and renamed, so a killed build leaves nothing that looks finished; ranks and processes that come at the
    same time wait for the one that builds.
    """
    from filelock import FileLock

    target = cache_dir() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                build(aside)
                aside.rename(target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(aside)
    return target
