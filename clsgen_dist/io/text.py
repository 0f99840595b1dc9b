"""Names and texts of users in messages for people: shortened, and safe to print."""

from __future__ import annotations

import re

MAX_LISTED = 8
"""Names that a message lists."""
_MAX_NAME_LENGTH = 60


def row_count_phrase(count: int, one: str, several: str) -> str:
    """``1 row has``, ``2 rows have``."""
    return f"1 row {one}" if count == 1 else f"{count} rows {several}"


def visible(text: str) -> str:
    """The text with control characters, lone surrogates, zero-width and direction marks as replacement characters."""
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]",
        "\ufffd",
        text,
    )


def shortened(text: str, length: int = 40) -> str:
    """A stranger's text on one line: at most ``length`` characters, control characters made visible."""
    line = visible(" ".join(text[: 8 * length].split()))
    return line if len(line) <= length else line[: length - 2] + " …"


def quoted(name: str) -> str:
    """A class's name in quotes, shortened if it is long."""
    return repr(name if len(name) <= _MAX_NAME_LENGTH else name[:_MAX_NAME_LENGTH] + " …")


def counts_phrase(counts: dict[str, int]) -> str:
    """The first names with their counts."""
    more = f" and {len(counts) - MAX_LISTED} more" if len(counts) > MAX_LISTED else ""
    return ", ".join(f"{quoted(name)} ({count})" for name, count in list(counts.items())[:MAX_LISTED]) + more
