"""The meta-device trace, the ZeRO-3 simulation and the parts of memory, without a process group."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, MixtralConfig, Qwen3NextConfig

from clsgen_dist.config import SHIPPED
from clsgen_dist.errors import ModelError
from clsgen_dist.objectives.settings import ObjectivesSettings
from clsgen_dist.plan.memory import memory
from clsgen_dist.plan.meta_model import ModelSpec, open_config
from clsgen_dist.plan.meta_trace import Moment
from clsgen_dist.plan.tracer import trace_micro_step
from clsgen_dist.plan.workload import stored_logits
from clsgen_dist.plan.zero3_settings import zero3_settings
from clsgen_dist.plan.zero3_simulation import simulate

SHAPE = {
    "vocab_size": 1009,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


RELEASES = {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 1000}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    for tied in (True, False):
        LlamaConfig(**SHAPE, tie_word_embeddings=tied).save_pretrained(folder / f"tied-{tied}")
    MixtralConfig(**SHAPE).save_pretrained(folder / "experts")
    return folder


@pytest.fixture(scope="module")
def trace_of(backbones):
    kept = {}

    def make(*, tied=True, finetune="full", checkpointing=False, lengths=(64, 64), bf16=True, **model):
        key = (tied, finetune, checkpointing, lengths, bf16, tuple(model.items()))
        if key not in kept:
            spec = {
                "backbone": str(backbones / f"tied-{tied}"),
                "classes": 3,
                "finetune": finetune,
                "top_layers": None,
                "lora_rank": 4,
                "lora_alpha": 8,
                "lora_dropout": 0.0,
                "head_dropout": 0.1,
                "load_in_4bit": False,
                "bf16": bf16,
                **model,
            }
            kept[key] = trace_micro_step(
                ModelSpec(**spec), sequence_lengths=lengths, supervised=16, activation_checkpointing=checkpointing
            )
        return kept[key]

    return make


def zero_of(ranks, **settings):
    config = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
    config["zero_optimization"].update(settings)
    return zero3_settings(config, ranks=ranks, ranks_per_node=8)


def needed(trace, zero, **options):
    options = {"optimizer": "adamw", "on_gpu": True, **options}
    return memory(trace, zero, simulate(trace, zero), **options)


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_match_the_architecture(tied, trace_of):
    hidden, wide, vocabulary = 96, 200, 1009
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * wide + 2 * hidden
    expected = (1 if tied else 2) * vocabulary * hidden + 5 * layer + hidden + 3 * hidden + 3
    assert trace_of(tied=tied).parameters == trace_of(tied=tied).trainable == expected
    lora = trace_of(tied=tied, finetune="lora")
    assert lora.trainable == 5 * 4 * (4 * 2 * hidden - 2 * hidden // 2 + 3 * (hidden + wide)) + 3 * hidden + 3
    assert trace_of(tied=tied, finetune="head").trainable == 3 * hidden + 3


def test_activations_grow_with_tokens_and_checkpointing_keeps_one_layer(trace_of):
    short, long = (trace_of(lengths=(tokens // 2,) * 2) for tokens in (1024, 2048))
    assert long.activation_peak == pytest.approx(2 * short.activation_peak, rel=0.1)
    assert trace_of(lengths=(1024, 1024), checkpointing=True).activation_peak < 0.5 * long.activation_peak


def test_only_eager_attention_keeps_scores(backbones):
    def peak(attention):
        spec = ModelSpec(
            backbone=str(backbones / "tied-True"), classes=2, finetune="full", top_layers=None, lora_rank=4,
            lora_alpha=8, lora_dropout=0.0, head_dropout=0.1, load_in_4bit=False, bf16=True,
        )  # fmt: skip
        lengths = (1024, 1024)
        return trace_micro_step(spec, sequence_lengths=lengths, supervised=16, activation_checkpointing=False,
                        attention=attention).activation_peak  # fmt: skip

    assert peak("sdpa") == pytest.approx(peak("flash"), rel=0.05)
    # Kept in each layer for the backward: the softmax in fp32 and its copy in bf16, of two sequences.
    layers, heads = LlamaConfig(**SHAPE).num_hidden_layers, LlamaConfig(**SHAPE).num_attention_heads
    assert peak("eager") > peak("flash") + layers * heads * 2 * 1024**2 * (4 + 2)


def test_a_layers_gradients_are_reduced_in_the_optimizers_order(trace_of):
    trace = trace_of()
    layer = [n for n, w in enumerate(trace.weights) if ".layers.3." in w.name]
    reduced = [e.index for e in trace.events if e.moment is Moment.GRADIENT and e.index in layer]
    assert reduced == sorted(layer, key=lambda n: (not trace.weights[n].matrix, n))


def test_matmuls_cost_six_flops_per_weight_and_token_and_two_more_with_checkpointing(trace_of):
    plain, again = trace_of(lengths=(512,)), trace_of(lengths=(512,), checkpointing=True)
    in_layers = sum(w.numel for w in plain.weights if ".layers." in w.name and w.matrix)
    loss = 8 * 16 * 1009 * 96  # of 16 supervised tokens: one pass forward, three back
    assert plain.matmul_flops == pytest.approx(6 * 512 * in_layers + loss, rel=0.01)
    # DeepSpeed's linear map keeps its input after its product, so even a layer's last product is recomputed.
    assert again.recomputed_flops == pytest.approx(2 * 512 * in_layers, rel=0.01)
    assert again.matmul_flops - again.recomputed_flops == pytest.approx(plain.matmul_flops)
    lora = trace_of(lengths=(512,), finetune="lora")
    assert lora.matmul_flops == pytest.approx(4 * 512 * in_layers, rel=0.1)  # frozen weights have no gradient


def test_states_match_the_paper_and_deepspeeds_estimator_except_for_the_fp32_gradient(trace_of):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    trace, ranks = trace_of(), 6
    parts = needed(trace, zero_of(ranks)).device
    states = sum(parts[name] for name in ("weights", "master weights", "gradients", "optimizer"))
    assert states == pytest.approx(16 * trace.parameters / ranks, rel=0.001)
    _, gpu, largest = estimate_zero3_model_states_mem_needs(
        total_params=trace.parameters, largest_layer_params=0, num_gpus_per_node=ranks, cpu_offload=False,
        cpu_offload_params=False, zero_init=True,
    )  # fmt: skip
    # It counts 4 bytes of fp32 gradient for every element; they exist for one sub-group, while it is updated.
    assert largest == 0
    assert states == pytest.approx(gpu * 16 / 18, rel=0.001)


def test_each_optimizer_and_offload_has_its_states(trace_of):
    trace = trace_of(bf16=False)
    plain = needed(trace, zero_of(2)).device
    eight = needed(trace, zero_of(2), optimizer="adamw_8bit").device
    assert eight["optimizer"] < 0.3 * plain["optimizer"]
    off = needed(trace, zero_of(2, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}))
    assert not {"master weights", "gradients", "optimizer", "weights"} & set(off.device)
    assert off.host["optimizer"] == plain["optimizer"] and off.host["weights"] == plain["weights"]
    frozen = needed(trace_of(finetune="head", bf16=False), zero_of(2)).device
    assert frozen["optimizer"] < 0.01 * plain["optimizer"]


def test_frozen_linear_maps_take_a_quarter_of_the_memory_in_4_bits(trace_of):
    lora = needed(trace_of(finetune="lora"), zero_of(4)).device
    small = needed(trace_of(finetune="lora", load_in_4bit=True), zero_of(4)).device
    linear = sum(w.numel for w in trace_of(finetune="lora").weights if "base_layer" in w.name)
    assert lora["weights"] - small["weights"] == pytest.approx(2 * 0.75 * linear / 4, rel=0.001)
    assert small["quantisation scales"] == pytest.approx(linear / 16, rel=0.001)


def test_weights_are_gathered_again_for_the_backward_unless_they_are_kept(trace_of):
    trace = trace_of(tied=False)
    kept = simulate(trace, zero_of(4, stage3_param_persistence_threshold=0)).first
    assert sum(g.elements for g in kept.gathers) == pytest.approx(trace.parameters, rel=0.01)
    released = simulate(trace, zero_of(4, stage3_param_persistence_threshold=0, **RELEASES)).first
    layers = sum(w.numel for w in trace.weights if ".layers." in w.name)
    assert sum(g.elements for g in released.gathers) >= trace.parameters + 0.7 * layers
    assert released.peak.gathered < kept.peak.gathered
    for step in (kept, released):
        assert sum(r.elements for r in step.reductions) == pytest.approx(trace.parameters, rel=0.01)


def test_one_rank_gathers_nothing_and_persistent_weights_are_on_every_rank(trace_of):
    trace = trace_of()
    assert not simulate(trace, zero_of(1)).first.gathers
    everything = needed(trace, zero_of(3, stage3_param_persistence_threshold=10**9)).device
    assert everything["persistent weights"] == 2 * trace.parameters
    assert not simulate(trace, zero_of(3, stage3_param_persistence_threshold=10**9)).first.gathers


def test_a_smaller_sub_group_needs_less_for_the_optimizer_step(trace_of):
    trace = trace_of(checkpointing=True, lengths=(8,))
    one_group = needed(trace, zero_of(1, reduce_bucket_size=10))
    sub_groups = needed(trace, zero_of(1, reduce_bucket_size=10, sub_group_size=50_000))
    assert one_group.moment == "optimizer step"
    assert sub_groups.device.get("optimizer step", 0) < 0.5 * one_group.device["optimizer step"]


def test_modules_are_recorded_as_deepspeed_hooks_them(trace_of):
    events = trace_of().events
    assert events[0].moment is Moment.PRE_FORWARD and events[0].index == 0
    gradients = [e.index for e in events if e.moment is Moment.GRADIENT]
    assert sorted(gradients) == list(range(len(trace_of().weights)))
    assert all(e.allocated <= e.peak for e in events)


def test_experts_and_missing_configurations_are_refused_in_one_line(backbones, tmp_path):
    with pytest.raises(ModelError, match="routes tokens to 8 experts"):
        open_config(str(backbones / "experts"))
    with pytest.raises(ModelError, match=r"has no config\.json; name a folder"):
        open_config(str(tmp_path))
    Qwen3NextConfig(num_experts=0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has linear_attention layers: their cost"):
        open_config(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "big"}, "expected int, got str"),
        ({"hidden_size": 98}, "not a multiple of the number of attention heads"),
        ({"num_hidden_layers": 0}, "has num_hidden_layers 0 or none"),
    ],
)
def test_a_broken_configuration_is_refused_in_one_line(change, message, tmp_path):
    values = {**LlamaConfig(**SHAPE).to_dict(), **change}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=message) as refused:
        open_config(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_the_loss_needs_a_tile_of_logits_and_its_gradients(trace_of):
    trace = trace_of(lengths=(64, 64))
    tile = 16 * 1009 * 2  # 16 supervised tokens, all of the vocabulary
    weight = 1009 * 96 * 2
    assert tile + weight < trace.loss_workspace < 3 * (tile + weight)
    assert all(e.loss_allocated <= e.allocated and e.loss_peak <= e.peak for e in trace.events)


def test_stored_logits_are_counted_at_the_micro_steps_peak(trace_of):
    trace, zero = trace_of(), zero_of(8)
    without, stored = needed(trace, zero), needed(trace, zero, stored_logits=10**9)
    assert "stored logits" not in without.device and stored.moment == "micro-step"
    assert stored.device["stored logits"] == 10**9
    assert stored.device_total > without.device_total


def test_logits_are_stored_within_the_budget():
    model = SimpleNamespace(decide="before", finetune="lora", top_layers=None)
    settings = SimpleNamespace(objectives=ObjectivesSettings(), model=model)
    work = SimpleNamespace(full_micro_batch=lambda: ([4096], 1024, 0))
    config = LlamaConfig(**{**SHAPE, "vocab_size": 128256})
    config.hidden_size = 1024
    all_of_them = stored_logits(settings, work, config, 2)
    assert 0 <= all_of_them - 2 * 1024 * 128256 < 0.03 * all_of_them  # whole slabs
    model.finetune = "full"  # more than the gradient of the weight holds
    assert stored_logits(settings, work, config, 2) == all_of_them
    config.hidden_size = 2048
    assert stored_logits(settings, work, config, 2) == 0
    model.top_layers = 2
    assert stored_logits(settings, work, config, 2) == all_of_them
    settings.objectives.preference.weight = 1.0  # its own call
    assert stored_logits(settings, work, config, 2) == 2 * all_of_them
    settings.objectives.preference.weight, model.top_layers = 0.0, None
    # Eight ranks' tokens by an eighth of the vocabulary: as many logits, and an eighth of the gradient.
    sharded = stored_logits(settings, work, config, 2, 8)
    assert 0 <= sharded - 2 * 1024 * 128256 < 0.05 * sharded
    settings.objectives.stored_logits_gib = 0.2
    assert stored_logits(settings, work, config, 2) == 0
    settings.objectives.stored_logits_gib, settings.objectives.impl = 4.0, "torch"
    assert stored_logits(settings, work, config, 2) == 0
    settings.objectives.impl, settings.model.finetune = "auto", "head"  # no gradient reaches them
    assert stored_logits(settings, work, config, 2) == 0
