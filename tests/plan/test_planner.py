"""Memory, traffic and warnings of a plan."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from plan_cases import STATED
from transformers import GPT2Config

from clsgen_dist.config import SHIPPED
from clsgen_dist.engine.lm_head import head_traffic
from clsgen_dist.errors import SettingsError
from clsgen_dist.plan.communication import FlowKind
from clsgen_dist.plan.plan import Planner


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
    assert plan.memory.device["optimizer"] == pytest.approx(8 * plan.trace.parameters / 15, rel=0.001)
    with pytest.raises(SettingsError, match="--gpus_per_node is 9, expected at most 8"):
        planner.plan(recipe(), nodes=1, gpus_per_node=9)


def test_weights_on_nvme_are_on_the_disk_and_their_buffers_on_the_host(recipe, h100, tmp_path):
    zero = json.loads((SHIPPED / "ds_configs/zero3_nvme.json").read_text())
    zero["zero_optimization"]["offload_param"]["max_in_cpu"] = 0
    (tmp_path / "nvme.json").write_text(json.dumps(zero))
    settings = recipe(deepspeed=tmp_path / "nvme.json", optim__name="cpu_adamw")
    plan = Planner(settings, h100, STATED).plan(settings, nodes=1)
    assert plan.memory.disk == {"weights": pytest.approx(2 * plan.trace.parameters / 8, rel=0.001)}
    assert plan.memory.host["NVMe buffers"] == 5 * 1_100_000_000 * 2
    assert not {"weights"} & {*plan.memory.device, *plan.memory.host}
    assert plan.notes == [
        "the cluster has no nvme_gb_s, so times exclude reading weights from NVMe; add it to the cluster's file"
    ]
    known = Planner(settings, dataclasses.replace(h100, nvme_gb_s=10), STATED).plan(settings, nodes=1)
    gathered = sum(f.whole_bytes for f in known.flows if f.kind.is_gather)
    written = 2 * known.trace.trainable
    slower = known.stages[0].time.offload - plan.stages[0].time.offload
    assert slower == pytest.approx((gathered + written) / 10e9, rel=0.001)
    assert not known.notes


def test_only_trained_weights_stay_on_the_host_up_to_max_in_cpu(recipe, h100):
    settings = recipe(deepspeed="ds_configs/zero3_nvme.json", optim__name="cpu_adamw")  # max_in_cpu: 10⁹ elements
    full = Planner(settings, h100, STATED).plan(settings, nodes=1)
    assert not full.memory.disk
    assert full.memory.host["weights"] == pytest.approx(2 * full.trace.parameters / 8, rel=0.001)
    settings.model.finetune = "lora"
    lora = Planner(settings, h100, STATED).plan(settings, nodes=1)
    frozen = lora.trace.parameters - lora.trace.trainable
    assert lora.memory.disk["weights"] == pytest.approx(2 * frozen / 8, rel=0.001)
    assert lora.memory.host["weights"] == pytest.approx(2 * lora.trace.trainable / 8, rel=0.01)


def test_hpz_across_nodes_is_noted(recipe, h100, tmp_path):
    zero = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
    zero["zero_optimization"]["zero_hpz_partition_size"] = 16
    (tmp_path / "hpz.json").write_text(json.dumps(zero))
    settings = recipe(deepspeed=tmp_path / "hpz.json")
    (note,) = Planner(settings, h100, STATED).plan(settings, nodes=4).notes
    assert note.startswith("zero_hpz_partition_size is 16, but a node has 8 GPUs")


def test_rows_beyond_the_positions_are_refused_if_learned_and_noted_if_rotary(recipe, h100, tmp_path):
    shape = {"vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1000}
    GPT2Config(**shape).save_pretrained(tmp_path)
    settings = recipe(model__backbone=tmp_path)
    with pytest.raises(
        SettingsError, match=r"rows have up to 1024 tokens, but model\.backbone has 1000 learned positions"
    ):
        Planner(settings, h100, STATED).plan(settings, nodes=1)
    short = dataclasses.replace(STATED, tokens_per_row=1000)
    assert not Planner(settings, h100, short).plan(settings, nodes=1).notes
    long = dataclasses.replace(STATED, tokens_per_row=4096)
    (note,) = Planner(recipe(), h100, long).plan(recipe(), nodes=1).notes
    assert note.startswith("rows have up to 4,096 tokens, more than the backbone's max_position_embeddings 2,048")


def test_lora_reduces_and_saves_only_what_it_trains(planner, recipe, h100):
    full = planner.plan(recipe(), nodes=2)
    settings = recipe(model__finetune="lora")
    lora = Planner(settings, h100, STATED).plan(settings, nodes=2)
    of_all, of_lora = (sum(f.whole_bytes for f in p.flows if f.kind is FlowKind.REDUCE) for p in (full, lora))
    assert of_lora == pytest.approx(2 * lora.trace.trainable * lora.stages[0].micro_steps, rel=0.01)
    assert of_lora < 0.02 * of_all
    assert lora.checkpoint_bytes == 12 * lora.trace.trainable
    assert lora.hours < full.hours


def test_hpz_keeps_gathers_in_the_node_and_costs_a_second_copy(planner, recipe, tmp_path):
    zero = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
    # Large weights are released, so that there is a backward gather.
    zero["zero_optimization"].update(stage3_max_reuse_distance=0, stage3_prefetch_bucket_size=10_000_000)
    plans = []
    for name, more in (("plain", {}), ("hpz", {"zero_hpz_partition_size": 8, "zero_quantized_weights": True})):
        zero["zero_optimization"].update(more)
        (tmp_path / f"{name}.json").write_text(json.dumps(zero))
        plans.append(planner.plan(recipe(deepspeed=tmp_path / f"{name}.json"), nodes=4))
    plain, hpz = plans
    assert {f.nodes for f in hpz.flows if f.kind is FlowKind.GATHER_BACKWARD} == {1}
    assert {f.nodes for f in plain.flows if f.kind is FlowKind.GATHER_BACKWARD} == {4}
    assert hpz.memory.device["hpZ copy"] == pytest.approx(2 * hpz.trace.parameters / 8, rel=0.001)
    gathered = [sum(f.whole_bytes for f in p.flows if f.kind is FlowKind.GATHER_FORWARD) for p in plans]
    assert gathered[1] == pytest.approx(gathered[0] / 2, rel=0.001)


def test_auto_shards_the_lm_head_where_states_are_fewer_bytes_than_weights(planner, recipe):
    """Supervised tokens of all ranks times 2 + 4 bytes against the vocabulary times 2 bytes, three times."""
    auto = [
        planner.plan(recipe(data__max_explanation_length=128, objectives__lm_head="auto"), nodes=nodes)
        for nodes in (1, 2, 8)
    ]
    gathered = [planner.plan(recipe(data__max_explanation_length=128), nodes=nodes) for nodes in (1, 2, 8)]
    assert [bool(plan.trace.head_moves) for plan in auto] == [True, True, False]
    assert auto[2].trace is gathered[2].trace
    head = 32_000 * 4096 * 2 * auto[0].stages[0].micro_steps

    def moved(plan, *kinds):
        return sum(flow.whole_bytes for flow in plan.flows if flow.kind in kinds)

    reduced = FlowKind.REDUCE, FlowKind.GATHER_FORWARD
    assert moved(gathered[0], *reduced) - moved(auto[0], *reduced) == pytest.approx(2 * head, rel=1e-6)
    states = moved(auto[0], FlowKind.HEAD_GATHER, FlowKind.HEAD_REDUCE)
    assert 0 < states < head
    assert auto[0].memory.device_total < gathered[0].memory.device_total
    rows, width, ranks = 32_000, 4096, 32
    for supervised, sharded in ((32_000 / 32 - 1, True), (32_000 / 32 + 1, False)):
        traffic = head_traffic(
            rows, width, tokens=8192, supervised=supervised, ranks=ranks, learns=True, tied=False, element_size=2
        )
        assert (traffic.sharded < traffic.gathered) == sharded
