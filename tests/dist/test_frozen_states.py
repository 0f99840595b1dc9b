"""Frozen layers computed once, on real ranks: the same losses, nothing frozen called or gathered, kills and resumes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from clsgen_dist import checkpoint
from clsgen_dist.data.demos.breast_cancer import demo_file

pytestmark = [pytest.mark.dist, pytest.mark.slow]

LAYER = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
"""Bytes of a layer of the tiny backbone."""
EMBEDDINGS = 4 * 49152 * 64


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """20 rows of the demo: with one explanation, two, or none, so that not all sequences come again alike."""
    found = [json.loads(line) for line in demo_file("train").read_text().splitlines()[:20]]
    for number, row in enumerate(found):
        row["explanations"] = row["explanations"][: 1 + (number % 5 == 0)] if number % 7 else []
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


def _run(rows: Path, mode: str, **more):
    """Eight steps: four of one pass, with shorter prompts, and four of several, some of them by a rank without rows."""
    return {
        "data__train": rows, "model__finetune": "lora", "model__top_layers": 2, "train__batch_size": 9,
        "train__micro_batch_tokens": 150, "checkpoint__every": 4, "train__cache_frozen": mode,
        "curriculum__stages": "[{name: short, steps: 4, max_prompt_length: 52, micro_batch_tokens: 512}, "
        "{name: all, steps: 4}]", **more,
    }  # fmt: skip


def _steps(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(f"{path}.0").read_text().splitlines()]


@pytest.fixture(scope="module")
def counted(ranks, recipe, tmp_path_factory):
    """``counted(name, ranks=2, faults=(), **settings)``: a run's folder, its steps and what it said."""
    root = tmp_path_factory.mktemp("frozen")

    def run(name: str, count: int = 2, faults=(), **settings):
        output, counts = root / name, root / f"{name}-steps"
        counts.with_name(f"{counts.name}.0").unlink(missing_ok=True)
        done = ranks(
            recipe(output, **settings), ranks=count, faults=[{"what": "count", "path": str(counts)}, *faults], timeout=120
        )
        return output, _steps(counts) if Path(f"{counts}.0").exists() else [], done

    return run


@pytest.fixture(scope="module")
def plain(counted, rows):
    _, steps, done = counted("plain", **_run(rows, "off"))
    assert set(done.status) == {0}, done.text[-4000:]
    return steps


@pytest.fixture(scope="module")
def kept(counted, rows):
    output, steps, done = counted("kept", **_run(rows, "on", train__stop_at_stage="all"))
    assert set(done.status) == {0}, done.text[-4000:]
    return output, steps, done


def test_the_losses_and_gradients_are_the_same(plain, kept):
    assert len(plain) == len(kept[1]) == 8 and not any(step["known"] for step in plain)
    assert all(step["known"] for step in kept[1])
    for key in ("loss", "norm"):
        assert [step[key] for step in kept[1]] == pytest.approx([step[key] for step in plain], rel=1e-6)


def test_frozen_layers_are_neither_called_nor_gathered(plain, kept):
    passes = [step["micro_steps"] for step in plain]
    assert passes[:4] == [1] * 4 and min(passes[4:]) > 1
    for step, other, micro_steps in zip(plain, kept[1], passes, strict=True):
        assert step["calls"] == dict.fromkeys(["0", "1", "2", "3", "embeddings"], micro_steps)
        assert other["calls"] == dict.fromkeys(["2", "3"], micro_steps)
    # Once ZeRO-3 has recorded the order of modules, it gathers what they need.
    for at in (2, 3):
        assert 2 * LAYER <= plain[at]["gathered"] - kept[1][at]["gathered"] < 2 * LAYER + 1000  # and the class head, once


def test_nothing_is_left_on_the_disk_at_the_end(kept):
    output, _, done = kept
    assert "computing the states of" in done.text and not (output / "frozen_states").exists()


def test_a_run_that_is_over_computes_nothing_when_it_is_resumed(kept, counted, rows):
    _, steps, done = counted("kept", 1, **_run(rows, "on", resume="auto"))
    assert set(done.status) == {0} and not steps and "resumed from" in done.text, done.text[-4000:]
    assert "computing the states of" not in done.text


@pytest.mark.long
def test_states_stay_for_the_stages_to_come(counted, rows):
    output, steps, done = counted("stage", **_run(rows, "on", train__stop_at_stage="short"))
    assert set(done.status) == {0} and len(steps) == 4, done.text[-4000:]
    assert (output / "frozen_states/states.bin").exists()
    _, steps, done = counted("stage", **_run(rows, "on", resume="auto"))
    assert set(done.status) == {0} and len(steps) == 4 and "computing the states of" not in done.text
    assert not (output / "frozen_states").exists()


@pytest.mark.long
def test_killed_while_filling_and_while_training_it_goes_on_with_what_is_there(kept, counted, rows):
    killed = [{"what": "kill", "where": "frozen", "after": 9, "rank": 1}]
    output, steps, done = counted("killed", faults=killed, **_run(rows, "on"))
    assert done.status[1] == -signal.SIGKILL and not steps
    assert (output / "frozen_states/cache.json").exists()
    killed = [{"what": "kill", "step": 7, "rank": 1}]
    _, _, done = counted("killed", faults=killed, **_run(rows, "on", resume="auto"))
    assert done.status[1] == -signal.SIGKILL and checkpoint.committed(output / "checkpoints")
    said = next(line for line in done.text.splitlines() if "computing the states of" in line)
    there = int(said.rpartition("(")[2].split()[0])
    assert there >= 9, said
    # One rank goes on where two were killed; bytes on the disk are wrong by then, and all of them later.
    with (output / "frozen_states/states.bin").open("r+b") as file:
        file.write(b"\xff" * 64)
    damaged = [{"what": "damage", "step": 5, "path": str(output / "frozen_states/states.bin")}]
    _, steps, done = counted("killed", 1, faults=damaged, **_run(rows, "on", resume="auto"))
    assert set(done.status) == {0}, done.text[-4000:]
    assert "computing the states of 1 sequences" in done.text and "resumed from" in done.text
    expected = kept[1][-len(steps) :]
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in expected], rel=2e-6)
    assert "are not whole: the step is computed from tokens" in done.text
    by_tokens = [step for step in steps if not step["known"]]
    assert 0 < len(by_tokens) < len(steps) and all("0" in step["calls"] for step in by_tokens)


def test_with_a_head_alone_no_layer_is_called_and_no_lm_head_is_gathered(counted, rows):
    head = {"model__finetune": "head", "model__top_layers": "null", "model__decide": "both", "model__head_dropout": 0.1,
            "data__dev": "few", "train__eval_every": 3}  # fmt: skip
    _, plain, done = counted("head-plain", **_run(rows, "off", **head))
    assert set(done.status) == {0}, done.text[-4000:]
    _, steps, done = counted("head", **_run(rows, "on", **head))
    assert set(done.status) == {0}, done.text[-4000:]
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in plain], rel=1e-6)
    assert [step["norm"] for step in steps] == pytest.approx([step["norm"] for step in plain], rel=1e-6)
    assert all(step["known"] and not step["calls"] for step in steps)
    assert min(step["gathered"] for step in plain) > EMBEDDINGS
    assert max(step["gathered"] for step in steps) < EMBEDDINGS / 100


@pytest.mark.long
@pytest.mark.parametrize("finetune", ["lora", "head"])
def test_with_an_lm_head_in_shards_the_losses_are_those_of_a_gathered_one_without_kept_states(counted, rows, finetune):
    more = {"model__finetune": finetune, "model__top_layers": "null" if finetune == "head" else 2}
    _, plain, done = counted(f"gathered-{finetune}", **_run(rows, "off", objectives__lm_head="gathered", **more))
    assert set(done.status) == {0}, done.text[-4000:]
    _, steps, done = counted(f"sharded-{finetune}", **_run(rows, "on", objectives__lm_head="sharded", **more))
    assert set(done.status) == {0}, done.text[-4000:]
    assert len(plain) == len(steps) == 8 and all(step["known"] for step in steps)
    for key in ("loss", "norm"):
        assert [step[key] for step in steps] == pytest.approx([step[key] for step in plain], rel=1e-6)
    assert max(step["gathered"] for step in steps) < EMBEDDINGS < min(step["gathered"] for step in plain)


@pytest.mark.long
def test_settings_that_forbid_it_are_refused_with_on_and_named_with_auto(counted, rows):
    _, _, done = counted("refused", **_run(rows, "on", train__cache_frozen_gb=1e-6))
    assert set(done.status) == {2} and "more than train.cache_frozen_gb 1e-06; raise it to" in done.text
    _, steps, done = counted("auto", **_run(rows, "auto", train__max_steps=1, curriculum__stages="[]"))
    assert set(done.status) == {0} and not steps[0]["known"]
    assert "computed in every step, as no sequence comes twice" in done.text
