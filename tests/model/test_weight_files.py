"""A base's weight files against its model's parameters: checked before training, reversed at export."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from clsgen_dist.errors import ModelError
from clsgen_dist.hf_export.merge import Merge, write_shards
from clsgen_dist.model.backbone import build_model, load_backbone, open_backbone
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.weight_files import WeightFiles

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _save(folder, kind, **changes):
    """A tiny model of a type, saved as transformers saves it."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**SIZES | {"max_position_embeddings": 64} | changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


FAMILIES = {
    "llama": {"intermediate_size": 64},
    "gpt2": {},  # linear maps are kept transposed
    "gpt_neox": {"intermediate_size": 64},  # its head is called embed_out in the files
    "mixtral": {"intermediate_size": 64, "num_local_experts": 3, "num_key_value_heads": 2},  # experts are stacked
    "qwen3_moe": {
        "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 64,
        "num_key_value_heads": 2, "head_dim": 8,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / request.param
    return _save(folder, request.param, **FAMILIES[request.param])


def _reload(folder, base):
    from transformers import AutoModelForCausalLM

    shutil.copy(base / "config.json", folder)
    lm, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return lm


@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_every_trained_weight_is_in_the_export(base, tmp_path, max_shard_bytes):
    opened = open_backbone(str(base))
    opened.weights.require_reversible()
    lm = load_backbone(opened, dtype=torch.float32, attention="eager")
    torch.manual_seed(1)
    trained = {name: torch.randn_like(p) for name, p in lm.named_parameters()}
    merge = Merge(trained, opened.weights, scale=1.0)
    write_shards(tmp_path, opened.weights, merge, max_shard_bytes)
    assert WeightFiles(tmp_path).shapes == {
        name: shape for name, shape in WeightFiles(base).shapes.items() if name in WeightFiles(tmp_path).shapes
    }
    for name, parameter in _reload(tmp_path, base).named_parameters():
        assert torch.equal(parameter, trained[name]), name


def test_frozen_weights_are_copied_bit_for_bit(base, tmp_path):
    opened = open_backbone(str(base))
    write_shards(tmp_path, opened.weights, Merge({}, opened.weights, scale=1.0), 10**9)
    written = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(base / "model.safetensors").items():
        assert torch.equal(written[name], tensor), name


def test_lora_is_merged_as_it_was_trained(base, tmp_path):
    opened = open_backbone(str(base))
    model = build_model(
        load_backbone(opened, dtype=torch.float32, attention="eager"),
        head=HeadSpec(2),
        finetune="lora",
        lora_rank=4,
        lora_alpha=8,
    ).eval()
    torch.manual_seed(1)
    trained = {}
    for name, parameter in model.lm.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.1
            trained[name] = parameter.data
    assert trained
    merge = Merge(trained, opened.weights, scale=2.0)
    write_shards(tmp_path, opened.weights, merge, 10**9)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(_reload(tmp_path, base).eval()(ids).logits, model.lm(ids).logits)


def test_a_base_with_pickled_weights_only_is_read_and_exported_as_safetensors(tmp_path):
    base = _save(tmp_path / "base", "llama", intermediate_size=64, tie_word_embeddings=True)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    # Pickles hold a tied weight under both names.
    torch.save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, base / "pytorch_model.bin")
    opened = open_backbone(str(base))
    assert not opened.unties
    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", opened.weights, Merge({}, opened.weights, scale=1.0), 10**9)
    assert load_file(tmp_path / "out/model.safetensors").keys() == tensors.keys()
    _reload(tmp_path / "out", base)


def test_a_trained_tensor_that_cannot_be_exported_is_refused(base):
    opened = open_backbone(str(base))
    with pytest.raises(ModelError, match=r"elsewhere\.weight .* could be trained but not exported"):
        Merge({"elsewhere.weight": torch.zeros(1)}, opened.weights, scale=1.0)


@pytest.fixture
def llama(tmp_path):
    return _save(tmp_path / "llama", "llama", intermediate_size=64, tie_word_embeddings=False)


def _change(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"}, r"lm_head\.weight.*tie_word_embeddings"),
        (lambda t: {n: v for n, v in t.items() if ".layers.1.mlp." not in n}, r"layers\.1\.mlp.*initialised randomly$"),
        (lambda t: {f"module.{n}": v for n, v in t.items()}, "start with 'module.': save them without it"),
        (lambda t: {f"base_model.model.{n}": v for n, v in t.items()}, "start with 'base_model.model.'"),
        (
            lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"} | {"score.weight": torch.zeros(2, 32)},
            "of a classifier or reward model",
        ),
        (lambda t: t | {"model.norm.weight": torch.zeros(31)}, r"norm\.weight is \(31,\), expected \(32,\)"),
    ],
    ids=["no head", "no layer", "module.", "peft", "classifier", "shape"],
)
def test_weights_that_would_be_initialised_randomly_are_refused(llama, change, expected):
    _change(llama, change)
    with pytest.raises(ModelError, match=expected):
        open_backbone(str(llama))


def test_tensors_that_no_parameter_uses_are_copied(llama, tmp_path):
    _change(llama, lambda t: t | {"mtp.layers.0.weight": torch.ones(3)})
    opened = open_backbone(str(llama))
    assert opened.weights.unused == ["mtp.layers.0.weight"]
    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", opened.weights, Merge({}, opened.weights, scale=1.0), 10**9)
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")["mtp.layers.0.weight"], torch.ones(3))


def test_an_untied_head_is_kept_although_the_configuration_ties_it(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    opened = open_backbone(str(llama))
    assert opened.unties and not opened.config.tie_word_embeddings
    lm = load_backbone(opened, dtype=torch.float32, attention="eager")
    assert torch.equal(lm.lm_head.weight, load_file(llama / "model.safetensors")["lm_head.weight"])
    assert not torch.equal(lm.lm_head.weight, lm.model.embed_tokens.weight)


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")


def _lost_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_cut, "cannot be read as weights"),
        (_pointer, "Git LFS pointer"),
        (_lost_shard, "lacks 2 of the 2 weight files"),
        (lambda f: (f / "model.safetensors").rename(f / "model.gguf"), r"neither model\.safetensors.*only model\.gguf"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("{}"), "has no model_type"),
        (lambda f: (f / "config.json").unlink(), r"has no config\.json"),
    ],
    ids=["cut short", "pointer", "lost shard", "gguf", "bad json", "empty json", "no config"],
)
def test_damaged_files_are_a_one_line_error_with_a_remedy(llama, damage, expected):
    damage(llama)
    with pytest.raises(ModelError, match=expected) as caught:
        open_backbone(str(llama))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "llama9"}, "'llama9', which this version of transformers does not know"),
        ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}}, "has remote code"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised .gptq."),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "is quantised"),
    ],
)
def test_unsupported_backbones_are_refused_without_asking_about_remote_code(llama, fields, expected):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(ModelError, match=expected):
        open_backbone(str(llama))


def test_an_adapter_alone_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter.*merge_and_unload"):
        open_backbone(str(tmp_path))
