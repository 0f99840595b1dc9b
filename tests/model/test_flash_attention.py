"""What flash-attention is handed: packed and decoded sequences, held against each row alone without it.

The kernels need a GPU; a double with their signatures stands in, which refuses what they refuse
(:mod:`tests.model.flash_attn_double`). In fp32, so that equality can be asked for; once in bf16, as they run.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.errors import ModelError
from clsgen_dist.model import attention
from clsgen_dist.model.attention import choose_attention, register_per_sequence_attention
from clsgen_dist.model.backbone import build_model
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.self_test import self_test
from tests.model import flash_attn_double
from tests.model.test_families import _table
from tests.model.tiny_families import WINDOW, tiny_config

KNOWN = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "smollm3", "gpt_neox", "stablelm"]
_TOKENS = np.random.default_rng(0).integers(3, 80, 60).astype(np.int32)
LENGTHS = [20, 7, 14, 5]
"""Of the packed rows; some longer than the tiny families' window."""


def _rows():
    starts = np.cumsum([0, *LENGTHS])
    rows = [_TOKENS[start : start + length] for start, length in zip(starts, LENGTHS, strict=False)]
    return [Sample(row[: len(row) * 2 // 3], row[len(row) * 2 // 3 :], k % 2) for k, row in enumerate(rows)]


def _model(kind, attention, dtype=torch.float32):
    config = tiny_config(kind)
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    assert lm.config._attn_implementation == attention
    return build_model(lm, head=HeadSpec(2), losses=LossSpec("reference"), finetune="full").eval()


def _step(model, batches):
    """Losses of each row, and gradients of their sum."""
    losses = []
    for batch in batches:
        output = model(**batch.inputs())
        (output.generation_loss.sum() + output.class_loss.sum()).backward()
        losses.append(torch.cat([output.generation_loss, output.class_loss.sum()[None]]).detach().sum())
    return torch.stack(losses).sum(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _assert_equal(found, truth, expected):
    loss, gradients = found
    torch.testing.assert_close(loss, truth, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        scale = max(1.0, expected[parameter].abs().max().item())
        torch.testing.assert_close(gradient / scale, expected[parameter] / scale, rtol=1e-4, atol=1e-5, msg=parameter)


def _kinds():
    """Every family that packs without flash-attention, and those that pack with it."""
    packed = {kind for kind, (layout, _) in _table().items() if layout == "packed"} | {"biogpt", "falcon", "nemotron"}
    # Conv1D: transformers cannot tell its fp32 queries' dtype; they are tested in bf16. No SDPA in the others.
    return sorted(packed - {"gpt2", "gpt-sw3"} | {"gemma2"})


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in KNOWN else pytest.mark.long) for k in _kinds()])
def test_packed_losses_and_gradients_equal_those_of_rows_alone(kind, version, monkeypatch):
    kernels = flash_attn_double.install(monkeypatch, version, exact=True)
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(tiny_config(kind))
    name = choose_attention("auto", on_gpu=True, dtype=torch.bfloat16, packed=True, lm=meta)
    if kind not in KNOWN and not name.startswith("flash"):
        pytest.skip(f"{kind} runs with {name} on a GPU too")
    assert name == f"flash_attention_{version}"
    truth, expected = _step(_model(kind, "eager"), [collate([row]) for row in _rows()])
    model = _model(kind, name)
    together = collate(_rows())
    _assert_equal(_step(model, [together]), truth, expected)
    assert len(kernels.varlen) >= 2 and kernels.batched == 0
    for call in kernels.varlen:
        assert call["cu_seqlens_q"].tolist() == call["cu_seqlens_k"].tolist() == together.sequence_start_S1.tolist()
        assert int(call["max_seqlen_q"]) == int(call["max_seqlen_k"]) == max(LENGTHS)
        assert call["shape"][0] == sum(LENGTHS)
    if kind in ("mistral", "gemma2", "gemma3_text"):
        assert (WINDOW - 1, WINDOW - 1) in [call["window_size"] for call in kernels.varlen]
    assert all((call["softcap"] == 50.0) == (kind == "gemma2") for call in kernels.varlen) or kind not in KNOWN


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt-sw3", "gemma3_text"])
def test_the_self_test_selects_packing_in_bf16(kind, monkeypatch):
    """The double in half precision only, as the kernels are."""
    kernels = flash_attn_double.install(monkeypatch, 2)
    model = _model(kind, "flash_attention_2", torch.bfloat16)
    with torch.no_grad():
        found = self_test(model, Sample(_TOKENS[:20], _TOKENS[20:30], -1))
        assert (found.layout, found.refusal) == ("packed", None)
        packed = model.hidden_states(**_inputs(collate(_rows())))
    assert len(kernels.varlen) > 0 and kernels.batched > 0
    other = _model(kind, "eager", torch.bfloat16)
    with torch.no_grad():
        alone = torch.cat([other.hidden_states(**_inputs(collate([row]))) for row in _rows()])
    assert ((packed - alone).float().norm(dim=-1) / alone.float().norm(dim=-1)).max() < 0.05


def _inputs(batch):
    return {name: getattr(batch, name) for name in ("input_ids_N", "position_N", "sequence_start_S1", "longest")}


def test_flash_attention_is_chosen_only_where_it_runs(monkeypatch):
    flash_attn_double.install(monkeypatch, 2)
    per_sequence = register_per_sequence_attention()

    def choose(wanted="auto", kind="llama", dtype=torch.bfloat16, **changes):
        with torch.device("meta"):
            config = tiny_config(kind)
            for name, value in changes.items():
                setattr(config, name, value)
            lm = AutoModelForCausalLM.from_config(config)
        return choose_attention(wanted, on_gpu=True, dtype=dtype, packed=True, lm=lm)

    assert choose() == "flash_attention_2"
    assert choose(dtype=torch.float32) == per_sequence, "train.precision=fp32; an export in fp32"
    assert choose(head_dim=512) == per_sequence
    for kind in ("gpt_neo", "gptj"):  # transformers' classes for flash-attention compute something else
        assert choose(kind=kind) == "eager"
    for kind in ("gpt_oss", "granite_swa", "hrm_text"):  # transformers would load another kernel, or fail
        assert choose(kind=kind) == per_sequence
    for options, message in (
        ({"dtype": torch.float32}, r"flash_attention_2', which computes in half precision, not in float32; use"),
        ({"head_dim": 512}, "heads of at most 256, and LlamaForCausalLM has 512"),
        ({"kind": "gpt_oss"}, "which GptOssForCausalLM does not support"),
        ({"kind": "hrm_text"}, r"which HrmTextForCausalLM does not support here \(.*prefix_lm"),
    ):
        with pytest.raises(ModelError, match=message):
            choose("flash_attention_2", **options)
    with pytest.raises(ModelError, match="needs a GPU and the flash-attn package"):
        choose("flash_attention_3")
    monkeypatch.setattr(attention, "_capability", lambda: (7, 5))
    assert choose() == per_sequence
    with pytest.raises(ModelError, match=r"has no kernels for compute capability 7\.5"):
        choose("flash_attention_2")


def test_version_3_is_left_alone_on_chips_that_it_has_no_kernels_for(monkeypatch):
    flash_attn_double.install(monkeypatch, 3)
    for capability, expected in {(9, 0): "flash_attention_3", (10, 0): "sdpa", (8, 0): "flash_attention_3"}.items():
        monkeypatch.setattr(attention, "_capability", lambda found=capability: found)
        assert choose_attention("auto", on_gpu=True, dtype=torch.bfloat16) == expected


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma3_text", "phi3", "gemma2", "gpt_oss", "gpt_neox"])
def test_without_flash_attn_torchs_kernels_take_all_sequences_in_one_call(kind, monkeypatch):
    truth, expected = _step(_model(kind, "eager"), [collate([row]) for row in _rows()])
    kernels = flash_attn_double.install_torch(monkeypatch)
    model, together = _model(kind, register_per_sequence_attention()), collate(_rows())
    _assert_equal(_step(model, [together]), truth, expected)
    if kind in ("gemma2", "gpt_oss"):  # a soft cap of scores, sinks
        assert not kernels.varlen
        return
    assert len(kernels.varlen) == model.lm.config.num_hidden_layers
    assert all(call["cu_seqlens_q"] is call["cu_seqlens_k"] for call in kernels.varlen)
    windows = {call["window_size"] for call in kernels.varlen}
    assert ((WINDOW - 1, 0) in windows) == (kind in ("mistral", "gemma3_text"))
    assert windows <= {(WINDOW - 1, 0), (-1, 0)}


def test_torchs_kernels_are_asked_for_only_where_they_run(monkeypatch):
    runs = attention._varlen_runs

    def found(dtype=torch.bfloat16, size=64, capability=(9, 0), on_gpu=True, value=None):
        monkeypatch.setattr(attention, "_capability", lambda: capability)
        query = SimpleNamespace(is_cuda=on_gpu, dtype=dtype, shape=(1, 4, 9, size))
        return runs(query, SimpleNamespace(shape=(1, 2, 9, value or size)))

    assert found() and found(torch.float16) and found(size=256) and found(capability=(12, 0))
    assert not found(torch.float32) and not found(on_gpu=False), "no kernels for fp32, none on a CPU"
    assert not found(size=264) and not found(size=20) and not found(size=192, value=128)
    assert not found(capability=(7, 5)) and not found(capability=None), "Turing; not NVIDIA"
    monkeypatch.setattr(attention, "_varlen_attn", lambda: None)
    assert not found()


def test_this_torch_has_the_call_that_the_double_stands_for():
    parameters = inspect.signature(attention._varlen_attn()).parameters
    assert {"scale", "window_size", "enable_gqa"} <= parameters.keys()
    assert list(parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def test_lengths_are_read_from_the_device_once_a_micro_batch(monkeypatch):
    """Where flash-attention is not installed: a read in each layer would make the host wait for the GPU there."""
    reads = []
    diff = torch.Tensor.diff
    monkeypatch.setattr(torch.Tensor, "diff", lambda tensor: reads.append(1) or diff(tensor))
    model, batch = _model("llama", register_per_sequence_attention()), collate(_rows())
    with torch.no_grad():
        first = model.hidden_states(**_inputs(batch))
        assert (len(reads), model.lm.config.num_hidden_layers) == (1, 2)
        other = model.hidden_states(**_inputs(collate(_rows()[:2])))
    torch.testing.assert_close(other, first[: sum(LENGTHS[:2])])
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.float32}, "only supports fp16 and bf16"),
        ({"cu_seqlens_q": torch.int64}, "cu_seqlens_q must have dtype int32"),
        ({"cu_seqlens_k": "meta"}, "cu_seqlens_k is on meta"),
        ({"max_seqlen_q": 4}, "max_seqlen_q is 4, of lengths"),
        ({"causal": False}, "causal=False"),
        ({"q": "strided"}, "contiguous last dimension"),
        ({"k": "wide"}, r"keys \(8, 2, 16\)"),
        ({"cu_seqlens_q": "short"}, "spans"),
    ],
)
def test_the_double_refuses_what_the_kernels_would_not_take(change, message):
    q, k, v = (torch.randn(8, 2, 8, dtype=torch.bfloat16) for _ in range(3))
    cu = torch.tensor([0, 5, 8], dtype=torch.int32)
    call = {"q": q, "k": k, "v": v, "cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 5, "max_seqlen_k": 5}
    attend = flash_attn_double.Kernels().modules(2)["flash_attn"].flash_attn_varlen_func
    assert attend(**call, causal=True).shape == q.shape
    ((name, value),) = change.items()
    given = (call | {"causal": True})[name]
    if isinstance(value, torch.dtype) or value == "meta":
        value = given.to(value)
    elif isinstance(value, str):
        value = {
            "strided": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
            "wide": lambda t: torch.cat([t, t], -1),
            "short": lambda t: torch.tensor([0, 5, 7], dtype=torch.int32),
        }[value](given)
    with pytest.raises(RuntimeError, match=message):
        attend(**(call | {"causal": True} | {name: value}))


def test_the_signatures_are_the_published_ones():
    """transformers decides by name what it hands over."""
    for version, last in ((2, "block_table"), (3, "return_attn_probs")):
        [module] = [m for n, m in flash_attn_double.Kernels().modules(version).items() if "." not in n]
        flash = transformers.modeling_flash_attention_utils
        supports = flash._lazy_define_process_function(module.flash_attn_varlen_func).keywords["supports_mapping"]
        assert supports["window_size"] and supports["softcap"] and supports["max_seqlen_q"] and not supports["s_aux"]
        assert supports["dropout_p"] == (version == 2)
        assert list(module.flash_attn_varlen_func.__annotations__) == []
        assert module.flash_attn_varlen_func.__code__.co_varnames[
            module.flash_attn_varlen_func.__code__.co_argcount - 1
        ] == last  # fmt: skip
