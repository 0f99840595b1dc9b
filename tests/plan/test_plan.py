"""Links, time, faults and the verb."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from transformers import LlamaConfig

from clsgen_dist.cli import main
from clsgen_dist.config import ROOT, parse_settings
from clsgen_dist.errors import SettingsError
from clsgen_dist.plan.cluster import load_cluster
from clsgen_dist.plan.communication import Flow
from clsgen_dist.plan.goodput import Faults, daly, kept_hours, simulate, young
from clsgen_dist.plan.plan import Planner, Stated, advice, search
from clsgen_dist.plan.step_time import attention_flops
from clsgen_dist.plan.workload import stated_workload, workload_of_rows

CLUSTERS = sorted((ROOT / "configs/clusters").glob("*.yaml"))


@pytest.fixture(scope="module")
def h100():
    return load_cluster(ROOT / "configs/clusters/h100.yaml")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """About 1.1 billion parameters in few layers, as a configuration alone."""
    folder = tmp_path_factory.mktemp("billion")
    shape = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 4}
    LlamaConfig(**shape, num_attention_heads=32, num_key_value_heads=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe(backbone):
    def settings(**overrides):
        flags = {
            "data.train": "nowhere.jsonl",
            "model.backbone": backbone,
            "model.finetune": "full",
            "train.micro_batch_tokens": 8192,
            "train.batch_size": 64,
            "train.activation_checkpointing": "false",
            **{k.replace("__", "."): v for k, v in overrides.items()},
        }
        return parse_settings(["--config", "configs/recipe.yaml", *[f"--{k}={v}" for k, v in flags.items()]])

    return settings


STATED = Stated(rows=10_000, tokens_per_row=1024, supervised_per_row=128)


# --- clusters and links


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_shipped_clusters_are_read(path):
    cluster = load_cluster(path)
    assert cluster.gpus_per_node == 8
    assert cluster.between_gb_s < cluster.inside_gb_s < cluster.hbm_gb_s


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tflops": None}, "'tflops' is missing"),
        ({"flops": 1}, "'flops' is not known"),
        ({"memory_gib": "80 GB"}, "memory_gib is '80 GB', expected a number above 0"),
        ({"overlap": 1.5}, "overlap is 1.5, expected a share up to 1"),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_its_field(change, message, h100, tmp_path):
    values = {k: v for k, v in {**dataclasses.asdict(h100), **change}.items() if v is not None}
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps(values))
    with pytest.raises(SettingsError, match=message):
        load_cluster(path)


def test_the_slower_of_nvlink_and_network_bounds_a_collective(h100):
    cluster = dataclasses.replace(h100, latency_us=1e-9, between_gb_s=20)
    inside = Flow("gather forward", 80e9, 1, ranks=8, nodes=1)
    assert inside.seconds(cluster) == pytest.approx(80e9 * 7 / 8 / (h100.inside_gb_s * 1e9))
    across = Flow("gather forward", 80e9, 1, ranks=64, nodes=8)
    assert across.seconds(cluster) == pytest.approx(80e9 * 7 / 8 / (8 * 20e9))
    assert Flow("reduce", 80e9, 1, ranks=1, nodes=1).seconds(cluster) == 0
    assert Flow("reduce", 0, 100, ranks=64, nodes=8).seconds(h100) == pytest.approx(100 * 7.7 * h100.latency_us * 1e-6)


def test_attention_costs_a_triangle_and_in_a_window_a_band():
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=3)
    assert attention_flops(config, [100]) == 3 * 4 * 64 * 100 * 100 / 2
    assert attention_flops(config, [50, 50]) == attention_flops(config, [100]) / 2
    config.layer_types, config.sliding_window = ["sliding_attention"] * 3, 10
    assert attention_flops(config, [100]) == 3 * 4 * 64 * (10 * 10 / 2 + 90 * 10)
    assert attention_flops(config, [8]) == 3 * 4 * 64 * 8 * 8 / 2


# --- what a run asks


def test_stated_rows_are_packed_by_the_code_that_packs_training(recipe):
    work = stated_workload(recipe(train__epochs=3), ranks=6, rows=1000, tokens_per_row=3000, supervised_per_row=100)
    stage = work.stages[0]
    assert (stage.steps, stage.micro_steps) == (47, math.ceil(64 / 2 / 6))  # two rows a micro-batch of 8192
    assert (stage.rows, stage.tokens) == (3000, 3000 * 3000)
    assert stage.fullest == (5 * 6000 + 3000) / 6  # the last micro-step has single rows
    with pytest.raises(SettingsError, match="a row has 9000 tokens"):
        stated_workload(recipe(), ranks=6, rows=1000, tokens_per_row=9000, supervised_per_row=100)


def test_rows_at_hand_give_the_steps_and_tokens_of_the_run(recipe, row_set, mixed):
    from clsgen_dist.engine.rows import Rows
    from clsgen_dist.engine.stream import plan_stream

    rows = Rows(row_set(mixed), None, ["no", "yes"], [])
    settings = recipe(train__batch_size=8, train__epochs=2, train__micro_batch_tokens=256)
    stream = plan_stream(settings, rows, rank=0, world_size=3)
    steps = [stream.step(k) for k in range(stream.steps)]
    work = workload_of_rows(settings, rows, ranks=3)
    stage = work.stages[0]
    assert stage.steps == stream.steps == 11
    assert stage.micro_steps == pytest.approx(np.mean([len(step.batches) for step in steps]))
    lengths = [stream.bins(k)[2] for k in range(stream.steps)]
    assert stage.tokens == pytest.approx(sum(map(np.sum, lengths)))
    every = [s for rank in range(3) for k in range(stream.steps) for s in _shares(settings, rows, rank, k)]
    assert work.supervised_share == pytest.approx(sum(b.supervised for b in every) / sum(map(np.sum, lengths)))


def _shares(settings, rows, rank, step):
    from clsgen_dist.engine.stream import plan_stream

    batches = plan_stream(settings, rows, rank=rank, world_size=3).step(step).batches
    return [batch for batch in batches if batch.supervised or batch.labelled]


# --- the plan


@pytest.fixture(scope="module")
def planner(recipe, h100):
    return Planner(recipe(), h100, STATED)


def test_twice_the_gpus_take_half_the_time_and_hold_half_the_states(planner, recipe):
    one, two = (planner.plan(recipe(), nodes=n) for n in (1, 2))
    assert one.memory.device["optimizer"] == pytest.approx(2 * two.memory.device["optimizer"], rel=0.01)
    assert one.memory.device["activations"] == two.memory.device["activations"]
    assert two.hours == pytest.approx(one.hours / 2, rel=0.15)
    assert one.stages[0].steps == math.ceil(10_000 * 2 / 64)
    assert 0.2 < one.stages[0].mfu < one.cluster.achievable


def test_an_odd_number_of_gpus_is_planned(planner, recipe):
    plan = planner.plan(recipe(), nodes=3, gpus_per_node=5)
    assert plan.ranks == 15
    assert plan.memory.device["optimizer"] == pytest.approx(8 * plan.rehearsal.parameters / 15, rel=0.001)
    with pytest.raises(SettingsError, match="--gpus_per_node is 9, but a node has 8"):
        planner.plan(recipe(), nodes=1, gpus_per_node=9)


def test_what_does_not_fit_is_said_with_changes_that_do(recipe, h100):
    small = dataclasses.replace(h100, memory_gib=24)
    settings = recipe(train__micro_batch_tokens=32768)
    planner = Planner(settings, small, STATED)
    plan = planner.plan(settings, nodes=1)
    assert not plan.fits and plan.spare_bytes < 0
    told = advice(planner, plan)
    assert told and all("fits" in line for line in told)
    assert any("checkpointing" in line for line in told)


def test_the_search_gives_only_what_fits_the_cheapest_first(recipe, h100):
    small = dataclasses.replace(h100, memory_gib=40)
    settings = recipe(train__micro_batch_tokens=32768)
    planner = Planner(settings, small, STATED)
    found = search(planner, planner.plan(settings, nodes=1))
    assert found and all(plan.fits for plan in found)
    cost = [plan.gpu_hours for plan in found]
    assert cost == sorted(cost)
    assert {plan.settings.train.activation_checkpointing for plan in found} == {True, False}


def test_lora_reduces_only_what_it_trains_and_its_checkpoint_is_small(planner, recipe, h100):
    full = planner.plan(recipe(), nodes=2)
    settings = recipe(model__finetune="lora")
    lora = Planner(settings, h100, STATED).plan(settings, nodes=2)
    of_all, of_lora = (sum(f.whole_bytes for f in p.flows if f.kind == "reduce") for p in (full, lora))
    assert of_lora == pytest.approx(2 * lora.rehearsal.trainable * lora.stages[0].micro_steps, rel=0.01)
    assert of_lora < 0.02 * of_all
    assert lora.checkpoint_bytes == 12 * lora.rehearsal.trainable
    assert lora.hours < full.hours


def test_hpz_keeps_gathers_in_the_node_and_costs_a_second_copy(planner, recipe, tmp_path):
    zero = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    # Large weights are let go, so that there is a backward gather at all.
    zero["zero_optimization"].update(stage3_max_reuse_distance=0, stage3_prefetch_bucket_size=10_000_000)
    plans = []
    for name, more in (("plain", {}), ("hpz", {"zero_hpz_partition_size": 8, "zero_quantized_weights": True})):
        zero["zero_optimization"].update(more)
        (tmp_path / f"{name}.json").write_text(json.dumps(zero))
        plans.append(planner.plan(recipe(deepspeed=tmp_path / f"{name}.json"), nodes=4))
    plain, hpz = plans
    assert {f.nodes for f in hpz.flows if f.kind == "gather backward"} == {1}
    assert {f.nodes for f in plain.flows if f.kind == "gather backward"} == {4}
    assert hpz.memory.device["hpZ copy"] == pytest.approx(2 * hpz.rehearsal.parameters / 8, rel=0.001)
    gathered = [sum(f.whole_bytes for f in p.flows if f.kind == "gather forward") for p in plans]
    assert gathered[1] == pytest.approx(gathered[0] / 2, rel=0.001)


# --- faults


def test_without_faults_only_saves_cost(h100):
    faults = Faults(gpus=1, per_gpu_hour=1e-12, restart_hours=1, save_hours=0.1)
    assert kept_hours(faults, 0.9, 100, np.random.default_rng(0)) == pytest.approx(90)


def test_the_simulated_best_interval_is_youngs_and_dalys():
    faults = Faults(gpus=4096, per_gpu_hour=419 / (54 * 24 * 16384), restart_hours=0.2, save_hours=0.02)
    assert faults.mean_hours == pytest.approx(12.4, rel=0.01)
    found = simulate(faults, draws=200)
    assert young(0.02, 12.37) == pytest.approx(0.703, rel=0.01)
    assert found.daly == pytest.approx(daly(0.02, faults.mean_hours))
    # The optimum is flat: the suggested interval loses next to nothing against the best one tried.
    assert found.at(found.daly) > found.best - 0.002
    assert found.young / 2.5 < found.best_interval < found.young * 2.5
    # First order: 1 - δ/τ - τ/2M - R/M.
    expected = 1 - 0.02 / 0.703 - 0.703 / (2 * 12.37) - 0.2 / 12.37
    assert found.at(0.703) == pytest.approx(expected, abs=0.01)
    assert found.goodput[0] < found.best and found.goodput[-1] < found.best


# --- the command


def test_the_verb_prints_and_writes_the_plan(recipe, backbone, tmp_path, capsys):
    main(
        ["plan", "--config", "configs/recipe.yaml", f"--model.backbone={backbone}", "--model.finetune=full",
         "--cluster", "configs/clusters/a100.yaml", "--nodes", "2", "--json", str(tmp_path / "plan.json"),
         "--plot", str(tmp_path / "plan.png"), "--search", "true"]
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "rows/train.jsonl is not at hand" in told and "assumed: 1,000,000 rows of 1024 tokens" in told
    assert "fits:" in told and "best interval, Daly" in told and "that fit, the cheapest first" in told
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["gpus"] == 16 and plan["fits"]
    assert plan["gpu_hours"] == pytest.approx(plan["hours"] * 16)
    total = sum(plan["memory"]["device"].values())
    assert plan["spare_bytes"] == pytest.approx(plan["cluster"]["memory_gib"] * 2**30 - total, abs=1)
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "0"], "--nodes is 0, expected 1 or more"),
        (["--cluster", "h900.yaml"], "'h900.yaml' is not a file"),
        (["--tokens_per_row", "100", "--supervised_per_row", "100"], "--supervised_per_row is 100 of"),
        (["--optim.name", "adamw_8bit", "--deepspeed", "ds_configs/zero3_offload.json"], "cannot be offloaded"),
    ],
)
def test_bad_input_is_one_line_and_status_two(flags, message, backbone, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["plan", "--config", "configs/recipe.yaml", f"--model.backbone={backbone}", *flags])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
