"""How transformers 4 and 5, and other engines, read an exported folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from clsgen_dist.hf_export.artifact import HEAD_FILE
from clsgen_dist.hf_export.config_files import copy_small_files, write_chat_template, write_config
from clsgen_dist.hf_export.merge import Merge, write_shards
from clsgen_dist.model.backbone import open_backbone

SIZES = {
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
BASES = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "llama, scaled": {"rope_parameters": LLAMA3},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 4e4, "partial_rotary_factor": 0.5}},
    "stablelm": {"rope_parameters": {"rope_type": "default", "rope_theta": 4e4, "partial_rotary_factor": 0.25}},
    "gemma3_text": {
        "sliding_window": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
        },
    },
    "qwen2": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
                                  "original_max_position_embeddings": 128}},
}  # fmt: skip


def _export(folder, base, labels=("no", "yes")):
    """The files of an export, of an untrained base."""
    opened = open_backbone(str(base))
    folder.mkdir()
    write_shards(folder, opened.weights, Merge({}, opened.weights, scale=1.0), 10**9)
    write_config(folder, opened, list(labels))
    copy_small_files(folder, base)
    return folder


@pytest.fixture(scope="module", params=BASES)
def base(request, smollm2, tmp_path_factory):
    """A tiny base as transformers 5 saves it, with rotary settings that are not the default."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("base") / "base"
    torch.manual_seed(0)
    config = CONFIG_MAPPING[request.param.split(",")[0]](**SIZES | BASES[request.param])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    return folder


def test_transformers_5_reads_the_configuration_of_the_base(base, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    exported = _export(tmp_path / "out", base)
    before, after = (AutoConfig.from_pretrained(folder).to_dict() for folder in (base, exported))
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"id2label", "label2id", "_name_or_path", "torch_dtype", "rope_theta", "partial_rotary_factor",
                       "rotary_pct", "rotary_emb_base", "rope_local_base_freq"}  # fmt: skip
    assert after["id2label"] == {0: "no", 1: "yes"} and after["label2id"] == {"no": 0, "yes": 1}
    text = "Milk on cereal <|im_end|> x"
    ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for folder in (base, exported)]
    assert ids[0] == ids[1]


def test_settings_of_the_base_are_kept(base, tmp_path):
    fields = json.loads((base / "config.json").read_text())
    changed = tmp_path / "base"
    shutil.copytree(base, changed)
    (changed / "config.json").write_text(json.dumps(fields | {"torch_dtype": "float32", "my_own": [1]}))
    (changed / "generation_config.json").write_text('{"repetition_penalty": 1.3}')
    (changed / "LICENSE.txt").write_text("as it was")
    exported = _export(tmp_path / "out", changed)
    written = json.loads((exported / "config.json").read_text())
    assert written["my_own"] == [1] and {name: written[name] for name in fields} == fields
    assert (exported / "generation_config.json").read_text() == '{"repetition_penalty": 1.3}'
    assert (exported / "LICENSE.txt").read_text() == "as it was"


def test_no_engine_loads_the_head_as_backbone_weights(base, tmp_path):
    exported = _export(tmp_path / "out", base)
    (exported / HEAD_FILE).parent.mkdir()
    (exported / HEAD_FILE).write_bytes(b"")
    assert [p.name for p in exported.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("kept_in", ["a file", "the configuration", "the configuration, several"])
def test_the_chat_template_of_training_is_the_default_of_the_export(smollm2, tmp_path, kept_in):
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(smollm2 / name, tmp_path / name)
    if kept_in != "a file":
        own = (tmp_path / "chat_template.jinja").read_text()
        (tmp_path / "chat_template.jinja").unlink()
        named = [{"name": "default", "template": own}, {"name": "tool_use", "template": "TOOLS"}]
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        config["chat_template"] = named if kept_in.endswith("several") else own
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    write_chat_template(tmp_path, "MINE {{ messages[0].content }}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    hello = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(hello, tokenize=False) == "MINE hello"
    if kept_in.endswith("several"):
        assert tokenizer.chat_template["tool_use"] == "TOOLS"
    else:
        assert tokenizer.chat_template == "MINE {{ messages[0].content }}"


@pytest.fixture(scope="session")
def transformers4(tmp_path_factory):
    """A folder with transformers 4, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("transformers4")
    wanted = ["transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *wanted],
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("needs transformers 4.57.6 from PyPI, which cannot be installed here")
    return folder


READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Milk on cereal, which is fine as it is <|im_end|> x" * 3)["input_ids"]
chat = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
lm = AutoModelForCausalLM.from_pretrained(sys.argv[1], attn_implementation="eager").eval()
with torch.no_grad():
    logits = lm(torch.tensor([ids])).logits[0, -1, :50].tolist()
print(json.dumps([transformers.__version__, ids, chat, logits]))
"""


@pytest.mark.long
def test_transformers_4_reads_the_same_model_as_transformers_5(base, tmp_path, transformers4):
    exported = _export(tmp_path / "out", base)
    answers = []
    for path in ("", str(transformers4)):
        done = subprocess.run(
            [sys.executable, "-c", READ, str(exported)],
            capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    new, old = answers
    assert new[0].startswith("5.") and old[0] == "4.57.6"
    assert new[1:3] == old[1:3]
    torch.testing.assert_close(torch.tensor(old[3]), torch.tensor(new[3]), rtol=1e-4, atol=1e-5)
