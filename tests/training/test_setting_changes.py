"""Which changed settings a resumed run refuses, reports or ignores, for every field of the tree."""

from __future__ import annotations

import copy
from dataclasses import is_dataclass
from typing import Any

import pytest

from clsgen_dist import checkpoint
from clsgen_dist.config import settings_from_yaml, to_yaml
from clsgen_dist.data.curriculum.stages import Stage
from clsgen_dist.errors import CheckpointError
from clsgen_dist.training.setting_changes import FREE, changed_settings, is_free

YAML = "data: {train: rows.jsonl, labels: [benign, malignant]}\nmodel: {backbone: a folder}"


@pytest.fixture
def saved(tmp_path):
    checkpoint.commit(tmp_path, {"identity": {"labels": ["benign", "malignant"]}})
    (tmp_path / checkpoint.SETTINGS_FILE).write_text(to_yaml(settings_from_yaml(YAML)))
    return tmp_path


def _other(value: Any) -> Any:
    """A value that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return {"also": 1} if isinstance(value, dict) else (*value, "also") if isinstance(value, tuple) else "another"


def _fields(tree: Any, name: str = "") -> list[tuple[Any, str, str]]:
    found: list[tuple[Any, str, str]] = []
    for field, value in vars(tree).items():
        dotted = f"{name}.{field}".lstrip(".")
        found += _fields(value, dotted) if is_dataclass(value) else [(tree, field, dotted)]
    return found


def test_every_changed_setting_is_reported_unless_it_is_free(saved):
    unchanged = settings_from_yaml(YAML)
    assert changed_settings(unchanged, saved) == []
    names = [dotted for _, _, dotted in _fields(unchanged)]
    assert {"optim.lr", "objectives.classification.weight", "model.head_dropout", "train.precision"} <= set(names)
    for free in FREE:
        assert any(name == free or name.startswith(f"{free}.") for name in names), f"{free} is no setting"
    for number, name in enumerate(names):
        settings = copy.deepcopy(unchanged)
        tree, field, _ = _fields(settings)[number]
        object.__setattr__(tree, field, _other(getattr(tree, field)))  # some are frozen
        if name == "data.positive_label":
            with pytest.raises(CheckpointError, match=r"data\.positive_label malignant -> another"):
                changed_settings(settings, saved)
        else:
            reported = changed_settings(settings, saved)
            assert [text.split(" ")[0] for text in reported] == ([] if is_free(name) else [name])


def test_a_change_is_reported_with_both_values(saved):
    settings = settings_from_yaml(YAML)
    settings.optim.lr, settings.output_dir = 3e-4, "elsewhere"
    settings.curriculum.stages = [Stage(name="all", epochs=1)]
    rate, stages = sorted(changed_settings(settings, saved), reverse=True)
    assert rate == "optim.lr 0.0001 -> 0.0003"
    assert stages.startswith("curriculum.stages [] -> [{'name': 'all'")


def test_naming_the_default_positive_label_is_no_change(saved):
    settings = settings_from_yaml(YAML)
    settings.data.positive_label = "malignant"
    assert changed_settings(settings, saved) == []
    settings.data.positive_label = "benign"
    with pytest.raises(CheckpointError, match=r"another meaning of its probability: .* malignant -> benign"):
        changed_settings(settings, saved)


def test_unreadable_saved_settings_are_reported(saved):
    (saved / checkpoint.SETTINGS_FILE).write_text("a: [")
    assert "cannot be read" in changed_settings(settings_from_yaml(YAML), saved)[0]
    (saved / checkpoint.SETTINGS_FILE).unlink()
    assert "cannot be read" in changed_settings(settings_from_yaml(YAML), saved)[0]
