"""LoRA adapters that are not merged: peft opens them, and they compute what a merged export does."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForCausalLM

from clsgen_dist import checkpoint
from clsgen_dist.errors import ModelError, SettingsError
from clsgen_dist.hf_export.adapters import CONFIG_FILE, WEIGHTS_FILE, merge_adapters, write_adapters
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard
from clsgen_dist.hf_export.export import export
from clsgen_dist.hf_export.fold import fold
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.model.adapters import inject_lora
from clsgen_dist.model.backbone import layer_stack, open_backbone
from clsgen_dist.model.settings import ModelSettings

real_run = lambda test: pytest.mark.dist(pytest.mark.slow(test))  # noqa: E731
TEXTS = ["Size high, texture low.", "x", "Radius lowest. " * 9]


@pytest.fixture(scope="module")
def exported(train, tiny_backbone, tmp_path_factory):
    """(run, merged export, adapters); the three upper layers are adapted."""
    output = tmp_path_factory.mktemp("adapters")
    train(output / "run", ranks=1, model__backbone=tiny_backbone, model__finetune="lora", model__top_layers=3,
          train__max_steps=3, optim__lr=2e-2)  # fmt: skip
    export(output / "run", output / "merged")
    export(output / "run", output / "adapters", merge=False)
    return output / "run", output / "merged", output / "adapters"


@torch.no_grad()
def _logits(lm, ids_1T):
    return lm(input_ids=ids_1T).logits


@real_run
def test_peft_gives_the_logits_of_the_merged_export(exported, tiny_backbone):
    _, merged, adapters = exported
    ids_1T = torch.arange(5, 45)[None]
    expected = _logits(AutoModelForCausalLM.from_pretrained(merged).eval(), ids_1T)
    base = AutoModelForCausalLM.from_pretrained(tiny_backbone).eval()
    before = _logits(base, ids_1T)
    assert (before - expected).abs().max() > 1e-2, "training changed nothing, so the comparison shows nothing"
    opened = [
        PeftModel.from_pretrained(base, adapters),
        AutoPeftModelForCausalLM.from_pretrained(adapters),
        AutoModelForCausalLM.from_pretrained(adapters),  # transformers opens the base that the folder names
    ]
    for lm in opened:
        torch.testing.assert_close(_logits(lm.eval(), ids_1T), expected, atol=1e-5, rtol=1e-5)


@real_run
def test_the_predictor_gives_the_predictions_of_the_merged_export(exported):
    _, merged, adapters = exported
    found, expected = (Predictor(folder).predict(TEXTS, max_new_tokens=8) for folder in (adapters, merged))
    assert found == expected  # to the last bit: the weights are the same


@real_run
def test_the_folder_is_small_and_says_what_it_is_for(exported, tiny_backbone):
    _, merged, adapters = exported
    names = {str(path.relative_to(adapters)) for path in adapters.rglob("*") if path.is_file()}
    assert {CONFIG_FILE, WEIGHTS_FILE, HEAD_FILE, "clsgen.json", "README.md", "tokenizer.json"} <= names
    assert not names & {"config.json", "model.safetensors"}
    config = json.loads((adapters / CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == str(tiny_backbone) and config["task_type"] == "CAUSAL_LM"
    tensors = load_file(adapters / WEIGHTS_FILE)
    assert len(tensors) == 3 * 7 * 2 and not any("layers.0." in name for name in tensors)
    card = ModelCard.read(adapters)
    assert card.base_fingerprint == open_backbone(str(tiny_backbone)).weights.fingerprint()
    assert ModelCard.read(merged).base_fingerprint is None
    readme = (adapters / "README.md").read_text()
    assert "library_name: peft" in readme and CONFIG_FILE in readme and "model*.safetensors" not in readme


@real_run
def test_adapters_that_differ_leave_evidence_and_are_refused(exported, tmp_path, monkeypatch):
    from clsgen_dist.hf_export import export as module

    run, _, _ = exported
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for folder in checkpoint.committed(copy / "checkpoints"):
        marker = checkpoint.read_marker(folder)
        marker["canary"]["token_losses"][0] += 0.01
        checkpoint.commit(folder, marker)
    with pytest.raises(ModelError, match="differ from the trained model's"):
        export(copy, tmp_path / "model", merge=False)
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".*partial"))
    evidence = json.loads((tmp_path / "model.differed.json").read_text())
    assert evidence["written_unlike_second_merge"] == [] == evidence["loaded_unlike_written"]
    assert evidence["difference_when_loaded_again"] == pytest.approx([0.01, 0.01], abs=1e-4)

    def damaged(folder, *rest):
        write_adapters(folder, *rest)
        tensors = load_file(folder / WEIGHTS_FILE)
        save_file({**tensors, min(tensors): tensors[min(tensors)] + 1}, folder / WEIGHTS_FILE)

    monkeypatch.setattr(module, "write_adapters", damaged)
    with pytest.raises(ModelError, match="differ from the trained model's"):
        export(run, tmp_path / "model", merge=False)
    evidence = json.loads((tmp_path / "model.differed.json").read_text())
    assert evidence["written_unlike_second_merge"] == [min(load_file(exported[2] / WEIGHTS_FILE))]
    assert evidence["loaded_unlike_written"] == []


@real_run
def test_what_cannot_be_left_unmerged_is_refused(exported, tmp_path):
    run, _, adapters = exported
    with pytest.raises(SettingsError, match="--fold is true, but the folded head is rows of merged weights"):
        export(run, tmp_path / "model", merge=False, fold=True)
    with pytest.raises(SettingsError, match=r"--interpolation is 0\.5, but adapters are exported as they were trained"):
        export(run, tmp_path / "model", merge=False, interpolation=0.5)
    with pytest.raises(ModelError, match="has LoRA adapters, and the folded head is rows of merged weights"):
        fold(adapters, tmp_path / "model")
    full = tmp_path / "run"
    shutil.copytree(run, full)
    for folder in checkpoint.committed(full / "checkpoints"):
        file = folder / checkpoint.SETTINGS_FILE
        file.write_text(file.read_text().replace("finetune: lora", "finetune: full"))
        marker = checkpoint.read_marker(folder)
        checkpoint.commit(folder, {**marker, "files": {**marker["files"], file.name: checkpoint.seal(file)}})
    with pytest.raises(SettingsError, match=r"was trained with model\.finetune=full, expected lora: there are no"):
        export(full, tmp_path / "model", merge=False)
    assert not (tmp_path / "model").exists()


@real_run
def test_adapters_without_their_base_or_on_another_one_are_refused(exported, tiny_untied, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(exported[2], folder)

    def on(base):
        fields = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**fields, "base_model_name_or_path": str(base)}))

    same = tmp_path / "same-in-float64"
    shutil.copytree(fields_of(folder)["base_model_name_or_path"], same)
    LlamaForCausalLM.from_pretrained(same).double().save_pretrained(same, max_shard_size="500KB")
    (same / "model.safetensors").unlink()
    on(same)
    Predictor(folder)
    on(tiny_untied)
    with pytest.raises(ModelError, match=r"adapters for other weights than those of .*untied; name its folder as"):
        Predictor(folder)
    on(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"adapters without their base \(base_model_name_or_path .*--merge true"):
        Predictor(folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json cannot be read"):
        Predictor(folder)


def fields_of(folder):
    return json.loads((folder / CONFIG_FILE).read_text())


FAMILIES = {
    "llama": {},
    "gpt2": {},  # its linear layers are stored [in, out], and names repeat: attn.c_proj and mlp.c_proj
    "mixtral": {"num_local_experts": 3},  # experts are stacked into one tensor, and not adapted
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16},
}


def _adapted(folder, kind, dtype=torch.float32, **changes):
    """The base of a family in ``folder / "base"``, with random adapters; and these, by their names."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = CONFIG_MAPPING[kind](vocab_size=64, intermediate_size=64, **sizes, **FAMILIES[kind], **changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder / "base")
    lm = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    inject_lora(layer_stack(lm)[1], [0, 1], rank=4, alpha=6, dropout=0.0)
    return lm, {name: p.data.normal_(std=0.3) for name, p in lm.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_peft_puts_adapters_where_they_were_trained_in_every_family(kind, dtype, tmp_path):
    lm, trained = _adapted(tmp_path, kind, dtype)
    merged, plain = (AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval() for _ in range(2))
    settings = ModelSettings(backbone=str(tmp_path / "base"), lora_rank=4, lora_alpha=6)
    folder = tmp_path / "adapters"
    write_adapters(folder, open_backbone(str(tmp_path / "base")), trained, settings)
    assert fields_of(folder)["fan_in_fan_out"] is (kind == "gpt2")
    ids_1T = torch.arange(30)[None]
    expected = _logits(lm, ids_1T)
    merge_adapters(merged, folder)
    atol = 1e-5 if dtype == torch.float32 else 0.1
    assert (_logits(plain, ids_1T) - expected).abs().max() > 3 * atol
    for found in (merged, PeftModel.from_pretrained(plain, folder)):
        np.testing.assert_allclose(_logits(found, ids_1T).float(), expected.float(), atol=atol)


def test_adapters_that_peft_would_put_elsewhere_are_refused(tmp_path):
    """Dense layers among those of experts: peft takes their gate_proj for the experts'."""
    _, trained = _adapted(tmp_path, "qwen3_moe", mlp_only_layers=[1])
    base = open_backbone(str(tmp_path / "base"))
    with pytest.raises(ModelError, match=r"not put the adapters of Qwen3MoeForCausalLM where .*--merge true"):
        write_adapters(tmp_path / "a", base, trained, ModelSettings(backbone=str(tmp_path / "base"), lora_rank=4))
