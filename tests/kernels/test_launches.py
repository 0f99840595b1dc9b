"""What surrounds the fused kernels: few launches, on the tensors' own GPU; the sum of the bias gradient."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from clsgen_kernels import ClassOptions, GenerationOptions, fused, stored_logits
from clsgen_kernels.inputs import HeadInputs, LMInputs
from clsgen_kernels.launch import BY_TARGET, Launch, Tile
from torch.utils._python_dispatch import TorchDispatchMode

# n supervised tokens, D hidden, V vocabulary, S rows, C classes

n, D, V, S, C = 20, 16, 70, 3, 2
TILE = Tile(16, 32, 16, 1, 1)
LAUNCH = Launch(TILE, TILE, TILE, TILE, TILE, programs=4, workspace_bytes=n * 64 * 2)  # two slabs
_NOT_LAUNCHED = {"empty", "new_empty", "empty_like", "view", "slice", "select", "t", "transpose", "expand", "unbind"}
_NOT_LAUNCHED |= {"permute", "alias", "detach", "as_strided", "unsqueeze", "lift_fresh"}


class Launches(TorchDispatchMode):
    """Operations that would launch something on a GPU, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in _NOT_LAUNCHED:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _inputs(kind: str = "softmax", **changes: Any) -> tuple[LMInputs, HeadInputs]:
    states = torch.zeros(n, D).bfloat16()
    lm = LMInputs(
        states, torch.zeros(V, D).bfloat16(), torch.zeros(n, dtype=torch.int64),
        torch.zeros(V).bfloat16(), GenerationOptions(), V,
    )  # fmt: skip
    label = torch.zeros(S, C) if kind in ("multilabel", "soft") else torch.zeros(S, dtype=torch.int64)
    head = HeadInputs(states[:S], torch.zeros(C, D), torch.zeros(C), label, ClassOptions(kind, **changes))
    return lm, head


@pytest.mark.parametrize("kind", ["softmax", "soft", "multilabel", "ordinal"])
def test_the_forward_is_one_launch_and_one_memset(kind, monkeypatch):
    launched = []
    monkeypatch.setattr(fused, "_launch", lambda *a, **k: launched.append(a[0]))
    lm, head = _inputs(kind)
    weights = torch.ones(n).bfloat16()
    with Launches() as seen:
        fused.forward(lm, head, launch=LAUNCH, token_weight_n=weights)
    assert len(launched) == 1
    assert seen.names == ["zeros"], seen.names


def test_the_backward_launches_three_kernels_a_slab_and_the_sum_for_a_bias(monkeypatch):
    launched = []
    monkeypatch.setattr(fused, "_launch", lambda *a, **k: launched.append(a[0]))
    lm, _ = _inputs()
    ones, grad = torch.ones(n), torch.empty(V, D).bfloat16()
    for bias, more in ((None, []), (lm.bias_V, ["sum", "sum"])):
        launched.clear()
        with Launches() as seen:
            fused.backward(lm._replace(bias_V=bias), ones, ones, None, weight_grad_VD=grad, launch=LAUNCH)
        assert len(launched) == 2 * 3 and seen.names == more, seen.names


def test_every_launch_is_on_the_gpu_of_its_tensors(monkeypatch):
    inside: list[torch.Tensor] = []
    launched = []

    @contextlib.contextmanager
    def device_of(tensor):
        inside.append(tensor)
        yield
        inside.pop()

    class Watch:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *a, **k: launched.append((self.name, len(inside), inside[-1:]))

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(fused, "_kernels", lambda: fused._Kernels(*map(Watch, ("forward", "gradient", "matmul"))))
    lm, head = _inputs()
    ones = torch.ones(n)
    fused.forward(lm, head, launch=LAUNCH)
    fused.backward(lm, ones, ones, None, weight_grad_VD=torch.empty(V, D).bfloat16(), launch=LAUNCH)
    assert [name for name, _, _ in launched] == ["forward", *["gradient", "matmul", "matmul"] * 2]
    assert all(depth == 1 for _, depth, _ in launched)
    assert all(near[0].device == lm.hidden_nD.device for _, _, near in launched)


def test_the_bias_gradient_is_summed_in_fp32():
    rows, vocabulary = 2000, 40
    upstream = torch.rand(rows, generator=torch.Generator().manual_seed(0)) * 100 + 50
    states, weight = torch.zeros(rows, 16).half(), torch.zeros(vocabulary, 16).half()
    target = torch.zeros(rows, dtype=torch.int64)
    lm = LMInputs(states, weight, target, torch.zeros(vocabulary), GenerationOptions(), vocabulary)
    tile = Tile(128, 32, 16, 1, 1)
    launch = Launch(tile, tile, tile, tile, tile, programs=4, workspace_bytes=2**20)
    lse = torch.full((rows,), float(vocabulary)).log()
    got = fused.backward(lm, lse, upstream, None, launch=launch).bias_V
    truth = torch.full((vocabulary,), float(upstream.double().sum()) / vocabulary, dtype=torch.float64)
    truth[0] -= upstream.double().sum()

    def error(of, first=0):
        return float(((of.double() - truth) / truth)[first:].abs().max())

    assert truth[0] < -65504  # more than fp16 can hold
    assert error(got) < 5e-5
    grads = torch.empty(rows, vocabulary).half()
    fused.gradient_of_logits(lm, lse, upstream, None, grads, 0, launch)
    narrow = grads.sum(dim=0)
    assert narrow.dtype == torch.float16 and error(narrow) > 5e-5 and error(narrow, first=1) > 5e-5


def test_what_outlives_a_call_holds_no_tensor(monkeypatch):
    import triton

    given = []
    monkeypatch.setattr(triton, "set_allocator", given.append)
    tile = Tile(16, 32, 16, 1, 1, descriptors=True)
    assert fused._use_descriptors(tile, torch.zeros(4, 16), torch.zeros(8, 16))
    held = [cell.cell_contents for allocator in given for cell in allocator.__closure__]
    assert held and not any(isinstance(value, torch.Tensor) for value in held)


def test_stored_logits_are_aligned_for_descriptors_whatever_the_vocabulary():
    for vocabulary, width in ((50257, 576), (151936, 1024), (256001, 520)):
        launch = BY_TARGET["sm_90"]
        storage = stored_logits.choose_storage(
            512, vocabulary, width, launch.slab(512, vocabulary, 2), element_size=2, learns=True, store_bytes=0
        )
        logits_snK = storage.logits(storage.allocate(512, torch.empty(vocabulary, width).bfloat16()), 512)
        assert storage.slabs > 1 and all(slab.data_ptr() % 16 == 0 and slab.stride(0) % 8 == 0 for slab in logits_snK)
