"""Frozen layers computed once, as a plan sees them: bytes on the disk, what steps take and gather."""

from __future__ import annotations

import pytest
from plan_cases import STATED

from clsgen_dist.errors import SettingsError
from clsgen_dist.plan.plan import Planner

LAYER = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 11008 + 2 * 4096
"""Elements of a layer of the backbone; the norms stay on every rank."""


@pytest.fixture(scope="module")
def plan(planner, recipe):
    common = {"model__finetune": "lora", "train__cache_frozen_gb": 100}
    return lambda **settings: planner.plan(recipe(**common | settings), nodes=1)


def test_steps_gather_less_by_the_frozen_layers_and_the_embeddings(plan):
    computed = plan(model__top_layers=1)
    assert computed.kept is None and not computed.notes
    kept = plan(model__top_layers=1, train__cache_frozen="on")
    found = kept.kept
    assert (
        found.sequences.number == STATED.rows
        and found.sequences.bytes == STATED.rows * STATED.tokens_per_row * 4096 * 2
    )
    assert found.computed_step_seconds == pytest.approx(computed.stages[0].time.total)
    assert (
        found.step_seconds == pytest.approx(kept.stages[0].time.total)
        and found.step_seconds < found.computed_step_seconds
    )
    norms = 3 * 2 * 4096
    fewer = (3 * LAYER - norms + 32000 * 4096) * 2 * computed.stages[0].micro_steps * 7 / 8
    assert found.computed_gathered_bytes - found.gathered_bytes == pytest.approx(fewer, rel=1e-3)
    assert kept.memory == computed.memory
    # The frozen forward of all rows once, and not in each of two epochs.
    saved = (found.computed_step_seconds - found.step_seconds) * kept.stages[0].steps
    assert found.fill_seconds == pytest.approx(saved / 2, rel=0.25)


def test_with_a_head_alone_next_to_nothing_is_left(plan):
    found = plan(model__finetune="head", train__cache_frozen="on").kept
    each = 2 * 4096 * 2 + 5 * STATED.supervised_per_row
    assert found.sequences.bytes == STATED.rows * each
    assert found.gathered_bytes < found.computed_gathered_bytes / 1000
    assert found.computed_step_seconds > 10 * found.step_seconds


def test_what_forbids_it_is_a_note_with_auto_and_an_error_with_on(plan, recipe, h100):
    (note,) = plan(model__top_layers=1, train__epochs=1, train__cache_frozen="auto").notes
    assert "no sequence comes twice: 10,000 visits of 10,000 sequences" in note
    assert plan(model__top_layers=1, train__cache_frozen="auto").kept
    with pytest.raises(SettingsError, match=r"have 83.9 GB, more than train.cache_frozen_gb 1; raise it to 84.7"):
        plan(model__top_layers=1, train__cache_frozen="on", train__cache_frozen_gb=1)
    with pytest.raises(SettingsError, match="cache_frozen is on, but every layer learns"):
        plan(train__cache_frozen="on")


def test_of_rows_that_are_here_each_explanation_is_a_sequence(h100, smollm2):
    from clsgen_dist.config import parse_settings
    from clsgen_dist.plan.plan import RowAssumptions

    settings = parse_settings(["--train.cache_frozen=auto"], default_config="configs/demo.yaml")
    found = Planner(settings, h100, RowAssumptions()).plan(settings, nodes=1).kept
    assert found.sequences.number == 3 * 256 and found.sequences.bytes == found.sequences.tokens * 576 * 2
