"""Checkpoints that count only when committed: ``folders`` finds them, ``marker`` says what they are, ``saver`` writes
them, ``loading`` resumes from one, ``canary`` proves that the weights arrived.

In: DeepSpeed's engine and the run's state. Out: ``checkpoints/step-00000120/``, complete or not at all. A save costs a
copy of the shard to host memory; writing, flushing and checksums overlap with the next steps.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clsgen_dist.checkpoint.folders import (
        begin_folder,
        clear_after,
        committed,
        delete,
        fault_of,
        folder_name,
        later_than,
        newest_valid,
        prune,
        step_of,
        unmarked,
    )
    from clsgen_dist.checkpoint.loading import frozen_sums, load, require_same_canary, restore_weights
    from clsgen_dist.checkpoint.marker import (
        FORMAT,
        LEFTOVER,
        MARKER,
        SETTINGS_FILE,
        commit,
        read_marker,
        seal,
        verify,
    )
    from clsgen_dist.checkpoint.state import RunIdentity, SpikeState, TrainState, best_by

__all__ = [
    "FORMAT",
    "LEFTOVER",
    "MARKER",
    "SETTINGS_FILE",
    "RunIdentity",
    "SpikeState",
    "TrainState",
    "begin_folder",
    "best_by",
    "clear_after",
    "commit",
    "committed",
    "delete",
    "fault_of",
    "folder_name",
    "frozen_sums",
    "later_than",
    "load",
    "newest_valid",
    "prune",
    "read_marker",
    "require_same_canary",
    "restore_weights",
    "seal",
    "step_of",
    "unmarked",
    "verify",
]


def __getattr__(name: str) -> Any:
    """A name of the modules, loaded when it is first used: ``checkpoint.settings`` must not load torch."""
    if name in __all__:
        for module in ("marker", "state", "folders", "loading"):
            if hasattr(home := importlib.import_module(f"{__name__}.{module}"), name):
                return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
