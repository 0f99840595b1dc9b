"""Settings that changed since the checkpoint being resumed: refused, logged, or free to change.

What decides rows, weights or optimizer is compared by value where it is loaded (``checkpoint.RunIdentity``, the kept
prompt). The rest of the tree is compared here, field by field with the ``settings.yaml`` of the checkpoint: a field
that is not listed below is logged, so a new setting is never ignored.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from clsgen_dist.checkpoint.marker import SETTINGS_FILE, read_marker
from clsgen_dist.config import Settings, to_yaml, with_new_names
from clsgen_dist.errors import CheckpointError

_POSITIVE = "data.positive_label"
FREE = (
    "output_dir",
    "resume",
    "overwrite",
    "checkpoint",
    "faults.hang_timeout_s",
    "faults.rendezvous_timeout_s",
    "faults.max_stuck_starts",
    "train.collective_timeout_s",
    "train.log_rows",
    "train.stop_at_stage",
    "decoding",
    "curation",
)
"""Fields that do not change what is trained; a section covers all its fields."""


def changed_settings(settings: Settings, folder: Path) -> list[str]:
    """What changed since the checkpoint in ``folder`` was written, like ``optim.lr 0.0001 -> 0.0003``.

    Raises:
        CheckpointError: a change that a resumed run must not have.
    """
    try:
        then = with_new_names(yaml.safe_load((folder / SETTINGS_FILE).read_text(encoding="utf-8")))
        pairs = _pairs(settings, then, yaml.safe_load(to_yaml(settings)))
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # an aid for people: the marker holds what must be right
        return [f"unknown, as {folder / SETTINGS_FILE} cannot be read"]
    last = read_marker(folder)["identity"]["labels"][-1]  # the positive class where none is named
    pairs = {name: tuple(v or last for v in pair) if name == _POSITIVE else pair for name, pair in pairs.items()}
    changes = {n: f"{n} {was} -> {now}" for n, (was, now) in pairs.items() if was != now and not is_free(n)}
    if refused := changes.get(_POSITIVE):
        raise CheckpointError(
            f"{folder} was written with another meaning of its probability: {refused}. Restore it, or start a new run "
            "with another output_dir"
        )
    return list(changes.values())


def is_free(name: str) -> bool:
    """Whether a field, by its dotted name, may change without a word."""
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


def _pairs(section: Any, then: dict[str, Any], now: dict[str, Any], name: str = "") -> dict[str, tuple[Any, ...]]:
    """Both values of each field that both trees have, by dotted name."""
    found: dict[str, tuple[Any, ...]] = {}
    for field in dataclasses.fields(section):
        value, dotted = getattr(section, field.name), f"{name}.{field.name}".lstrip(".")
        if field.name not in then:  # a newer setting
            continue
        if dataclasses.is_dataclass(value):
            found |= _pairs(value, then[field.name], now[field.name], dotted)
        else:
            found[dotted] = then[field.name], now[field.name]
    return found
