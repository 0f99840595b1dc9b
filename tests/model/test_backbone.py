"""Trainable parameters, the head's initial weight, and which backbones are refused."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clsgen_dist.checkpoint import frozen_sums
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.errors import ModelError
from clsgen_dist.model.attention import choose_attention, register_per_sequence_attention
from clsgen_dist.model.backbone import (
    backbone_path,
    build_model,
    checkpoint_activations,
    label_start_tokens,
    load_backbone,
    load_tokenizer,
    open_backbone,
    require_finite,
)
from clsgen_dist.model.classification_head import HeadSpec


def _lm(path):
    return load_backbone(open_backbone(str(path)), dtype=torch.float32, attention="sdpa")


def _model(path, **changes):
    return build_model(_lm(path), **{"head": HeadSpec(2, dropout=0.5), "finetune": "full", "lora_rank": 4, **changes})


def _trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_full_finetuning_trains_everything(tiny_backbone):
    model = _model(tiny_backbone)
    assert _trainable(model) == {name for name, _ in model.named_parameters()}


def test_upper_layers_are_trained_with_the_final_norm_and_the_rest_is_frozen(tiny_backbone):
    trainable = _trainable(_model(tiny_backbone, top_layers=1))
    assert "lm.model.norm.weight" in trainable
    assert "lm.model.embed_tokens.weight" not in trainable
    assert {n.split(".")[3] for n in trainable if ".layers." in n} == {"3"}


def test_lora_reaches_every_linear_layer_of_the_chosen_layers_and_not_the_lm_head(tiny_untied):
    trainable = _trainable(_model(tiny_untied, finetune="lora", top_layers=2))
    modules = {n.split(".layers.")[1].split(".lora_")[0] for n in trainable if ".layers." in n}
    parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    parts += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert modules == {f"{layer}.{part}" for layer in (2, 3) for part in parts}
    assert not any("lm_head" in n or "embed" in n for n in trainable)


def test_finetune_head_trains_only_the_head(tiny_backbone):
    assert _trainable(_model(tiny_backbone, finetune="head")) == {
        "classification_head.weight",
        "classification_head.bias",
    }


def test_the_head_is_initialised_from_the_labels_first_tokens(tiny_backbone):
    tokenizer = load_tokenizer(str(tiny_backbone))
    encoder = Encoder(tokenizer, system=None, question="Why?", max_prompt_length=128)
    tokens = label_start_tokens(encoder, ["benign", "malignant"])
    assert [tokenizer.decode([t]) for t in tokens] == ["Ben", "Mal"]
    model = _model(tiny_backbone, head=HeadSpec(2, label_tokens=tokens))
    expected = model.lm.get_output_embeddings().weight[tokens]
    assert torch.equal(model.classification_head.weight, expected)
    assert label_start_tokens(encoder, ["class one", "class two"]) is None


def test_head_dropout_acts_in_training_only(tiny_backbone):
    head = _model(tiny_backbone).classification_head
    scale = head.train().dropout_scale(100)
    assert set(scale.unique().tolist()) == {0.0, 2.0}
    assert head.eval().dropout_scale(100) is None


def test_more_top_layers_than_the_backbone_has_are_refused(tiny_backbone):
    with pytest.raises(ModelError, match="top_layers is 9, but the backbone has 4"):
        _model(tiny_backbone, top_layers=9)


def test_unknown_backbones_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"expected 'demo:smollm2-135m', the only embedded backbone"):
        backbone_path("demo:smollm3")
    with pytest.raises(ModelError, match="is not a folder"):
        backbone_path(str(tmp_path / "nothing"))


def test_attention_is_chosen_by_what_is_available():
    assert choose_attention("auto", on_gpu=False) == "sdpa"
    assert choose_attention("auto", on_gpu=False, packed=True) == register_per_sequence_attention()
    with pytest.raises(ModelError, match="needs a GPU"):
        choose_attention("flash_attention_2", on_gpu=False)


def test_a_backbone_that_cannot_be_downloaded_is_a_one_line_error():
    with pytest.raises(ModelError, match=r"'nobody/nothing' has no tokenizer that can be read here"):
        load_tokenizer("nobody/nothing")


@pytest.mark.parametrize(
    ("finetune", "top_layers", "recomputed"), [("head", None, 0), ("full", 1, 1), ("full", None, 4)]
)
def test_only_layers_with_a_backward_pass_are_recomputed(tiny_backbone, finetune, top_layers, recomputed):
    """transformers' own switch also runs frozen layers twice forward and once backward."""
    model = _model(tiny_backbone, finetune=finetune, top_layers=top_layers).train()
    checkpoint_activations(model.lm)
    passes = []
    for layer in model.lm.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: passes.append(1))
    batch = collate([Sample(np.arange(3, 20, dtype=np.int32), np.arange(20, 30, dtype=np.int32), 1)])
    output = model(**batch.inputs())
    (output.generation_loss.sum() + output.class_loss.sum()).backward()
    assert len(passes) == 4 + recomputed


def test_the_padding_of_a_shard_is_neither_checked_nor_summed():
    """Seven elements on three ranks: the last shard holds one, and two uninitialised ones."""
    world = SimpleNamespace(rank=2, size=3, gather=lambda value: [value], sum=lambda *values: list(values))
    shard = torch.tensor([1.5, math.nan, math.inf])
    shard.ds_numel = 3
    parameter = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    parameter.ds_tensor, parameter.ds_numel = shard, 7
    model = SimpleNamespace(named_parameters=lambda: [("w", parameter)], parameters=lambda: [parameter])
    require_finite(model, world)
    assert frozen_sums(model, world) == (1.5, 2.25)
    shard[0] = math.nan
    with pytest.raises(ModelError, match="NaN or infinity: w;"):
        require_finite(model, world)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4_bit_codes_are_not_taken_for_weights_that_are_not_finite(dtype, tiny_backbone):
    """They lie in tensors of the other weights' dtype, where some look like NaN."""
    lm = load_backbone(open_backbone(str(tiny_backbone)), dtype=dtype, attention="sdpa", load_in_4bit=True)
    world = SimpleNamespace(rank=0, size=1, gather=lambda found: [found], sum=lambda *values: list(values))
    codes = [m.weight for m in lm.modules() if type(m).__name__ == "Linear4bit"]
    assert len(codes) == 28 and any(not torch.isfinite(weight.data).all() for weight in codes)
    require_finite(lm, world)
    assert all(map(math.isfinite, frozen_sums(lm.requires_grad_(False), world)))
    with torch.no_grad():
        lm.model.norm.weight[3] = float("nan")
    with pytest.raises(ModelError, match=r"NaN or infinity: model\.norm\.weight; download"):
        require_finite(lm, world)
