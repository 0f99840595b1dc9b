"""Compute, offloading and MFU of a step."""

from __future__ import annotations

import dataclasses

import pytest
from plan_cases import STATED
from transformers import LlamaConfig, MistralConfig

from clsgen_dist.errors import SettingsError
from clsgen_dist.plan.plan import Planner
from clsgen_dist.plan.step_time import attention_flops


def test_attention_flops_count_the_causal_triangle_or_window_band():
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=3)
    assert attention_flops(config, [100]) == 3 * 4 * 64 * 100 * 100 / 2
    assert attention_flops(config, [50, 50]) == attention_flops(config, [100]) / 2
    config.layer_types, config.sliding_window = ["sliding_attention"] * 3, 10
    assert attention_flops(config, [100]) == 3 * 4 * 64 * (10 * 10 / 2 + 90 * 10)
    assert attention_flops(config, [8]) == 3 * 4 * 64 * 8 * 8 / 2
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    for window in (10, None):  # Mistral does not name the layers that use the window: all of them
        config = MistralConfig(**shape, sliding_window=window)
        seen = 10 if window else 100
        assert attention_flops(config, [100]) == 3 * 4 * 64 * (seen * seen / 2 + (100 - seen) * seen)


def test_a_small_micro_batch_is_bound_by_kernel_launches(recipe, h100):
    short = [
        Planner(recipe(), h100, dataclasses.replace(STATED, tokens_per_row=tokens, supervised_per_row=1)).plan(
            recipe(train__micro_batch_tokens=tokens, train__batch_size=8), nodes=1
        )
        for tokens in (16, 32)
    ]
    launches = short[0].trace.launches
    assert launches == short[1].trace.launches > 4 * 30  # four layers of norms, products, rotations, activations
    assert 0.2 * launches < short[0].trace.forward_launches < 0.5 * launches
    for plan in short:
        assert plan.stages[0].time.compute == pytest.approx(
            plan.stages[0].micro_steps * launches * h100.launch_us * 1e-6
        )


def test_an_offloaded_optimizer_takes_the_measured_time(recipe, h100):
    settings = recipe(deepspeed="ds_configs/zero3_offload.json", optim__name="cpu_adamw")
    plan = Planner(settings, h100, STATED).plan(settings, nodes=1)
    time, trained, steps = plan.stages[0].time, plan.trace.trainable, plan.stages[0].micro_steps
    assert time.optimizer == pytest.approx(trained / 2.0e9)
    gathered = sum(flow.whole_bytes for flow in plan.flows if flow.kind.is_gather) / 8
    assert time.offload - gathered / (h100.pcie_gb_s * 1e9) == pytest.approx(2 * trained / 8 * (steps + 1) / 2.0e9)
    # ZenFlow's blog: Llama 2 7B on 4 A100 went from 0.5 s a step to over 7.
    seconds = 6.74e9 / 2.0e9 + 2 * 6.74e9 / 4 * 2 / 2.0e9
    assert 6.5 < seconds + 0.5 < 12


def test_four_bit_weights_are_dequantised_at_each_use(recipe, h100):
    lora = recipe(model__finetune="lora", train__activation_checkpointing="true")
    four = recipe(model__finetune="lora", train__activation_checkpointing="true", model__load_in_4bit="true")
    plain, packed = (Planner(s, h100, STATED).plan(s, nodes=1) for s in (lora, four))
    more = packed.stages[0].time.compute - plain.stages[0].time.compute
    read = 3 * packed.trace.quantised / 80e9
    assert more == pytest.approx(packed.stages[0].micro_steps * read, rel=1e-6)


def test_idle_ranks_lower_the_mfu_and_are_noted(planner, recipe):
    busy = planner.plan(recipe(), nodes=8)  # 64 rows, 64 ranks
    idle = planner.plan(recipe(), nodes=16)
    assert not busy.notes
    assert idle.notes == [
        "a step has 64 rows for 128 ranks, so 64 ranks idle; raise train.batch_size, or use fewer nodes"
    ]
    rate = [plan.stages[0].mfu / (plan.stages[0].tokens_per_second / plan.ranks) for plan in (busy, idle)]
    assert rate[0] == pytest.approx(rate[1])  # FLOPs of a token do not depend on idle ranks
    assert idle.stages[0].mfu < 0.6 * busy.stages[0].mfu


def test_fp32_is_timed_at_its_own_peak(recipe, h100):
    settings = recipe(train__precision="fp32")
    wide, narrow = (Planner(s, h100, STATED).plan(s, nodes=2).stages[0] for s in (settings, recipe()))
    assert wide.time.peak == 67e12 and narrow.time.peak == 989e12
    assert wide.time.compute > 8 * narrow.time.compute
    assert wide.mfu < h100.achievable
    with pytest.raises(SettingsError, match="has no tflops_fp32"):
        Planner(settings, dataclasses.replace(h100, tflops_fp32=None), STATED).plan(settings, nodes=2)
