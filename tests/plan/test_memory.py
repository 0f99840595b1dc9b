"""The rehearsal and the parts of memory, without a process group."""

from __future__ import annotations

import json

import pytest
from transformers import LlamaConfig, MixtralConfig, Qwen3NextConfig

from clsgen_dist.config import SHIPPED
from clsgen_dist.errors import ModelError
from clsgen_dist.plan.memory import memory
from clsgen_dist.plan.meta_trace import ModelPlan, Moment, open_config, trace_micro_step
from clsgen_dist.plan.zero3_simulation import sharding, walk

SHAPE = {
    "vocab_size": 1009,
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


LETS_GO = {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 1000}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    for tied in (True, False):
        LlamaConfig(**SHAPE, tie_word_embeddings=tied).save_pretrained(folder / f"tied-{tied}")
    MixtralConfig(**SHAPE).save_pretrained(folder / "experts")
    return folder


@pytest.fixture(scope="module")
def made(backbones):
    kept = {}

    def rehearsal(*, tied=True, finetune="full", checkpointing=False, lengths=(64, 64), bf16=True, **model):
        key = (tied, finetune, checkpointing, lengths, bf16, tuple(model.items()))
        if key not in kept:
            plan = {
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
                ModelPlan(**plan), sequence_lengths=lengths, supervised=16, activation_checkpointing=checkpointing
            )
        return kept[key]

    return rehearsal


def zero_of(ranks, **settings):
    config = json.loads((SHIPPED / "ds_configs/zero3.json").read_text())
    config["zero_optimization"].update(settings)
    return sharding(config, ranks=ranks, ranks_per_node=8)


def needed(rehearsal, zero, **options):
    options = {"optimizer": "adamw", "on_gpu": True, **options}
    return memory(rehearsal, zero, walk(rehearsal, zero), **options)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_architecture(tied, made):
    hidden, wide, vocabulary = 96, 200, 1009
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * wide + 2 * hidden
    expected = (1 if tied else 2) * vocabulary * hidden + 5 * layer + hidden + 3 * hidden + 3
    assert made(tied=tied).parameters == made(tied=tied).trainable == expected
    lora = made(tied=tied, finetune="lora")
    assert lora.trainable == 5 * 4 * (4 * 2 * hidden - 2 * hidden // 2 + 3 * (hidden + wide)) + 3 * hidden + 3
    assert made(tied=tied, finetune="head").trainable == 3 * hidden + 3


def test_activations_grow_with_tokens_and_checkpointing_keeps_one_layer(made):
    short, long = (made(lengths=(tokens // 2,) * 2) for tokens in (1024, 2048))
    assert long.activation_peak == pytest.approx(2 * short.activation_peak, rel=0.1)
    assert made(lengths=(1024, 1024), checkpointing=True).activation_peak < 0.5 * long.activation_peak


def test_attention_keeps_no_scores_unless_it_is_eager(backbones):
    def peak(attention):
        plan = ModelPlan(
            backbone=str(backbones / "tied-True"), classes=2, finetune="full", top_layers=None, lora_rank=4,
            lora_alpha=8, lora_dropout=0.0, head_dropout=0.1, load_in_4bit=False, bf16=True,
        )  # fmt: skip
        lengths = (1024, 1024)
        return trace_micro_step(plan, sequence_lengths=lengths, supervised=16, activation_checkpointing=False,
                        attention=attention).activation_peak  # fmt: skip

    assert peak("sdpa") == pytest.approx(peak("flash"), rel=0.05)
    # Kept in each layer for the backward: the softmax in fp32 and its copy in bf16, of two sequences.
    layers, heads = LlamaConfig(**SHAPE).num_hidden_layers, LlamaConfig(**SHAPE).num_attention_heads
    assert peak("eager") > peak("flash") + layers * heads * 2 * 1024**2 * (4 + 2)


def test_a_layers_gradients_leave_in_the_optimizers_order(made):
    rehearsal = made()
    layer = [n for n, w in enumerate(rehearsal.weights) if ".layers.3." in w.name]
    gone = [e.at for e in rehearsal.events if e.moment is Moment.GRADIENT and e.at in layer]
    assert gone == sorted(layer, key=lambda n: (not rehearsal.weights[n].matrix, n))


def test_matmuls_cost_six_flops_a_weight_and_token_and_two_more_recomputed(made):
    plain, again = made(lengths=(512,)), made(lengths=(512,), checkpointing=True)
    in_layers = sum(w.numel for w in plain.weights if ".layers." in w.name and w.matrix)
    loss = 8 * 16 * 1009 * 96  # of 16 supervised tokens: one pass forward, three back
    assert plain.matmul_flops == pytest.approx(6 * 512 * in_layers + loss, rel=0.01)
    # DeepSpeed's linear map keeps its input after its product, so even a layer's last product is computed again.
    assert again.recomputed_flops == pytest.approx(2 * 512 * in_layers, rel=0.01)
    assert again.matmul_flops - again.recomputed_flops == pytest.approx(plain.matmul_flops)
    lora = made(lengths=(512,), finetune="lora")
    assert lora.matmul_flops == pytest.approx(4 * 512 * in_layers, rel=0.1)  # frozen weights have no gradient


def test_states_are_those_of_the_paper_and_of_deepspeeds_estimator_but_for_the_fp32_gradient(made):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    rehearsal, ranks = made(), 6
    parts = needed(rehearsal, zero_of(ranks)).device
    states = sum(parts[name] for name in ("weights", "master weights", "gradients", "optimizer"))
    assert states == pytest.approx(16 * rehearsal.parameters / ranks, rel=0.001)
    _, gpu, largest = estimate_zero3_model_states_mem_needs(
        total_params=rehearsal.parameters, largest_layer_params=0, num_gpus_per_node=ranks, cpu_offload=False,
        cpu_offload_params=False, zero_init=True,
    )  # fmt: skip
    # It counts 4 bytes of fp32 gradient for every element; they exist for one sub-group, while it is updated.
    assert largest == 0
    assert states == pytest.approx(gpu * 16 / 18, rel=0.001)


def test_each_optimizer_and_offload_has_its_states(made):
    rehearsal = made(bf16=False)
    plain = needed(rehearsal, zero_of(2)).device
    eight = needed(rehearsal, zero_of(2), optimizer="adamw_8bit").device
    assert eight["optimizer"] < 0.3 * plain["optimizer"]
    off = needed(rehearsal, zero_of(2, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}))
    assert not {"master weights", "gradients", "optimizer", "weights"} & set(off.device)
    assert off.host["optimizer"] == plain["optimizer"] and off.host["weights"] == plain["weights"]
    frozen = needed(made(finetune="head", bf16=False), zero_of(2)).device
    assert frozen["optimizer"] < 0.01 * plain["optimizer"]


def test_four_bits_keep_the_frozen_linear_maps_in_a_quarter_of_the_elements(made):
    lora = needed(made(finetune="lora"), zero_of(4)).device
    small = needed(made(finetune="lora", load_in_4bit=True), zero_of(4)).device
    linear = sum(w.numel for w in made(finetune="lora").weights if "base_layer" in w.name)
    assert lora["weights"] - small["weights"] == pytest.approx(2 * 0.75 * linear / 4, rel=0.001)
    assert small["quantisation scales"] == pytest.approx(linear / 16, rel=0.001)


def test_weights_are_gathered_again_for_the_backward_unless_they_stay(made):
    rehearsal = made(tied=False)
    stays = walk(rehearsal, zero_of(4, stage3_param_persistence_threshold=0)).first
    assert sum(g.elements for g in stays.gathers) == pytest.approx(rehearsal.parameters, rel=0.01)
    goes = walk(rehearsal, zero_of(4, stage3_param_persistence_threshold=0, **LETS_GO)).first
    layers = sum(w.numel for w in rehearsal.weights if ".layers." in w.name)
    assert sum(g.elements for g in goes.gathers) >= rehearsal.parameters + 0.7 * layers
    assert goes.peak.gathered < stays.peak.gathered
    for step in (stays, goes):
        assert sum(r.elements for r in step.reductions) == pytest.approx(rehearsal.parameters, rel=0.01)


def test_one_rank_gathers_nothing_and_small_weights_stay_whole_on_several(made):
    rehearsal = made()
    assert not walk(rehearsal, zero_of(1)).first.gathers
    everything = needed(rehearsal, zero_of(3, stage3_param_persistence_threshold=10**9)).device
    assert everything["persistent weights"] == 2 * rehearsal.parameters
    assert not walk(rehearsal, zero_of(3, stage3_param_persistence_threshold=10**9)).first.gathers


def test_a_smaller_sub_group_needs_less_for_the_optimizer_step(made):
    rehearsal = made(checkpointing=True, lengths=(8,))
    whole = needed(rehearsal, zero_of(1, reduce_bucket_size=10))
    parts = needed(rehearsal, zero_of(1, reduce_bucket_size=10, sub_group_size=50_000))
    assert whole.moment == "optimizer step"
    assert parts.device.get("optimizer step", 0) < 0.5 * whole.device["optimizer step"]


def test_the_order_of_modules_is_noted_as_deepspeed_hooks_it(made):
    events = made().events
    assert events[0].moment is Moment.PRE_FORWARD and events[0].at == 0
    gradients = [e.at for e in events if e.moment is Moment.GRADIENT]
    assert sorted(gradients) == list(range(len(made().weights)))
    assert all(e.held <= e.peak for e in events)


def test_experts_and_missing_configurations_are_refused_in_one_line(backbones, tmp_path):
    with pytest.raises(ModelError, match="routes tokens to 8 experts"):
        open_config(str(backbones / "experts"))
    with pytest.raises(ModelError, match=r"has no config\.json; name a folder"):
        open_config(str(tmp_path))
    Qwen3NextConfig(num_experts=0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has layers of the kind linear_attention: what they cost"):
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


def test_the_losss_part_is_a_tile_of_logits_and_its_gradients(made):
    rehearsal = made(lengths=(64, 64))
    tile = 16 * 1009 * 2  # 16 supervised tokens, the whole vocabulary
    weight = 1009 * 96 * 2
    assert tile + weight < rehearsal.loss_workspace < 3 * (tile + weight)
    assert all(e.held_of_loss <= e.held and e.peak_of_loss <= e.peak for e in rehearsal.events)
