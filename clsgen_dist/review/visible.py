"""Hidden characters of a stranger's text, made visible one for one, so that places in the text stay.

    control characters       their picture (U+2400 …): ESC is ␛, CR is ␍
    direction marks, zero width, other format characters, line separators      � (U+FFFD)

Joiners stay between characters beyond ASCII, where emoji, Persian and scripts of India need them. ``named`` says which
characters they are.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)


def shown(text: str) -> str:
    """The text with a visible character for each hidden one; as long as before, in code points."""
    return _HIDDEN.sub(lambda match: _picture(match[0]), text)


def named(text: str) -> list[str]:
    """The hidden characters of a text, the most frequent first: ``2 × U+202E RIGHT-TO-LEFT OVERRIDE``."""
    counts = Counter(_HIDDEN.findall(text))
    return [f"{count} × U+{ord(c):04X} {_name(c)}".strip() for c, count in counts.most_common()]


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _name(character: str) -> str:
    picture = _picture(character)
    fallback = unicodedata.name(picture).removeprefix("SYMBOL FOR ") if picture != "\ufffd" else ""
    return unicodedata.name(character, fallback)
