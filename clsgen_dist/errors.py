"""What the user can mend: the command line shows these as one line; anything else is a bug and shows its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad settings, bad rows, a missing file …; the message says value, expectation and remedy."""


class SettingsError(UserError, ValueError):
    """Settings that cannot work, alone or together."""


class DataError(UserError, ValueError):
    """Rows that cannot be trained on, or a source that cannot be read."""


class ModelError(UserError, ValueError):
    """A backbone or exported model that cannot be used."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that cannot be resumed from."""


class NonFiniteLossError(UserError, RuntimeError):
    """A loss became NaN or infinite."""
