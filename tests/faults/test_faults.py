"""Fault tolerance of a run: real ranks, real signals and kills, at places that the tests choose."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess

import pytest
import torch

from clsgen_dist import checkpoint

pytestmark = pytest.mark.dist

RUN = {
    "data__labels": "[first, second]",
    "data__positive_label": "second",
    "train__epochs": 3, "train__batch_size": 8, "train__micro_batch_tokens": 512, "train__max_steps": 12,
    "train__log_rows": "true", "checkpoint__every": 2, "checkpoint__keep_last": 9, "resume": "auto",
}  # fmt: skip
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def run(recipe, ranks, mixed, tmp_path_factory):
    """``run(output, faults, **overrides)`` on 41 rows of every kind."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    names = {"no": "first", "yes": "second"}
    rows = [row | ({"label": names[row["label"]]} if "label" in row else {}) for row in mixed]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def go(output, faults=(), world=2, request=None, **overrides):
        options = {**RUN, "data__train": path, **overrides}
        return ranks(recipe(output, **options), ranks=world, faults=list(faults), **(request or {}))

    return go


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory):
    """A run without faults."""
    output = tmp_path_factory.mktemp("faults") / "uninterrupted"
    assert run(output).status == [0, 0]
    return output


def numbers(output):
    """Step and tensors of the last checkpoint, by file and name."""
    last = checkpoint.committed(output / "checkpoints")[-1]
    step = checkpoint.verify(last)["state"]["step"]
    files = [torch.load(file, weights_only=False) for file in sorted(last.glob("*_optim_states.pt"))]
    states = [file["optimizer_state_dict"] for file in files]
    adam = [p for state in states for p in state["optimizer_state_dict"]["state"].values()]
    flat = [t for state in states for t in state["fp32_flat_groups"]] + [t for p in adam for t in p.values()]
    return step, flat


def same(output, other):
    """Whether two runs end at one step with the same bits, having visited the same rows."""
    (step, ours), (other_step, theirs) = numbers(output), numbers(other)
    assert step == other_step
    assert (output / "rows.jsonl").read_text() == (other / "rows.jsonl").read_text()
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- preemption


@pytest.mark.parametrize(
    ("fault", "at"),
    [
        pytest.param({"what": "usr2", "step": 5, "rank": 1}, 5, marks=LONG),
        ({"what": "term", "step": 4, "rank": 0, "where": "save:copy", "times": 2}, 4),
    ],
    ids=["USR2 in a step, one rank", "TERM twice during a save"],
)
def test_preempted_ranks_stop_at_the_same_step_and_resume(run, uninterrupted, tmp_path, fault, at):
    output = tmp_path / "run"
    stopped = run(output, [fault])
    assert stopped.status == [75, 75], stopped.text
    assert (
        f"stopped: {'received SIGTERM' if fault['what'] == 'term' else 'another rank received a signal'}:"
        in stopped.logs[0]
    )
    assert [checkpoint.read_marker(c)["state"]["step"] for c in checkpoint.committed(output / "checkpoints")][-1] == at
    assert sorted((output / "checkpoints").glob("step-*")) == checkpoint.committed(output / "checkpoints")
    done = run(output)
    assert done.status == [0, 0] and f"at step {at} of 12" in done.text
    assert same(output, uninterrupted)
    assert [line.get("end") for line in lines(output / "attempts.jsonl")] == [None, "Preempted", None, "done"]


def test_repeated_preemption_before_the_first_step_is_no_progress(run, tmp_path):
    asked = [{"what": "term", "where": "start"}]
    stopped = run(tmp_path / "run", asked)
    assert stopped.status == [75, 75] and "stopped: received SIGTERM before the first step" in stopped.text
    assert not checkpoint.committed(tmp_path / "run/checkpoints")
    assert [run(tmp_path / "run", asked, world=1).status for _ in range(2)] == [[75]] * 2
    refused = run(tmp_path / "run", world=1)
    assert refused.status == [2] and "no progress over 3 starts: all began at step 0" in refused.text
    assert "killed, or stopped before the first step" in refused.text


# --- run lock


def test_a_run_that_lost_its_folder_ends_at_the_next_save_without_writing(run, tmp_path):
    output = tmp_path / "run"
    other = {"token": "other", "job": "7", "restart": 1, "host": "n7", "pid": 7, "born": "7", "time": "now"}
    taken = {"what": "write", "step": 4, "rank": 0, "path": str(output / "owner"), "text": json.dumps(other)}
    lost = run(output, [taken])
    assert lost.status == [2, 2] and "now belongs to job 7, process 7 on n7" in lost.logs[0], lost.text
    steps = [checkpoint.read_marker(c)["state"]["step"] for c in checkpoint.committed(output / "checkpoints")]
    assert max(steps, default=0) <= 2 and not list((output / "checkpoints").glob("step-*4"))
    assert "end" not in lines(output / "attempts.jsonl")[-1]
    assert json.loads((output / "owner").read_text()) == other
    assert run(output).status == [0, 0] and not (output / "owner").exists()  # its process does not exist


# --- killed and hanging ranks, full disks


def test_a_killed_rank_ends_the_job_and_the_resumed_run_is_bit_equal(run, uninterrupted, tmp_path):
    killed = run(tmp_path / "run", [{"what": "kill", "step": 7, "rank": 1}])
    assert killed.status[1] == -9 and killed.status[0] not in (0, 75)
    assert killed.ended[0] - killed.ended[1] < 20
    assert run(tmp_path / "run").status == [0, 0]
    assert same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("what", [{"what": "stop"}, pytest.param({"what": "sleep", "seconds": 100}, marks=LONG)])
def test_a_hanging_rank_ends_the_job_in_time_and_leaves_stack_traces(run, tmp_path, what):
    hung = run(tmp_path / "run", [{**what, "step": 3, "rank": 1}], faults__hang_timeout_s=6)
    assert hung.status[0] == 1 and hung.status[1] != 0
    stacks = (tmp_path / "run/stacks/rank-0.txt").read_text()
    assert "no progress for 6 s" in stacks and "_step" in stacks and "MainThread" not in stacks.split("Thread")[0]
    if what["what"] == "sleep":
        assert "inject.py" in (tmp_path / "run/stacks/rank-1.txt").read_text()


def test_a_run_killed_during_a_save_resumes_from_the_last_committed_checkpoint(run, uninterrupted, tmp_path):
    output = tmp_path / "run"
    for phase in ("save:copy", "save:write", "save:written", "save:marker", "save:committed"):
        killed = run(
            output, [{"what": "kill", "where": phase, "steps": [2, 3, 4], "rank": 0}], faults__max_stuck_starts=9
        )
        assert killed.status[0] == -9, (phase, killed.text)
        newest = checkpoint.newest_valid(output / "checkpoints")
        assert (newest and checkpoint.read_marker(newest)["state"]["step"]) == (
            2 if phase == "save:committed" else None
        )
    again = run(output, faults__max_stuck_starts=9)
    assert again.status == [0, 0], again.text
    assert newest in checkpoint.committed(output / "checkpoints")  # the resumed checkpoint is not deleted
    assert same(output, uninterrupted)


def test_a_full_disk_during_a_save_ends_all_ranks_and_keeps_the_last_checkpoint(run, tmp_path):
    full = run(tmp_path / "run", [{"what": "full", "where": "save:write", "steps": [4, 5, 6], "rank": 1}])
    assert full.status == [2, 2] and "rank 1: OSError: [Errno 28] No space left on device" in full.logs[0]
    newest = checkpoint.newest_valid(tmp_path / "run/checkpoints")
    assert checkpoint.read_marker(newest)["state"]["step"] == 2
    stale = run(tmp_path / "run", [{"what": "stale", "where": "save:write", "steps": [4, 5, 6], "rank": 0}])
    assert stale.status == [1, 1] and "OSError: [Errno 116] Stale file handle" in stale.logs[0]  # may pass: a crash


def test_a_full_disk_during_a_step_is_a_one_line_error(run, tmp_path):
    full = run(tmp_path / "run", [{"what": "full", "step": 3}])
    assert full.status == [2, 2] and "Traceback" not in full.text
    assert f"make room on the disk of {tmp_path}/run" in full.logs[0]


@pytest.mark.parametrize("options", ["size=64m", pytest.param("size=640m,nr_inodes=9", marks=LONG)])
def test_disk_space_for_checkpoints_is_checked_before_the_first_step(run, tmp_path, options):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        refused = run(disk / "run", world=1)
        # One checkpoint of 40 MB would find room, but not those that are kept at once.
        assert refused.status == [2] and "for 7 checkpoints, but it has" in refused.text, refused.text
        assert not (disk / "run/rows.jsonl").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_restarts_without_progress_end_with_the_reason(run, tmp_path):
    fault = [{"what": "raise", "step": 2}]
    assert [run(tmp_path / "run", fault).status for _ in range(3)] == [[1, 1]] * 3
    stopped = run(tmp_path / "run", fault, world=1)
    assert stopped.status == [2]
    assert (
        "no progress over 3 starts: all began at step 0" in stopped.text
        and "after step 1: a fault that a test asked for" in stopped.text
    )


# --- ranks that do not start, and stragglers


def test_a_rank_that_never_starts_is_named_after_the_timeout(run, tmp_path):
    alone = run(tmp_path / "run", request={"only": [0]}, faults__rendezvous_timeout_s=3)
    assert alone.status == [1] and "ranks 1 of 2 timed out after 3 s" in alone.text
    other = run(tmp_path / "run", request={"only": [1]}, faults__rendezvous_timeout_s=3)
    assert other.status == [1] and "rank 1 on" in other.text and "did not reach rank 0" in other.text


def test_a_port_in_use_is_named(run, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run(tmp_path / "run", request={"port": port}, faults__rendezvous_timeout_s=3)
    assert 0 not in ended.status and f"rank 0 cannot listen on 127.0.0.1:{port}" in ended.logs[0]


@LONG
def test_a_straggler_is_named(run, tmp_path):
    slow = [{"what": "sleep", "seconds": 0.3, "rank": 1}]
    done = run(tmp_path / "run", slow, train__batch_size=2, train__max_steps=41, checkpoint__every="null")
    assert done.status == [0, 0]
    ((straggler,),) = [line["stragglers"] for line in lines(tmp_path / "run/stragglers.jsonl")]
    assert straggler["rank"] == 1 and straggler["extra_busy_s"] > 0.2 * straggler["step_s"]
    assert straggler["text"].startswith(f"rank 1 on {socket.gethostname()} is busy 0.")
    assert f"straggler: {straggler['text']}" in done.logs[0]


# --- skipped steps and rollbacks


def test_bad_steps_are_skipped_on_all_ranks_and_their_rows_logged(run, tmp_path):
    faults = [
        {"what": "nan_loss", "step": 3, "rank": 1},
        {"what": "nan_grad", "step": 5, "rank": 0},
        {"what": "spike", "step": 24, "rank": 1},
    ]
    options = {"train__batch_size": 2, "train__max_steps": 26, "checkpoint__every": "null"}
    done = run(tmp_path / "run", faults, **options)
    assert done.status == [0, 0], done.text
    skipped, visited = lines(tmp_path / "run/skipped.jsonl"), lines(tmp_path / "run/rows.jsonl")
    assert [line["step"] for line in skipped] == [3, 5, 24]
    assert [line["code"] for line in skipped] == ["non-finite-loss", "non-finite-gradient", "loss-spike"]
    assert (skipped[0]["term"], skipped[0]["loss"]) == ("generation", "nan") and skipped[2]["loss"] > skipped[2][
        "limit"
    ]
    first, second, third = (line["reason"] for line in skipped)
    assert (first, second) == ("the generation loss is nan", "a gradient is not finite") and "more than the" in third
    assert [line["rows"] for line in skipped] == [visited[k]["rows"] for k in (2, 4, 23)]
    marker = checkpoint.read_marker(checkpoint.committed(tmp_path / "run/checkpoints")[-1])
    assert marker["state"]["spikes"]["skipped"] == 3 and marker["state"]["spikes"]["rollbacks"] == 0
    assert all(torch.isfinite(t).all() for t in numbers(tmp_path / "run")[1] if torch.is_floating_point(t))


def test_too_many_skipped_steps_in_a_row_roll_back_and_skip_the_data(run, tmp_path):
    faults = [{"what": "nan_loss", "steps": [5, 6, 7], "rank": 1}]
    truth = run(tmp_path / "truth", faults)
    assert (
        truth.status == [0, 0]
        and "weights and optimizer rolled back to step-00000004; the data continues" in truth.text
    )
    assert [line["step"] for line in lines(tmp_path / "truth/rows.jsonl")] == list(range(1, 13))
    killed = run(tmp_path / "run", [*faults, {"what": "kill", "step": 10, "rank": 0}])
    assert killed.status[0] == -9
    assert run(tmp_path / "run", faults).status == [0, 0]
    assert same(tmp_path / "run", tmp_path / "truth")


def test_a_run_that_keeps_diverging_ends_and_logs_its_rows(run, tmp_path):
    ended = run(tmp_path / "run", [{"what": "nan_loss", "steps": list(range(5, 30)), "rank": 1}], train__max_steps=15)
    assert ended.status == [2, 2]
    assert "after 2 rollbacks to a checkpoint" in ended.logs[0] and "skipped.jsonl" in ended.logs[0]
    assert [line["step"] for line in lines(tmp_path / "run/skipped.jsonl")] == list(range(5, 14))


@pytest.mark.long
def test_stopping_after_a_stage_and_resuming_is_bit_equal(run, tmp_path):
    stages = "[{name: easy, steps: 3, difficulty: [0, 0.6]}, {name: all, steps: 5, lr_factor: 0.5}]"
    options = {"curriculum__stages": stages, "train__max_steps": "null", "checkpoint__every": "null"}
    assert run(tmp_path / "truth", **options).status == [0, 0]
    assert run(tmp_path / "run", **options, train__stop_at_stage="easy").status == [0, 0]
    assert checkpoint.committed(tmp_path / "run/checkpoints")[-1].name == "step-00000003"
    assert run(tmp_path / "run", **options, train__stop_at_stage="all").status == [0, 0]
    assert same(tmp_path / "run", tmp_path / "truth")
    refused = run(tmp_path / "other", **options, train__stop_at_stage="hard")
    assert refused.status == [2, 2] and "expected one of the curriculum's stages ['easy', 'all']" in refused.text


# --- loss spikes of each head, other ranks, other settings


def test_switching_between_labelled_and_explained_rows_is_no_loss_spike(run, tmp_path):
    """Labels cost 0.7 nats a row, explanations 11 a token: neither a mixture nor a stage of the other is a fault."""
    path = tmp_path / "rows.jsonl"
    labelled = [{"text": f"row {n}", "label": ("first", "second")[n % 2]} for n in range(40)]
    explained = [{"text": f"text {n}", "explanation": f"because of {n}"} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled + explained))
    options = {"data__train": path, "train__batch_size": 1, "train__max_steps": "null", "train__epochs": 1}
    done = run(tmp_path / "run", world=1, objectives__generation__weight=4, checkpoint__every="null", **options)
    assert done.status == [0] and "left out" not in done.text
    assert len(lines(tmp_path / "run/rows.jsonl")) == 48


@pytest.mark.long
@pytest.mark.long
def test_rollback_works_after_a_change_of_ranks(run, tmp_path):
    bad = [{"what": "nan_loss", "steps": [5, 6, 7], "rank": 0}]
    for before, after in ((2, 1), (1, 2)):
        output = tmp_path / f"{before}-{after}"
        assert run(output, world=before, train__max_steps=4).status == [0] * before
        done = run(output, bad, world=after, checkpoint__every=50)
        assert done.status == [0] * after, done.text
        assert "weights and optimizer rolled back to step-00000004" in done.text
        assert [line["step"] for line in lines(output / "skipped.jsonl")] == [5, 6, 7]


@pytest.mark.long
def test_rollback_after_preemption_during_skipped_steps_uses_an_earlier_checkpoint(run, tmp_path):
    bad = [{"what": "nan_grad", "steps": [5, 6, 7], "rank": 0}]
    stopped = run(tmp_path / "run", [*bad, {"what": "usr2", "step": 6, "rank": 1}])
    assert stopped.status == [75, 75]
    done = run(tmp_path / "run", bad)
    assert done.status == [0, 0] and "step 7: weights and optimizer rolled back to step-00000004" in done.text
    assert [line["step"] for line in lines(tmp_path / "run/skipped.jsonl")] == [5, 6, 7]


def test_nothing_is_saved_before_the_first_update(run, tmp_path):
    bad = [{"what": "nan_grad", "step": 1, "rank": 0}]
    stopped = run(tmp_path / "run", [*bad, {"what": "usr2", "step": 1, "rank": 1}])
    assert stopped.status == [75, 75] and "before the first update: nothing to save" in stopped.text
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))
    assert run(tmp_path / "run", bad, world=1).status == [0]


@pytest.mark.long
def test_resume_from_an_earlier_checkpoint_needs_overwrite(run, uninterrupted, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(uninterrupted, output)
    third = output / "checkpoints/step-00000006"
    checkpoint.begin_folder(output / "checkpoints/step-00000099")  # a save that is killed
    refused = run(output, resume=third)
    assert refused.status == [2, 2] and "holds 3 checkpoints, up to step-00000012" in refused.text
    stopped = run(output, [{"what": "usr2", "step": 8, "rank": 0}], resume=third, overwrite="true")
    assert stopped.status == [75, 75], stopped.text
    kept = sorted(p.name for p in (output / "checkpoints").glob("step-*"))
    assert kept == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    assert run(output).status == [0, 0] and same(output, uninterrupted)


@pytest.mark.parametrize(
    ("first", "then", "world", "expected"),
    [
        ({"optim__name": "adamw_8bit"}, {}, 1, "the state of adamw_8bit cannot be resharded"),
        ({"optim__name": "adamw"}, {"optim__name": "adamw_8bit"}, 2, "optimizer was 'adamw' and is now 'adamw_8bit'"),
        ({"model__finetune": "lora"}, {"model__lora_rank": 8}, 2, "lora was [4, 32] and is now (8, 32)"),
    ],
    ids=["8-bit state on other ranks", "another optimizer", "another LoRA rank"],
)
def test_resume_with_another_optimizer_or_lora_rank_is_refused_in_one_line(run, tmp_path, first, then, world, expected):
    assert run(tmp_path / "run", train__max_steps=2, **first).status == [0, 0]
    refused = run(tmp_path / "run", world=world, **first | then)
    assert refused.status == [2] * world and expected in refused.text and "Traceback" not in refused.text


def test_dev_rows_of_one_class_cannot_select_the_best_checkpoint(run, tmp_path):
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps({"text": "one", "label": "first"}) + "\n")
    options = {"data__dev": dev, "train__eval_every": 1, "train__max_steps": 3}
    refused = run(tmp_path / "patient", world=1, **options, train__early_stop_patience=2)
    assert refused.status == [2] and "best_metric is auroc, but the labelled dev rows" in refused.text
    done = run(tmp_path / "run", world=1, **options)
    assert done.status == [0] and "Until then the last checkpoint counts as the best" in done.text


def test_best_so_far_is_reset_when_best_metric_changes(run, tmp_path):
    dev = tmp_path / "dev.jsonl"
    dev.write_text(
        "".join(json.dumps({"text": f"row {n}", "label": ["first", "second"][n % 2]}) + "\n" for n in range(8))
    )
    options = {"data__dev": dev, "train__eval_every": 2, "train__early_stop_patience": 9}
    assert run(tmp_path / "run", world=1, **options, train__max_steps=4, train__best_metric="nll").status == [0]
    done = run(tmp_path / "run", world=1, **options, train__max_steps=6, train__best_metric="f1")
    assert done.status == [0] and "is now by f1@" in done.text and "best-so-far reset" in done.text
    marker = checkpoint.read_marker(checkpoint.committed(tmp_path / "run/checkpoints")[-1])
    assert marker["state"]["best_step"] == 6 and 0 <= marker["state"]["best_value"] <= 1


def test_rows_without_any_weighted_loss_are_refused(run, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"row {n}", "label": ["first", "second"][n % 2]}) + "\n" for n in range(9))
    )
    refused = run(tmp_path / "run", world=1, data__train=path, objectives__classification__weight=0)
    assert refused.status == [2] and "9 of 9 rows have a label and 0 an explanation" in refused.text
