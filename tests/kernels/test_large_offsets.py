"""Row offsets beyond 2³¹ elements: 262144 rows of 8192 have them.

The tensors lie far apart in 9 GiB of address space of which only the touched pages take memory, with as much before
their start: an offset that wraps to a negative number reads and writes zeros there instead of crashing.
"""

from __future__ import annotations

import mmap

import mutated
import pytest
import torch
from clsgen_kernels import fused
from clsgen_kernels.inputs import ClassOptions, GenerationOptions, HeadInputs, LMInputs
from clsgen_kernels.launch import INTERPRETED

# n supervised tokens, D hidden, V vocabulary

n, D, V = 33, 8, 65
_START = 2**31
_NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python does not name

MUTANTS = {
    "hidden": ("tl.cast(a_first, tl.int64) * a_stride", "a_first * a_stride", 1),
    "weight": ("tl.cast(b_first, tl.int64) * b_stride", "b_first * b_stride", 1),
    "written logits": ("stored_row.to(tl.int64) * logits_stride", "stored_row * logits_stride", 1),
    "slabs of logits": ("number.to(tl.int64) * slab_stride", "number * slab_stride", 1),
    "read logits": ("+ first_row.to(tl.int64) * logits_stride", "+ first_row * logits_stride", 1),
    "workspace": ("first_row.to(tl.int64) * grad_stride", "first_row * grad_stride", 1),
    "factor": ("row.to(tl.int64)[:, None] * a_row_stride", "row[:, None] * a_row_stride", 1),
    "product": ("row.to(tl.int64)[:, None] * out_stride", "row[:, None] * out_stride", 1),
}


def _far_apart(values: torch.Tensor) -> torch.Tensor:
    """The same values, the last row 2³¹ elements after the first."""
    space = mmap.mmap(-1, 9 * 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    rows, columns = values.shape
    last = (rows - 1) // 16 * 16  # where the last tile begins
    far = torch.frombuffer(space, dtype=values.dtype).as_strided((rows, columns), (_START // last, 1), _START)
    return far.copy_(values)


def _slabs(far: str) -> torch.Tensor:
    """Zeros ``[3, n, 32]``: rows far apart, or the third slab 2³¹ elements after the first."""
    if far == "written logits":
        return _far_apart(torch.zeros(n, 96).half()).view(n, 3, 32).transpose(0, 1)
    if far == "slabs of logits":
        return _far_apart(torch.zeros(17, n * 32).half())[::8].view(3, n, 32)
    return torch.zeros(3, n, 32).half()


def _results(far: str, patch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Losses, stored logits, gradients of the logits and a product, with one tensor's rows far apart."""
    generator = torch.Generator().manual_seed(0)

    def tensor(name: str, *shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator).half()
        return _far_apart(values) if name == far else values

    hidden, weight = tensor("hidden", n, D), tensor("weight", V, D)
    target = torch.arange(n)
    lm = LMInputs(hidden, weight, target, None, GenerationOptions(), V)
    none = torch.zeros(0, dtype=torch.int64)
    head = HeadInputs(torch.zeros(0, D).half(), torch.zeros(2, D), torch.zeros(2), none, ClassOptions())
    logits_snK = _slabs(far)
    out = fused.forward(lm, head, stored_snK=logits_snK).lm
    ones = torch.ones(n)
    recomputed, stored = tensor("workspace", n, V), torch.empty(n, V).half()
    fused.gradient_of_logits(lm, out.lse_n, ones, None, recomputed, 0, INTERPRETED)
    kept = logits_snK.transpose(0, 1).reshape(n, 96)
    kept = _far_apart(kept) if far == "read logits" else kept
    fused.gradient_of_logits(lm, out.lse_n, ones, kept, stored, 0, INTERPRETED, out.offset_Tn)
    product = tensor("product", n, D)
    factor, other = tensor("factor", n, V), torch.randn(V, D, generator=generator).half()
    fused._matmul(factor, other, product, INTERPRETED.matmul, accumulate=False)
    return [t.clone() for t in (out.loss_n, logits_snK, recomputed, stored, product)]


@pytest.mark.parametrize("far", MUTANTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rows_beyond_two_to_the_31_are_read_and_written_where_they_are(far, tmp_path, monkeypatch):
    from triton.runtime import interpreter

    # It would copy each storage onto itself, untouched pages and all.
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    near = _results("", monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(near, _results(far, monkeypatch), strict=True))
    narrow = mutated.kernels(tmp_path, f"narrow_{list(MUTANTS).index(far)}", *MUTANTS[far])
    monkeypatch.setattr(fused, "_kernels", lambda: narrow)
    assert not all(torch.equal(a, b) for a, b in zip(near, _results(far, monkeypatch), strict=True))
