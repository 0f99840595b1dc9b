"""Links, time, faults and the verb."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import yaml
from transformers import GPT2Config, LlamaConfig, MistralConfig

from clsgen_dist.cli import main
from clsgen_dist.config import SHIPPED, parse_settings
from clsgen_dist.data.pack import pack
from clsgen_dist.errors import SettingsError
from clsgen_dist.plan import report
from clsgen_dist.plan.advice import advice, search
from clsgen_dist.plan.cluster import load_cluster
from clsgen_dist.plan.communication import Flow
from clsgen_dist.plan.goodput import FLAT, Faults, daly, goodput, kept_share, young
from clsgen_dist.plan.plan import Planner, Stated
from clsgen_dist.plan.step_time import attention_flops
from clsgen_dist.plan.workload import _fullest, _fullest_alike, stated_workload, workload_of_rows

CLUSTERS = sorted((SHIPPED / "configs/clusters").glob("*.yaml"))


@pytest.fixture(scope="module")
def h100():
    return load_cluster(SHIPPED / "configs/clusters/h100.yaml")


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
    assert 5 < cluster.peak(2) / cluster.peak(4) < 20  # bf16 on tensor cores, fp32 without


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tflops": None}, "'tflops' is missing"),
        ({"flops": 1}, "'flops' is not known"),
        ({"memory_gib": "80 GB"}, "memory_gib is '80 GB', expected a number above 0"),
        ({"memory_gib": math.inf}, "memory_gib is inf, expected a finite number"),
        ({"gpus_per_node": 2.5}, "gpus_per_node is 2.5, expected a whole number"),
        ({"name": 5}, "name is 5, expected text"),
        ({"overlap": 1.5}, "overlap is 1.5, expected a share up to 1"),
        ({"tflops": -1}, "tflops is -1, expected a number above 0"),
        ({"tflops": math.nan}, "tflops is nan, expected a number above 0"),
        ({"reserved_gib": 200.0}, "reserved_gib is 200.0, expected less than memory_gib, 79.1"),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_its_field(change, message, h100, tmp_path):
    values = {k: v for k, v in {**dataclasses.asdict(h100), **change}.items() if v is not None}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(SettingsError, match=message):
        load_cluster(path)


def test_a_constant_that_is_there_twice_is_refused(h100, tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(h100), sort_keys=False) + "tflops: 1\n")
    with pytest.raises(SettingsError, match=r"cluster.yaml: 'tflops' is there twice, in lines 5 and \d+; keep one"):
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
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    for window in (10, None):  # Mistral does not say which layers have the window: all of them
        config = MistralConfig(**shape, sliding_window=window)
        seen = 10 if window else 100
        assert attention_flops(config, [100]) == 3 * 4 * 64 * (seen * seen / 2 + (100 - seen) * seen)


# --- what a run asks


def test_stated_rows_are_packed_by_the_code_that_packs_training(recipe):
    work = stated_workload(recipe(train__epochs=3), ranks=6, rows=1000, tokens_per_row=3000, supervised_per_row=100)
    stage = work.stages[0]
    assert (stage.steps, stage.micro_steps) == (47, math.ceil(64 / 2 / 6))  # two rows a micro-batch of 8192
    assert (stage.rows, stage.tokens) == (3000, 3000 * 3000)
    assert stage.fullest == (5 * 6000 + 3000) / 6  # the last micro-step has single rows
    with pytest.raises(SettingsError, match="a row has 9000 tokens"):
        stated_workload(recipe(), ranks=6, rows=1000, tokens_per_row=9000, supervised_per_row=100)


@pytest.mark.parametrize(("rows", "length", "ranks"), [(64, 3000, 6), (64, 4097, 100), (7, 10, 3), (500, 2000, 16)])
def test_rows_of_one_length_need_no_packing(rows, length, ranks):
    length_B = np.full(rows, length)
    packed = _fullest(pack(length_B, budget=8192, ranks=ranks), length_B)
    assert _fullest_alike(rows, length, budget=8192, ranks=ranks) == packed


def test_rows_at_hand_give_the_steps_and_tokens_of_the_run(recipe, row_dataset, mixed):
    from clsgen_dist.training.datasets import Datasets
    from clsgen_dist.training.sampling_plan import plan_stream

    rows = Datasets(row_dataset(mixed), None, ["no", "yes"], [])
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
    # With more ranks than rows in a step, the others have nothing; a million of them cost no more to plan.
    assert workload_of_rows(settings, rows, ranks=10**6) == workload_of_rows(settings, rows, ranks=8)
    assert work.supervised_share == pytest.approx(sum(b.supervised for b in every) / sum(map(np.sum, lengths)))


def _shares(settings, rows, rank, step):
    from clsgen_dist.training.sampling_plan import plan_stream

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


def tight(h100, plan, *, gpu=0.0, host=0.0):
    """The cluster with so many bytes less on a GPU, or on a host, than the plan needs."""
    needed = plan.memory.host_total * plan.gpus_per_node / 0.9
    return dataclasses.replace(
        h100,
        memory_gib=(plan.memory.device_total - gpu) / 2**30 if gpu else h100.memory_gib,
        host_memory_gib=(needed - host) / 2**30 if host else h100.host_memory_gib,
    )


def advised(cluster, settings, nodes=1):
    planner = Planner(settings, cluster, STATED)
    plan = planner.plan(settings, nodes=nodes)
    assert not plan.fits
    return advice(planner, plan)


def test_advice_changes_one_thing_where_one_is_enough(recipe, h100):
    small = dataclasses.replace(h100, memory_gib=24)
    settings = recipe(train__micro_batch_tokens=32768)
    told = advised(small, settings)
    assert told and all("fits" in line for line in told)
    assert any(line.startswith("train.activation_checkpointing true: fits") for line in told)
    assert not any(" and train." in line for line in told)
    assert not any("nodes" in line for line in told)  # activations do not shrink with nodes


def test_advice_names_both_where_two_are_needed(recipe, h100):
    long = dataclasses.replace(STATED, tokens_per_row=8000)  # no smaller micro-batch holds a row
    both = Planner(recipe(), h100, long).plan(recipe(train__activation_checkpointing="true"), nodes=8)
    planner = Planner(recipe(), tight(h100, both, gpu=-1e8), long)
    told = advice(planner, planner.plan(recipe(), nodes=1))
    assert told[0] == "no single change suffices; two together do:"
    nodes = next(line for line in told if " and " in line and line.split(" and ")[1].split()[1].startswith("nodes"))
    assert nodes.startswith("train.activation_checkpointing true and ")
    fewest = int(nodes.split(" and ")[1].split()[0])
    settings = recipe(train__activation_checkpointing="true")
    assert planner.plan(settings, nodes=fewest).fits and not planner.plan(settings, nodes=fewest - 1).fits
    assert all(" and " in line for line in told[1:])


def test_advice_names_the_fewest_nodes_not_a_power_of_two(recipe, h100):
    on_six = Planner(recipe(), h100, STATED).plan(recipe(), nodes=6)
    told = advised(tight(h100, on_six, gpu=-1e6), recipe())
    assert any(line.startswith("6 nodes: fits") for line in told)


def test_advice_names_smaller_optimizer_states_and_smaller_weights(recipe, h100):
    eight = recipe(optim__name="adamw_8bit")
    plan = Planner(eight, h100, STATED).plan(eight, nodes=1)
    assert any(
        line.startswith("optim.name adamw_8bit: fits") for line in advised(tight(h100, plan, gpu=-1e6), recipe())
    )
    four = recipe(model__finetune="lora", model__load_in_4bit="true")
    plan = Planner(four, h100, STATED).plan(four, nodes=1)
    told = advised(tight(h100, plan, gpu=-1e6), recipe(model__finetune="lora"))
    assert any(line.startswith("model.load_in_4bit true: fits") for line in told)


def test_advice_says_what_comes_nearest_where_nothing_suffices(recipe, h100):
    told = advised(dataclasses.replace(h100, memory_gib=3, reserved_gib=2.5), recipe())
    assert told[0] == "no single change suffices, nor do two; the nearest:"
    assert all("GiB too much for a GPU still" in line for line in told[1:])


def test_advice_frees_the_host_where_the_host_is_short(recipe, h100):
    settings = recipe(deepspeed="ds_configs/zero3_offload.json", optim__name="cpu_adamw")
    plan = Planner(settings, h100, STATED).plan(settings, nodes=1)
    told = advised(tight(h100, plan, host=1e9), settings)
    assert any(line.startswith("ds_configs/zero3.json with adamw (nothing on the host): fits") for line in told)
    assert any(line.startswith("checkpoint.asynchronous false") for line in told)
    assert any(line.startswith("2 nodes: fits") for line in told)


@pytest.fixture(scope="module")
def staged(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("staged") / "recipe.yaml"
    text = (SHIPPED / "configs/recipe.yaml").read_text()
    stages = [{"name": "short", "epochs": 1, "micro_batch_tokens": 65536}, {"name": "all", "epochs": 1}]
    path.write_text(text + "\n" + yaml.safe_dump({"curriculum": {"stages": stages}}))
    flags = ["--data.train=nowhere.jsonl", f"--model.backbone={backbone}", "--model.finetune=full",
             "--train.micro_batch_tokens=16384", "--train.batch_size=64"]  # fmt: skip
    return parse_settings(["--config", str(path), *flags])


def test_a_stage_with_a_micro_batch_of_its_own_is_capped_by_name(staged, h100):
    long = dataclasses.replace(STATED, tokens_per_row=16384)
    planner = Planner(staged, h100, long)
    plan = planner.plan(staged, nodes=1)
    assert plan.workload.budget == 65536
    short = Planner(staged, tight(h100, plan, gpu=5e9), long)
    told = advice(short, short.plan(staged, nodes=1))
    assert any(line.startswith("micro_batch_tokens of stage 'short' 32768: fits") for line in told)
    found = search(planner, plan)
    assert found
    for other in found:
        budgets = {other.settings.train.micro_batch_tokens, other.settings.curriculum.stages[0].micro_batch_tokens}
        assert other.workload.budget == max(budgets)
    assert {other.workload.budget for other in found} == {16384, 32768, 65536}


def test_the_search_gives_only_what_fits_the_cheapest_first(recipe, h100):
    small = dataclasses.replace(h100, memory_gib=40)
    settings = recipe(train__micro_batch_tokens=32768)
    planner = Planner(settings, small, STATED)
    found = search(planner, planner.plan(settings, nodes=1))
    assert found and all(plan.fits for plan in found)
    cost = [plan.gpu_hours for plan in found]
    assert cost == sorted(cost)
    assert {plan.settings.train.activation_checkpointing for plan in found} == {True, False}
    assert {plan.nodes for plan in found} >= {1, 2, 3, 4}


def test_the_search_has_the_recipe_itself_if_it_fits(recipe, h100):
    long = Stated(rows=10_000, tokens_per_row=70_001, supervised_per_row=128)  # longer than any budget tried by rote
    settings = recipe(train__micro_batch_tokens=90_000, train__activation_checkpointing="true")
    planner = Planner(settings, h100, long)
    plan = planner.plan(settings, nodes=5)
    assert plan.fits
    found = search(planner, plan)
    assert [p.nodes for p in found if p.settings == settings and p.nodes == 5] == [5]
    assert {p.nodes for p in found} >= {4, 5, 6}


def test_what_barely_fits_is_said_to(planner, recipe, h100):
    plan = planner.plan(recipe(), nodes=2)
    assert report.verdict(plan).startswith("fits: ")
    close = dataclasses.replace(plan, cluster=tight(h100, plan, gpu=-1e9))
    assert report.verdict(close).startswith("fits, barely: 0.9 GiB of ") and "27% more than planned" in report.verdict(
        close
    )


# --- what takes its time besides products and links


def test_a_small_micro_batch_waits_for_the_host_to_start_its_kernels(recipe, h100):
    short = [
        Planner(recipe(), h100, dataclasses.replace(STATED, tokens_per_row=tokens, supervised_per_row=1)).plan(
            recipe(train__micro_batch_tokens=tokens, train__batch_size=8), nodes=1
        )
        for tokens in (16, 32)
    ]
    launches = short[0].rehearsal.launches
    assert launches == short[1].rehearsal.launches > 4 * 30  # four layers of norms, products, rotations, activations
    assert 0.2 * launches < short[0].rehearsal.forward_launches < 0.5 * launches
    for plan in short:
        assert plan.stages[0].time.compute == pytest.approx(
            plan.stages[0].micro_steps * launches * h100.launch_us * 1e-6
        )


def test_an_offloaded_optimizer_takes_what_has_been_measured(recipe, h100):
    settings = recipe(deepspeed="ds_configs/zero3_offload.json", optim__name="cpu_adamw")
    plan = Planner(settings, h100, STATED).plan(settings, nodes=1)
    time, trained, steps = plan.stages[0].time, plan.rehearsal.trainable, plan.stages[0].micro_steps
    assert time.optimizer == pytest.approx(trained / 2.0e9)
    gathered = sum(flow.whole_bytes for flow in plan.flows if flow.kind.startswith("gather")) / 8
    assert time.offload - gathered / (h100.pcie_gb_s * 1e9) == pytest.approx(2 * trained / 8 * (steps + 1) / 2.0e9)
    # ZenFlow's blog: Llama 2 7B on 4 A100 went from 0.5 s a step to over 7.
    whole = 6.74e9 / 2.0e9 + 2 * 6.74e9 / 4 * 2 / 2.0e9
    assert 6.5 < whole + 0.5 < 12


def test_four_bit_weights_are_unpacked_at_each_use(recipe, h100):
    lora = recipe(model__finetune="lora", train__activation_checkpointing="true")
    four = recipe(model__finetune="lora", train__activation_checkpointing="true", model__load_in_4bit="true")
    plain, packed = (Planner(s, h100, STATED).plan(s, nodes=1) for s in (lora, four))
    more = packed.stages[0].time.compute - plain.stages[0].time.compute
    read = 3 * packed.rehearsal.quantised / 80e9
    assert more == pytest.approx(packed.stages[0].micro_steps * read, rel=1e-6)


# --- what is used, and what is odd


def test_idle_ranks_lower_the_utilisation_and_are_said(planner, recipe):
    busy = planner.plan(recipe(), nodes=8)  # 64 rows, 64 ranks
    idle = planner.plan(recipe(), nodes=16)
    assert not busy.notes
    assert idle.notes == [
        "a step has 64 rows for 128 ranks, so 64 of them idle; raise train.batch_size, or take fewer nodes"
    ]
    rate = [plan.stages[0].mfu / (plan.stages[0].tokens_per_second / plan.ranks) for plan in (busy, idle)]
    assert rate[0] == pytest.approx(rate[1])  # FLOPs of a token do not depend on who is idle
    assert idle.stages[0].mfu < 0.6 * busy.stages[0].mfu


def test_fp32_is_timed_at_its_own_peak(recipe, h100):
    settings = recipe(train__precision="fp32")
    wide, narrow = (Planner(s, h100, STATED).plan(s, nodes=2).stages[0] for s in (settings, recipe()))
    assert wide.time.peak == 67e12 and narrow.time.peak == 989e12
    assert wide.time.compute > 8 * narrow.time.compute
    assert wide.mfu < h100.achievable
    with pytest.raises(SettingsError, match="has no tflops_fp32"):
        Planner(settings, dataclasses.replace(h100, tflops_fp32=None), STATED).plan(settings, nodes=2)


def test_weights_on_nvme_are_on_the_disk_and_their_buffers_on_the_host(recipe, h100, tmp_path):
    zero = json.loads((SHIPPED / "ds_configs/zero3_nvme.json").read_text())
    zero["zero_optimization"]["offload_param"]["max_in_cpu"] = 0
    (tmp_path / "nvme.json").write_text(json.dumps(zero))
    settings = recipe(deepspeed=tmp_path / "nvme.json", optim__name="cpu_adamw")
    plan = Planner(settings, h100, STATED).plan(settings, nodes=1)
    assert plan.memory.disk == {"weights": pytest.approx(2 * plan.rehearsal.parameters / 8, rel=0.001)}
    assert plan.memory.host["NVMe buffers"] == 5 * 1_100_000_000 * 2
    assert not {"weights"} & {*plan.memory.device, *plan.memory.host}
    assert plan.notes == ["the cluster has no nvme_gb_s: reading weights from NVMe is not in the times"]
    known = Planner(settings, dataclasses.replace(h100, nvme_gb_s=10), STATED).plan(settings, nodes=1)
    gathered = sum(f.whole_bytes for f in known.flows if f.kind.startswith("gather"))
    written = 2 * known.rehearsal.trainable
    slower = known.stages[0].time.offload - plan.stages[0].time.offload
    assert slower == pytest.approx((gathered + written) / 10e9, rel=0.001)
    assert not known.notes


def test_trained_weights_stay_on_the_host_up_to_deepspeeds_limit_and_frozen_ones_do_not(recipe, h100):
    settings = recipe(deepspeed="ds_configs/zero3_nvme.json", optim__name="cpu_adamw")  # max_in_cpu: 10⁹ elements
    full = Planner(settings, h100, STATED).plan(settings, nodes=1)
    assert not full.memory.disk
    assert full.memory.host["weights"] == pytest.approx(2 * full.rehearsal.parameters / 8, rel=0.001)
    settings.model.finetune = "lora"
    lora = Planner(settings, h100, STATED).plan(settings, nodes=1)
    frozen = lora.rehearsal.parameters - lora.rehearsal.trainable
    assert lora.memory.disk["weights"] == pytest.approx(2 * frozen / 8, rel=0.001)
    assert lora.memory.host["weights"] == pytest.approx(2 * lora.rehearsal.trainable / 8, rel=0.01)


def test_hpz_across_nodes_is_said(recipe, h100, tmp_path):
    zero = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
    zero["zero_optimization"]["zero_hpz_partition_size"] = 16
    (tmp_path / "hpz.json").write_text(json.dumps(zero))
    settings = recipe(deepspeed=tmp_path / "hpz.json")
    (note,) = Planner(settings, h100, STATED).plan(settings, nodes=4).notes
    assert note.startswith("zero_hpz_partition_size is 16, but a node has 8 GPUs")


def test_rows_longer_than_the_positions_are_refused_where_learnt_and_said_where_rotary(recipe, h100, tmp_path):
    shape = {"vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1000}
    GPT2Config(**shape).save_pretrained(tmp_path)
    settings = recipe(model__backbone=tmp_path)
    with pytest.raises(SettingsError, match=r"rows have up to 1024 tokens, but model\.backbone has 1000 positions"):
        Planner(settings, h100, STATED).plan(settings, nodes=1)
    short = dataclasses.replace(STATED, tokens_per_row=1000)
    assert not Planner(settings, h100, short).plan(settings, nodes=1).notes
    long = dataclasses.replace(STATED, tokens_per_row=4096)
    (note,) = Planner(recipe(), h100, long).plan(recipe(), nodes=1).notes
    assert note.startswith("rows have up to 4,096 tokens, but the backbone knows 2,048 positions")


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
    zero = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
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


def drawn(faults, interval, gap_F):
    """Goodput where faults come after so many hours each: whole intervals between them, saved and written."""
    worked_F = np.maximum(gap_F - faults.restart_hours - faults.write_hours, 0)
    return np.floor(worked_F / (interval + faults.save_hours)).sum() * interval / gap_F.sum()


@pytest.mark.parametrize(
    ("gpus", "save", "write"), [(4096, 0.02, 0), (4096, 1e-5, 0.3), (8, 0.1, 0), (200_000, 0.02, 0.01)]
)
def test_goodput_is_what_faults_drawn_at_random_leave(gpus, save, write):
    faults = Faults(
        gpus=gpus, per_gpu_hour=419 / (54 * 24 * 16384), restart_hours=0.2, save_hours=save, write_hours=write
    )
    gap_F = np.random.default_rng(0).exponential(faults.mean_hours, 20_000)
    found = goodput(faults)
    for interval, share in zip(found.intervals, found.goodput, strict=True):
        assert 1 - share == pytest.approx(1 - drawn(faults, interval, gap_F), rel=0.03)
    assert found.at_advised == kept_share(faults, found.advised)


def test_a_run_that_never_comes_to_a_save_keeps_nothing():
    faults = Faults(gpus=10**6, per_gpu_hour=1.0, restart_hours=0.2, save_hours=0.02)
    assert 0 <= goodput(faults).at_advised < 1e-12 and kept_share(faults, 1.0) == 0


def test_dalys_interval_is_as_good_as_the_best_one_tried():
    faults = Faults(gpus=4096, per_gpu_hour=419 / (54 * 24 * 16384), restart_hours=0.2, save_hours=0.02)
    assert faults.mean_hours == pytest.approx(54 * 24 / 419 * 4)  # Llama 3's count, on a quarter of its GPUs
    found = goodput(faults)
    assert young(0.02, 12.37) == pytest.approx(0.703, rel=0.01)
    assert found.advised == found.daly == daly(0.02, faults.mean_hours)
    assert found.at_advised > max(found.goodput) - FLAT
    assert found.flat[0] <= found.daly <= found.flat[1]
    assert found.goodput[0] < found.at_advised > found.goodput[-1]


def test_no_interval_is_shorter_than_the_write():
    found = goodput(Faults(gpus=4096, per_gpu_hour=2e-5, restart_hours=0.2, save_hours=1e-6, write_hours=0.5))
    assert found.daly < 0.5 == found.advised
    assert min(found.intervals) == pytest.approx(0.5)


def test_an_asynchronous_save_stops_the_steps_for_text_and_copy_and_needs_host_memory(recipe, h100):
    planner = Planner(recipe(), h100, STATED)
    copied = planner.plan(recipe(), nodes=2)
    share = 12 * copied.rehearsal.trainable / 16
    copy = share / (h100.staging_gb_s * 1e9)
    # The fixed text: all weights are gathered once more.
    assert copied.canary_seconds > 2 * copied.rehearsal.parameters * 15 / 16 / (8 * h100.between_gb_s * 1e9)
    assert copied.stall_seconds == pytest.approx(copied.canary_seconds + copy)
    # The rate is that of KempnerForge's 175B on 360 GPUs, either way it is read.
    assert (
        2450 / 360 / h100.staging_gb_s
        == pytest.approx(2450 / h100.staging_total_gb_s, rel=0.02)
        == pytest.approx(60, rel=0.01)
    )
    many = planner.plan(recipe(), nodes=64)
    assert many.stall_seconds - many.canary_seconds == pytest.approx(
        12e-9 * many.rehearsal.trainable / h100.staging_total_gb_s
    )
    assert copied.memory.host == {"checkpoint copy": pytest.approx(share, abs=1)}
    waited = planner.plan(recipe(checkpoint__asynchronous="false"), nodes=2)
    assert waited.write_seconds == copied.write_seconds
    assert waited.stall_seconds == pytest.approx(copied.stall_seconds + waited.write_seconds)
    assert not waited.memory.host
    assert copied.goodput.advised >= copied.write_seconds / 3600
    assert copied.goodput.at_advised > waited.goodput.at_advised
    small = dataclasses.replace(h100, host_memory_gib=copied.memory.host_total * 8 / 0.9 / 2**30 - 0.1)
    assert not Planner(recipe(), small, STATED).plan(recipe(), nodes=2).fits


def test_the_picture_says_total_and_limit_and_tells_its_lines_apart(planner, recipe, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: figures.append(figure))
    plan = planner.plan(recipe(), nodes=2)
    report.draw(tmp_path / "plan.png", plan)
    memory, share = figures[0].axes
    assert f"{plan.memory.device_total / 2**30:.1f}" in [text.get_text() for text in memory.texts]
    assert "the GPU's 79.1 GiB" in [text.get_text() for text in memory.get_legend().get_texts()]
    assert "loss workspace" in [text.get_text() for text in memory.get_legend().get_texts()]
    colours = {line.get_color() for line in share.lines}
    assert len(colours) == len(share.lines) == 4
    # No label lies on a line: legends are above the axes, a total beside the limit is behind it.
    tight_plan = dataclasses.replace(
        plan, cluster=dataclasses.replace(plan.cluster, memory_gib=plan.memory.device_total / 2**30 + 0.5)
    )
    report.draw(tmp_path / "plan.png", tight_plan)
    for figure in figures:
        figure.canvas.draw()
        for axis in figure.axes:
            assert axis.get_legend().get_window_extent().y0 >= axis.get_window_extent().y1
        (limit,) = (line for line in figure.axes[0].lines if "the GPU's" in line.get_label())
        across = limit.get_window_extent()
        assert not any(text.get_window_extent().overlaps(across) for text in figure.axes[0].texts)


def test_faults_faster_than_restarts_are_said_and_end_at_once(recipe, h100, capsys):
    sick = dataclasses.replace(h100, failures_per_gpu_hour=1e6)
    plan = Planner(recipe(), sick, STATED).plan(recipe(), nodes=1)
    assert plan.hours_with_faults is None
    report.print_plan(plan, plan)
    assert "never: faults come too fast" in capsys.readouterr().out


def test_an_interval_beyond_the_run_says_so(planner, recipe, capsys):
    plan = planner.plan(recipe(train__max_steps=3, checkpoint__asynchronous="false"), nodes=1)
    assert plan.goodput.daly > plan.hours
    report.print_plan(plan, plan)
    assert "longer than the run: save at its end" in capsys.readouterr().out


# --- the command


def test_the_verb_prints_and_writes_the_plan(recipe, backbone, tmp_path, capsys):
    main(
        ["plan", "--config", "configs/recipe.yaml", f"--model.backbone={backbone}", "--model.finetune=full",
         "--cluster", "configs/clusters/a100.yaml", "--nodes", "2", "--json", str(tmp_path / "plan.json"),
         "--plot", str(tmp_path / "plan.png"), "--search", "true"]
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "rows/train.jsonl is not at hand" in told and "assumed: 1,000,000 rows of 1024 tokens" in told
    assert "fits:" in told and "interval between saves, Daly" in told and "that fit, the cheapest first" in told
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["gpus"] == 16 and plan["fits"]
    assert plan["gpu_hours"] == pytest.approx(plan["hours"] * 16)
    slowest, fastest = plan["stages"][0]["tokens_per_second_range"]
    assert (
        slowest < plan["stages"][0]["tokens_per_second"] < fastest
        and f"expect {slowest:,.0f} to {fastest:,.0f}" in told
    )
    assert plan["gpu_hours_range"] == pytest.approx([0.93 * plan["gpu_hours"], 1.42 * plan["gpu_hours"]])
    total = sum(plan["memory"]["device"].values())
    assert plan["spare_bytes"] == pytest.approx(plan["cluster"]["memory_gib"] * 2**30 - total, abs=1)
    assert plan["activations"]["with_checkpointing"] < plan["activations"]["without_checkpointing"]
    assert 0 < plan["activations"]["loss_workspace"] < plan["activations"]["without_checkpointing"]
    assert plan["backbone"] == str(backbone) and "1,000,000 rows" in plan["rows"] and plan["precision"] in told
    assert plan["hours_with_faults"] == pytest.approx(plan["hours"] / plan["goodput"]["at_advised"])
    assert plan["checkpoint"]["stall_seconds"] > plan["checkpoint"]["bytes"] / 16 / 0.113e9
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "0"], "--nodes is 0, expected 1 or more"),
        (["--nodes", "x"], "--nodes is 'x', expected a whole number"),
        (["--search", "maybe"], "--search is 'maybe', expected true or false"),
        (["--nodez", "3"], "unknown option --nodez; did you mean --nodes?"),
        (["--json", "."], "cannot be written"),
        (["--plot", "/proc/none/plan.png"], "cannot be written"),
        (["--plot", "plan.xyz"], "plan.xyz cannot be written: .xyz is none of "),
        (["--cluster", "h900.yaml"], "'h900.yaml' is not a file"),
        (["--tokens_per_row", "100", "--supervised_per_row", "100"], "--supervised_per_row is 100 of"),
        (["--optim.name", "adamw_8bit", "--deepspeed", "ds_configs/zero3_offload.json"], "cannot be offloaded"),
    ],
)
def test_bad_input_is_one_line_and_status_two(flags, message, backbone, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["plan", "--config", "configs/recipe.yaml", f"--model.backbone={backbone}", *flags])
    assert refused.value.code == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1
