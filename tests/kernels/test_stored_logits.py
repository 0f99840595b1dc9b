"""Logits that the forward leaves for the backward, at the end of the LM weight's gradient or in their own memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import EVERYTHING, assert_close, cast, make_case, run
from clsgen_kernels import Execution, autograd, dual_head_loss, fused, stored_logits
from clsgen_kernels.launch import INTERPRETED
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

SHAPES = {
    "all of them": {"vocabulary": 507, "supervised": 20},
    "more tokens than the width": {"vocabulary": 507, "n_tokens": 90, "supervised": 61},
    "few": {"vocabulary": 200, "n_tokens": 160, "supervised": 130},
    "one": {"vocabulary": 507, "supervised": 1},
    "nothing supervised": {"vocabulary": 70, "supervised": 0},
    "a vocabulary of one tile": {"vocabulary": 30, "supervised": 20},
    "an odd width": {"vocabulary": 507, "supervised": 12, "width": 17},
}


def _overwrites(rows: int, vocabulary: int, width: int, slab: int, count: int) -> bool:
    """Whether dW reaches logits that are still to be read, followed element by element."""
    storage = stored_logits.Storage(slab, count, in_gradient=True)
    memory = torch.zeros(vocabulary, width, dtype=torch.int32)
    if count * rows * slab > memory.numel():
        return True
    logits = storage.logits(memory, rows)
    logits.copy_(torch.arange(count, dtype=torch.int32)[:, None, None].expand_as(logits) + 1)
    for number in range(-(-vocabulary // slab)):
        if number < count and not (logits[number] == number + 1).all():
            return True
        memory[number * slab : (number + 1) * slab] = -1
    return False


@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 24), st.integers(1, 33))
def test_the_gradient_never_reaches_logits_that_are_still_read(rows, vocabulary, width, slab):
    found = stored_logits.choose_storage(rows, vocabulary, width, slab, element_size=4, learns=True, store_bytes=0)
    count = 0 if found is None else found.slabs
    assert not count or not _overwrites(rows, vocabulary, width, slab, count)
    assert count == -(-vocabulary // slab) or _overwrites(rows, vocabulary, width, slab, count + 1)


def test_room_for_the_heads_of_the_benchmark():
    def share(rows: int, width: int, slab: int = 8192) -> float:
        found = stored_logits.choose_storage(rows, 128256, width, slab, element_size=2, learns=True, store_bytes=0)
        return found.slabs / -(-128256 // slab)

    assert share(2048, 8192) == share(4096, 8192) == share(2048, 4096) == 1
    assert share(16384, 8192) == 7 / 16 and share(16384, 4096) == 3 / 16


def test_memory_of_their_own_is_taken_where_it_holds_more():
    def chosen(store_bytes: int, learns: bool = True, rows: int = 64) -> stored_logits.Storage | None:
        return stored_logits.choose_storage(rows, 1024, 32, 128, element_size=2, learns=learns, store_bytes=store_bytes)

    size = 64 * 1024 * 2
    assert chosen(0) == chosen(size - 1) == stored_logits.Storage(128, 4, in_gradient=True)
    assert chosen(size) == chosen(10**9) == stored_logits.Storage(128, 8, in_gradient=False)
    assert chosen(10**9, rows=32) == stored_logits.Storage(128, 8, in_gradient=True)
    assert chosen(size - 1, learns=False) is None
    assert chosen(size, learns=False) == stored_logits.Storage(128, 8, in_gradient=False)
    assert chosen(10**9, rows=0) is None


@pytest.mark.parametrize("options", [{}, {"generation": EVERYTHING}], ids=["plain", "all options"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_torch_stored_and_recomputed_gradients_are_equal_bit_by_bit(shape, dtype, options):
    tensors, *rest = make_case(**shape, bias=bool(options))
    tensors = cast(tensors, dtype)
    recomputed, expected = run(tensors, *rest, impl="torch", vocab_tile=64, **options)
    stored, grads = run(tensors, *rest, impl="torch", vocab_tile=64, store_bytes=1, **options)
    assert all(torch.equal(stored[name], value) for name, value in recomputed.items())
    assert all(torch.equal(grads[name], value) for name, value in expected.items())


@pytest.mark.parametrize("options", [{}, {"generation": EVERYTHING}], ids=["plain", "all options"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_the_kernels_stored_and_recomputed_gradients_agree(shape, options):
    tensors, *rest = make_case(**shape, bias=bool(options), scale=0.3)
    tensors = cast(tensors, torch.float32)
    recomputed, expected = run(tensors, *rest, impl="triton", **options)
    stored, grads = run(tensors, *rest, impl="triton", store_bytes=1, **options)
    assert_close(stored, recomputed, 0)
    assert_close(grads, expected, 1e-6)


def _confident(dtype, **options):
    """Losses, and gradients of states and weight, where half of the targets have logits of 12 to 25 and are sure."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(384, 64, generator=generator).bfloat16()
    target = torch.randint(0, 384, (48,), generator=generator)
    strength = torch.linspace(0.05, 0.4, 48)[:, None]
    states = (weight[target].float() * strength + 0.15 * torch.randn(48, 64, generator=generator)).bfloat16()
    hidden, weight = (t.to(dtype).requires_grad_() for t in (torch.cat([states, states]), weight))
    if options.pop("plain", False):
        loss_n = torch.nn.functional.cross_entropy((hidden[:48] @ weight.T).float(), target, reduction="none")
    else:
        indices = {"supervised_index_n": torch.arange(48), "target_n": target}
        none = torch.zeros(0, dtype=torch.int64)
        twice = options.pop("twice", False)
        loss_n = dual_head_loss(
            hidden, weight, torch.zeros(2, 64), torch.zeros(2), **indices, class_index_S=none, label_S=none,
            impl=options.pop("impl"), execution=Execution(**options),
        ).generation_loss  # fmt: skip
        if twice:
            torch.autograd.grad(loss_n.sum(), (hidden, weight), retain_graph=True)
    grads = torch.autograd.grad(loss_n.sum(), (hidden, weight))
    return loss_n.detach(), grads[0][:48].double(), grads[1].double()


@pytest.mark.parametrize("store_bytes", [1, 2**40, 0], ids=["in the gradient", "apart", "recomputed"])
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("twice", [False, True], ids=["one backward", "the second"])
def test_gradients_of_confident_tokens_are_no_worse_than_plain_torchs(impl, store_bytes, twice):
    loss_n, *truth = _confident(torch.float64, impl="reference")
    sure = loss_n < 0.02
    assert 20 < sure.sum() < 30

    def wrong(grads):
        pairs = zip((grads[0], grads[0][sure], grads[1]), (truth[0], truth[0][sure], truth[1]), strict=True)
        return [float((got - right).norm() / right.norm()) for got, right in pairs]

    plain = wrong(_confident(torch.bfloat16, plain=True)[1:])
    found = wrong(_confident(torch.bfloat16, impl=impl, store_bytes=store_bytes, twice=twice)[1:])
    # The interpreter rounds to bf16 towards zero: twice the error of a rounding to nearest.
    for error, theirs in zip(found, plain, strict=True):
        assert error <= (2.0 if impl == "triton" else 1.01) * theirs
    if impl == "triton":
        assert found[1] < 0.5 * plain[1], "stored less their largest, those of sure tokens are finer than plain torch's"


def test_the_forwards_tile_may_be_narrower_than_the_backwards():
    tile = INTERPRETED.forward
    launch = replace(INTERPRETED, forward=replace(tile, columns=16), gradient=replace(tile, columns=32))
    tensors, *rest = make_case(vocabulary=507, supervised=20, scale=0.3)
    tensors = cast(tensors, torch.float32)
    _, expected = run(tensors, *rest, impl="triton", launch=launch)
    _, grads = run(tensors, *rest, impl="triton", launch=launch, store_bytes=1)
    assert_close(grads, expected, 1e-6)


def _stored_slabs(**options) -> list[bool]:
    """Which slabs of the kernels' backward read stored logits."""
    kernels, seen = fused._kernels(), []

    class Watch:
        def __getitem__(self, grid):
            return lambda *a, **k: (seen.append(k["STORED"]), kernels.gradient[grid](*a, **k))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_kernels", lambda: kernels._replace(gradient=Watch()))
        tensors, *rest = make_case(vocabulary=507, n_tokens=90, supervised=61)
        run(cast(tensors, torch.float32), *rest, impl="triton", **options)
    return seen


def test_the_kernels_read_the_first_slabs_and_recompute_the_others():
    recomputed = _stored_slabs()
    slabs = len(recomputed)
    assert slabs > 4 and not any(recomputed)
    partly = _stored_slabs(store_bytes=1)
    assert partly == sorted(partly, reverse=True) and 24 / 61 - 1 / slabs <= sum(partly) / slabs <= 24 / 61 + 1 / slabs
    assert all(_stored_slabs(store_bytes=10**9))
    frozen = tuple(name for name in make_case()[0] if name != "lm_weight_VD")
    assert not any(_stored_slabs(store_bytes=1, trained=frozen))
    slab = -(-507 // slabs // 32) * 32
    size = slabs * 61 * slab * 4
    assert not any(_stored_slabs(store_bytes=size - 1, trained=frozen))
    assert all(_stored_slabs(store_bytes=size, trained=frozen))


@pytest.mark.parametrize(("supervised", "passes"), [(20, 3), (61, 4)])
def test_the_torch_path_takes_three_passes_and_four_for_what_does_not_fit(supervised, passes):
    tensors, *rest = make_case(vocabulary=640, n_tokens=90, supervised=supervised)
    one = 2 * supervised * 24 * 640
    with FlopCounterMode(display=False) as counted:
        run(cast(tensors, torch.float32), *rest, impl="torch", vocab_tile=64, store_bytes=1)
    head = 3 * 2 * 5 * 24 * 3
    stored = 1.0 if passes == 3 else 0.3  # 24 / 61 of ten tiles
    # The counter does not know addmm_, with which the states' gradient is summed.
    assert counted.get_total_flops() + one == 3 * one + round((1 - stored) * one) + head


class _Allocations(TorchDispatchMode):
    """Addresses and elements of what is allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and func is not torch.ops.aten.detach.default:
            self.found.setdefault(out.untyped_storage().data_ptr(), out.numel())
        return out


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_the_gradient_is_the_only_memory_of_the_weights_size(impl, monkeypatch):
    tensors, indices, _ = make_case(vocabulary=2030, width=64, supervised=23)
    leaves = {k: v.requires_grad_() for k, v in cast(tensors, torch.float32).items()}
    allocated = []

    def allocate(self, *given):
        allocated.append(right(self, *given))
        return allocated[-1]

    right = stored_logits.Storage.allocate
    monkeypatch.setattr(stored_logits.Storage, "allocate", allocate)
    with _Allocations() as seen:
        out = dual_head_loss(**leaves, **indices, impl=impl, execution=Execution(vocab_tile=64))
        out.generation_loss.sum().backward()
    weight = leaves["lm_weight_VD"]
    (memory,) = allocated
    assert weight.grad.data_ptr() == memory.data_ptr()
    if impl == "torch":  # Triton's interpreter copies its arguments
        assert [p for p, elements in seen.found.items() if elements >= 23 * 2030] == [memory.data_ptr()]
    assert weight.grad.shape == weight.shape and weight.grad.is_contiguous() and not weight.grad._is_view()


def _leaves_and_loss(impl, store_bytes, supervised=20):
    tensors, indices, (upstream, *_) = make_case(vocabulary=507, n_tokens=90, supervised=supervised, scale=0.3)
    leaves = {k: v.requires_grad_() for k, v in cast(tensors, torch.float32).items()}

    def loss(hidden):
        execution = Execution(vocab_tile=64, store_bytes=store_bytes)
        given = {**leaves, "hidden_ND": hidden}
        return (dual_head_loss(**given, **indices, impl=impl, execution=execution).generation_loss * upstream).sum()

    return leaves, loss


def _gradients(impl, how, store_bytes=1, supervised=20):
    leaves, loss = _leaves_and_loss(impl, store_bytes, supervised)
    hidden, weight = leaves["hidden_ND"], leaves["lm_weight_VD"]
    if how == "twice":
        total = loss(hidden)
        total.backward(retain_graph=True)
        first = [hidden.grad.clone(), weight.grad.clone()]
        hidden.grad = weight.grad = None
        total.backward()
        return [*first, hidden.grad, weight.grad]
    if how == "one after the other":
        total = loss(hidden)
        asked = [hidden, weight, hidden, weight]
        return [torch.autograd.grad(total, leaf, retain_graph=True)[0].clone() for leaf in asked]
    if how == "on the host":
        with torch.autograd.graph.save_on_cpu():
            loss(hidden).backward()
    elif how == "one backward of two losses":
        (loss(hidden) + 2 * loss(hidden)).backward()
        return [hidden.grad / 3, weight.grad / 3]
    elif how.startswith("checkpoint"):
        checkpoint(loss, hidden * 1, use_reentrant=how.endswith("reentrant")).backward()
    else:
        loss(hidden).backward()
    return [hidden.grad, weight.grad]


WAYS = [
    *("plain", "twice", "one after the other", "on the host", "one backward of two losses"),
    *("checkpointed, reentrant", "checkpointed"),
]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("supervised", [20, 61])
def test_however_the_graph_is_used_the_gradients_are_right(impl, how, supervised):
    expected = _gradients(impl, "plain", store_bytes=0, supervised=supervised)
    found = _gradients(impl, how, supervised=supervised)
    assert len(found) in (2, 4)
    for grad, right in zip(found, expected * (len(found) // 2), strict=True):
        assert_close({"gradient": grad}, {"gradient": right}, 2e-6)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("supervised", [40, 45, 46, 60])
def test_the_states_gradient_is_the_same_where_its_memory_holds_the_sums(impl, supervised, monkeypatch):
    tensors, *rest = make_case(n_tokens=90, supervised=supervised, vocabulary=130, scale=0.3)
    tensors = cast(tensors, torch.bfloat16)
    square = torch.zeros(3)
    _, grads = run(tensors, *rest, impl=impl, hidden_grad_square=square)

    shared = []
    monkeypatch.setattr(autograd, "with_sums", lambda *given: shared.append(given))
    apart = torch.zeros(3)
    _, expected = run(tensors, *rest, impl=impl, hidden_grad_square=apart)
    assert shared and all(torch.equal(grads[name], value) for name, value in expected.items())
    assert torch.equal(square, apart) and square[0] > 0
    monkeypatch.undo()
    both = autograd.with_sums(90, supervised, 24, torch.bfloat16, torch.device("cpu"))
    assert (both is not None) == (2 * supervised <= 90)
    if both is not None:
        memory, rows = both
        assert memory.shape == (90, 24) and rows.shape == (supervised, 24) and rows.data_ptr() == memory.data_ptr()
    assert autograd.with_sums(90, 1, 24, torch.float32, torch.device("cpu")) is None
