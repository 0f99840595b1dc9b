"""YAML loaders take the last of two keys of one name, and drop the first in silence: found here."""

from __future__ import annotations

from typing import Any


def duplicate_key(text: str) -> str | None:
    """The first key that a mapping has twice, and where, in words; None if there is none.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    import yaml

    return _in_node(yaml.compose(text, Loader=yaml.SafeLoader))


def _in_node(node: Any) -> str | None:
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return next(filter(None, map(_in_node, node.value)), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
                return f"{key.value!r} occurs twice, in lines {lines[key.value]} and {line}; keep one of them"
            lines[key.value] = line
        if found := _in_node(value):
            return found
    return None
