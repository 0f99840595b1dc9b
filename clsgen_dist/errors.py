"""How a command ends: what the user can fix is one clear line; anything else is a bug and shows its traceback.

| status | meaning | what a scheduler should do |
|---|---|---|
| 0 | done | nothing |
| 1 | crash, hang, a rank that never arrived, a bad node | try again, a bounded number of times |
| 1 | a guard holds the next round of self-training back | stop, and do what it says |
| 2 | bad settings, rows or files; a run that diverged or makes no progress | stop: trying again cannot help |
| 75 | asked to stop; the checkpoint is saved, if there was a step | start again with ``--resume auto`` |
| 130 | Ctrl-C | nothing |
"""

from __future__ import annotations

_LONGEST_LINE = 300


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 300 characters; the name of its class where it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_LINE] if lines else type(error).__name__


class UserError(Exception):
    """Bad settings, bad rows, a missing file …; the message says value, expectation and remedy."""

    exit_code = 2
    label = "error"
    on_all_ranks = True
    """True if every rank raises the same error; only rank 0 prints it."""


class SettingsError(UserError, ValueError):
    """Settings that cannot work, alone or together."""


class DataError(UserError, ValueError):
    """Rows that cannot be trained on, or a source that cannot be read."""


class ModelError(UserError, ValueError):
    """A backbone or exported model that cannot be used."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be resumed from, or not be written."""


class NonFiniteLossError(UserError, RuntimeError):
    """Losses or gradients were not finite, or spiked, more often than the run allows."""


class NoProgressError(UserError, RuntimeError):
    """Restart after restart began at the same step."""


class RunLockError(UserError, RuntimeError):
    """Another run writes to this run's folder."""


class DiskFullError(UserError, RuntimeError):
    """No room, or no quota, for what a run writes besides its checkpoints."""

    on_all_ranks = False


class RendezvousError(UserError, RuntimeError):
    """The ranks did not find each other in time."""

    exit_code = 1
    on_all_ranks = False


class BadNodeError(UserError, RuntimeError):
    """A node that must not take part; ``bad_nodes`` in the run's folder lists it."""

    exit_code = 1


class CapabilityLostError(UserError, RuntimeError):
    """Training cost the model more of its language than ``clsgen evaluate --max_drop`` allows."""


class GuardError(UserError, RuntimeError):
    """Held-out rows say that a model may not label others."""

    exit_code = 1
    label = "refused"


class ServerError(UserError, RuntimeError):
    """A server that a measure asks did not answer, or with errors, in all tries."""

    exit_code = 1
    on_all_ranks = False


class Preempted(UserError, RuntimeError):
    """A signal asked the run to stop, and it did, at a step boundary."""

    exit_code = 75
    label = "stopped"
