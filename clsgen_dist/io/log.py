"""Logging: what a run says, on the terminal of rank 0 and in a file for each rank.

Modules log with ``logging.getLogger(__name__)``. :func:`setup_logging`, for commands, sends that to stderr, from rank 0
at INFO with timestamps and from the others at WARNING with their rank; :func:`log_to_folder` adds ``logs/rank-N.log``
in the run's folder, INFO of every rank, also in programs that use the Python API. Libraries' known chatter is silenced;
``CLSGEN_VERBOSE=1`` shows it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = logging.getLogger("clsgen_dist")
_TIMESTAMP = "%(asctime)s"


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """stderr as it is when something is logged, since it may have been redirected; above any progress bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> object:  # type: ignore[override]
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:
            return super().emit(record)
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


def setup_logging(*, timestamps: bool = False) -> None:
    """Log to stderr, for commands: INFO on rank 0, WARNING elsewhere; again: only the format changes."""
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    handler = next((h for h in ROOT.handlers if isinstance(h, _Stderr)), None) or _Stderr()
    prefix = _TIMESTAMP + " " if timestamps else ""
    if rank:
        prefix += f"rank {rank} "
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.setLevel(logging.WARNING if rank else logging.INFO)
    if handler not in ROOT.handlers:
        ROOT.addHandler(handler)
    ROOT.setLevel(logging.INFO)
    quiet_libraries()


@contextlib.contextmanager
def log_to_folder(folder: Path, rank: int) -> Iterator[None]:
    """Inside, INFO of this rank also goes to ``rank-N.log`` in a folder; no file where nothing is logged.

    The package's logger passes INFO meanwhile, whatever level the program around it has set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"rank-{rank}.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(f"{_TIMESTAMP} %(levelname)s %(name)s %(message)s"))
    level = ROOT.level
    ROOT.setLevel(min(ROOT.getEffectiveLevel(), logging.INFO))
    ROOT.addHandler(handler)
    try:
        yield
    finally:
        ROOT.removeHandler(handler)
        ROOT.setLevel(level)
        handler.close()


def quiet_libraries() -> None:
    """Silence messages of libraries that users can do nothing about; each pattern is one message, so new ones show.

    Called before DeepSpeed and transformers are imported, which print as they load.
    """
    if os.environ.get("CLSGEN_VERBOSE") == "1":
        return
    warnings.filterwarnings("ignore", message=".*torch.utils._pytree.*|.*pkg_resources.*")
    warnings.filterwarnings("ignore", message=".*torch.distributed.*is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").addFilter(_is_wanted)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Read when huggingface_hub is imported; transformers' "Loading weights" follows it.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and "Setting accelerator to CPU" not in record.getMessage()
