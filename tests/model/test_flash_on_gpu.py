"""Flash-attention itself on packed rows, in bf16, against scaled-dot-product attention. Skipped without it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from clsgen_dist.data.pack import collate
from clsgen_dist.model import attention
from clsgen_dist.model.attention import choose_attention, register_per_sequence_attention
from tests.model.test_flash_attention import KNOWN, _model, _rows
from tests.model.tiny_families import tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


KINDS = [kind for kind in KNOWN if kind != "stablelm"]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_losses_and_gradients_of_sdpa(kind, monkeypatch):
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(tiny_config(kind))
    name = choose_attention("auto", on_gpu=True, dtype=torch.bfloat16, packed=True, lm=meta)
    if not name.startswith("flash"):
        pytest.skip("needs flash-attn (pip install '.[gpu]')")
    _equal_those_of_sdpa(kind, name, monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_varlen_kernels_give_the_losses_and_gradients_of_sdpa(kind, monkeypatch):
    if attention._varlen_attn() is None:
        pytest.skip("needs torch 2.13")
    _equal_those_of_sdpa(kind, register_per_sequence_attention(), monkeypatch)


def _equal_those_of_sdpa(kind, name, monkeypatch):
    """Of one call per sequence."""
    found = {}
    for implementation, varlen in ((name, True), (register_per_sequence_attention(), False)):
        if not varlen:
            monkeypatch.setattr(attention, "_varlen_runs", lambda *_: False)
        model = _model(kind, implementation, torch.bfloat16).cuda()
        output = model(**collate(_rows()).inputs("cuda"))
        (output.generation_loss.sum() + output.class_loss.sum()).backward()
        gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
        found[varlen] = output.generation_loss.detach().float(), gradient
    (loss, gradient), (expected, expected_gradient) = found.values()
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.05)
    assert (gradient - expected_gradient).norm() < 0.1 * expected_gradient.norm()
