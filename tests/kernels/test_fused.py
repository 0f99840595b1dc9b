"""The Triton kernels in Triton's interpreter: against float64 truth, in any order of programs, and against mutants.

The interpreter multiplies bf16 wrongly and rounds it down (the kernels widen bf16 there); what a GPU would round is
emulated in torch instead, and held against plain torch's own error in bf16.
"""

from __future__ import annotations

import itertools
import random

import mutated
import pytest
import torch
from cases import CLASSES, EVERYTHING, assert_close, cast, errors, make_case, run
from clsgen_kernels import fused, launch
from clsgen_kernels.launch import Launch, Tile

# N tokens, n supervised, D hidden, V vocabulary, C classes, S rows

SHAPES = {
    "several tiles of each": {"vocabulary": 203, "width": 40},
    "ragged by one": {"vocabulary": 129, "width": 17, "supervised": 33, "classes": 2},
    "less than a tile": {"vocabulary": 5, "width": 3, "supervised": 2, "rows": 1, "classes": 2},
    "more classes than a tile": {"vocabulary": 33, "width": 16, "classes": 70},
    "nothing supervised": {"vocabulary": 65, "supervised": 0},
    "no rows": {"vocabulary": 65, "rows": 0},
    "neither": {"vocabulary": 65, "supervised": 0, "rows": 0},
}


def _truth(case, **options):
    return run(*case, impl="reference", **options)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 5e-4)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_losses_and_gradients_against_float64(shape, dtype, tolerance):
    tensors, *rest = make_case(**shape)
    tensors = cast(tensors, dtype)
    truth, truth_grads = _truth((cast(tensors, torch.float64), *rest))
    got, grads = run(tensors, *rest, impl="triton")
    assert_close(got, truth, tolerance)
    assert_close(grads, truth_grads, tolerance)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("store_bytes", [0, 10**9], ids=["recomputed", "stored"])
def test_all_options_together_match_float64(kind, store_bytes):
    tensors, *rest = make_case(vocabulary=129, kind=kind, classes=1 if kind == "sigmoid" else 3, bias=True)
    options = {"generation": EVERYTHING, "classification": CLASSES[kind]}
    tensors = cast(tensors, torch.float32)
    truth, truth_grads = _truth((cast(tensors, torch.float64), *rest), **options)
    got, grads = run(tensors, *rest, impl="triton", store_bytes=store_bytes, **options)
    assert_close(got, truth, 1e-6)
    own = errors(_truth((tensors, *rest), **options)[1], truth_grads)
    for name, error in errors(grads, truth_grads).items():
        assert error <= own[name] + 1e-6, f"{name}: relative error {error:.1e}, plain torch's {own[name]:.1e}"


def test_logits_of_80_are_as_accurate_as_plain_torch():
    tensors, *rest = make_case(vocabulary=203, scale=80.0 / 24**0.5)
    tensors = cast(tensors, torch.float32)
    truth, truth_grads = _truth((cast(tensors, torch.float64), *rest))
    assert truth["generation_loss"].max() > 80
    _, plain_grads = _truth((tensors, *rest))
    got, grads = run(tensors, *rest, impl="triton")
    assert_close(got, truth, 1e-6)
    theirs = errors(plain_grads, truth_grads)
    for name, error in errors(grads, truth_grads).items():
        assert error <= 1.5 * theirs[name] + 1e-6, f"{name}: {error:.1e} against torch's {theirs[name]:.1e}"


def test_strided_inputs_dropout_and_frozen_weights():
    tensors, indices, upstream = make_case(vocabulary=65, bias=True)
    tensors = cast(tensors, torch.float32)
    mask = torch.bernoulli(torch.full((5, 24), 0.5), generator=torch.Generator().manual_seed(0)) * 2
    strided = {k: _every_other(v) if v.dim() == 1 else v.T.contiguous().T for k, v in tensors.items()}
    assert not any(v.is_contiguous() for v in strided.values())
    truth, truth_grads = _truth((cast(tensors, torch.float64), indices, upstream), dropout_scale_SD=mask.double())
    trained = ("hidden_ND", "head_weight_CD", "lm_bias_V")
    indices = {k: _every_other(v) for k, v in indices.items()}
    got, grads = run(strided, indices, upstream, impl="triton", dropout_scale_SD=mask, trained=trained)
    assert_close(got, truth, 1e-6)
    assert_close(grads, {k: truth_grads[k] for k in trained}, 1e-6)


def _every_other(vector):
    """The same values, with others between them."""
    return torch.stack([vector, vector + 1], dim=-1)[..., 0]


def test_sum_reduction_is_weighted_in_the_kernel():
    tensors, indices, _ = make_case(vocabulary=65)
    tensors, weight = cast(tensors, torch.float32), torch.rand(23, generator=torch.Generator().manual_seed(0))
    upstream = torch.tensor(0.7), torch.ones(5, 3), torch.tensor(-1.3)
    options = {"reduction": "sum", "token_weight_n": weight}
    truth, truth_grads = _truth((cast(tensors, torch.float64), indices, upstream), **options)
    got, grads = run(tensors, indices, upstream, impl="triton", **options)
    assert got["generation_loss"].shape == got["class_loss"].shape == ()
    assert_close(got, truth, 1e-6)
    assert_close(grads, truth_grads, 1e-6)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_all_tokens_ignored_and_no_labels_give_zero_loss_and_gradients(impl):
    tensors, indices, upstream = make_case(vocabulary=65)
    tensors = cast(tensors, torch.float32)
    indices["target_n"][:] = -100
    indices["label_S"][:] = -1
    got, grads = run(tensors, indices, (*upstream[:1], upstream[1] * 0, upstream[2]), impl=impl)
    assert (got["generation_loss"] == 0).all() and (got["class_loss"] == 0).all()
    assert torch.isfinite(got["class_logits"]).all()
    assert all((grad == 0).all() for grad in grads.values())


def test_gradient_accumulates_in_fp32():
    tensors, *rest = make_case(vocabulary=65)
    tensors = cast(tensors, torch.float16)
    _, truth_grads = _truth((cast(tensors, torch.float64), *rest))
    total = torch.zeros(65, 24)
    for _ in range(2):
        _, grads = run(tensors, *rest, impl="triton", lm_weight_grad_VD=total)
        assert grads["lm_weight_VD"] is None
    assert_close({"dW": total / 2}, {"dW": truth_grads["lm_weight_VD"]}, 5e-4)


def test_an_fp32_head_keeps_its_precision_with_16_bit_hidden_states():
    for dtype in (torch.bfloat16, torch.float16):
        tensors, *rest = make_case(vocabulary=33)
        tensors = cast(tensors, dtype)
        assert tensors["head_weight_CD"].dtype == torch.float32
        truth, _ = _truth((cast(tensors, torch.float64), *rest))
        got, _ = run(tensors, *rest, impl="triton")
        assert_close({"class_logits": got["class_logits"]}, {"class_logits": truth["class_logits"]}, 1e-6)


def test_bfloat16_rounds_no_worse_than_plain_torch():
    """A GPU's rounding (exact products, fp32 sums, bf16 gradients of logits), emulated, against torch in bf16."""
    tensors, indices, (up_n, up_SC, up_S) = make_case(vocabulary=507, width=64, n_tokens=130, supervised=65)
    upstream = up_n, up_SC * 0, up_S * 0
    tensors = cast(tensors, torch.bfloat16)
    truth, truth_grads = _truth((cast(tensors, torch.float64), indices, upstream))
    plain, plain_grads = _truth((tensors, indices, upstream))
    index, target = indices["supervised_index_n"], indices["target_n"]
    hidden, weight = tensors["hidden_ND"][index].float(), tensors["lm_weight_VD"].float()
    logits = hidden @ weight.T
    counted = target >= 0
    place = target.clamp(min=0)[:, None]
    loss = torch.where(counted, logits.logsumexp(dim=1) - logits.gather(1, place)[:, 0], 0)
    grad = torch.softmax(logits, dim=1).scatter_add(1, place, -torch.ones(len(target), 1))
    grad = (grad * (up_n.float() * counted)[:, None]).bfloat16().float()
    emulated = {"loss": loss, "dW": (grad.T @ hidden).bfloat16(), "dH": (grad @ weight).bfloat16()}

    def picked(outputs, grads):
        return {"loss": outputs["generation_loss"], "dW": grads["lm_weight_VD"], "dH": grads["hidden_ND"][index]}

    exact = picked(truth, truth_grads)
    theirs, mine = errors(picked(plain, plain_grads), exact), errors(emulated, exact)
    for name, error in mine.items():
        assert error <= theirs[name] + 1e-6, f"{name}: {error:.1e} against torch's {theirs[name]:.1e}"
    # The kernel itself is that emulation, up to the interpreter's rounding (down, where a GPU rounds to nearest).
    got = picked(*run(tensors, indices, upstream, impl="triton"))
    assert_close({"loss": got["loss"]}, {"loss": exact["loss"]}, 1e-6)
    assert_close(got, {name: value.double() for name, value in emulated.items()}, 2**-6)


def test_results_do_not_depend_on_the_order_of_programs(monkeypatch):
    from triton.runtime.interpreter import interpreter_builder

    tensors, *rest = make_case(vocabulary=203, supervised=33)
    case = cast(tensors, torch.float32), *rest
    options = {"generation": EVERYTHING, "impl": "triton"}
    first, first_grads = run(*case, **options)
    straight = interpreter_builder.set_grid_idx
    for seed in range(3):
        orders = {}

        def shuffled(x, y, z, seed=seed, orders=orders):
            grid = interpreter_builder.grid_dim
            if grid not in orders:
                orders[grid] = random.Random(seed).sample(list(itertools.product(*map(range, grid))), k=_size(grid))
            straight(*orders[grid][(x * grid[1] + y) * grid[2] + z])

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", shuffled)
        again, again_grads = run(*case, **options)
        assert any(order != sorted(order) for order in orders.values())
        assert all(torch.equal(again[name], value) for name, value in first.items())
        assert all(torch.equal(again_grads[name], value) for name, value in first_grads.items())


def _size(grid):
    return grid[0] * grid[1] * grid[2]


MUTANTS = {
    "no mask past the vocabulary": (
        'logits = tl.where((local_column < remaining)[None, :], logits, float("-inf"))',
        "logits = logits",
    ),
    "no maximum": (
        "new_maximum = tl.maximum(maximum, tile_maximum)",
        "new_maximum = maximum * 0 + 60.0",
    ),
    "splits not rescaled": (
        "total = total * tl.exp2((maximum - base) * LOG2E) + part_total *",
        "total = total + part_total *",
    ),
    "ignored tokens counted": ("loss = tl.where(counted, loss, 0.0)", "loss = loss"),
    "upstream gradient dropped": ("grad *= upstream[:, None]", "grad *= 1.0"),
    "target in the wrong column": (
        "column[None, :] == target[:, None], 1.0",
        "column[None, :] == target[:, None] + 1, 1.0",
    ),
    "sum over slabs lost": ("sum += tl.load(out_ptrs, mask=mask, other=0.0).to(tl.float32)", "pass"),
    "no mask past the width": (
        "inside = inner < depth - start\n            a =",
        "inside = inner < BLOCK_D\n            a =",
    ),
    "finished before all arrived": ("== splits - 1:", "== 0:"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutants_are_caught(mutant, tmp_path, monkeypatch):
    kernels = mutated.kernels(tmp_path, f"mutant_{list(MUTANTS).index(mutant)}", *MUTANTS[mutant])
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    worst = 0.0
    for scale in (0.1, 20.0):
        tensors, *rest = make_case(vocabulary=203, width=41, scale=scale)
        tensors = cast(tensors, torch.float32)
        truth, truth_grads = _truth((cast(tensors, torch.float64), *rest))
        got, grads = run(tensors, *rest, impl="triton")
        found = [*errors(got, truth).values(), *errors(grads, truth_grads).values()]
        worst = max(worst, *(float("inf") if error != error else error for error in found))
    assert worst > 1e-3, f"the mutant {mutant!r} passes"


def test_launch_parameters_can_be_overridden():
    tensors, *rest = make_case(vocabulary=129)
    tensors = cast(tensors, torch.float32)
    truth, truth_grads = _truth((cast(tensors, torch.float64), *rest))
    tile = Tile(32, 64, 8, 1, 1)
    other = Launch(tile, tile, tile, tile, tile, programs=100, workspace_bytes=1 << 20)
    got, grads = run(tensors, *rest, impl="triton", launch=other)
    assert_close(got, truth, 1e-6)
    assert_close(grads, truth_grads, 1e-6)


def test_slabs_are_wide_and_of_equal_width():
    chosen = launch.BY_TARGET["sm_90"]
    for rows, vocabulary in ((1, 128256), (2048, 128256), (16384, 50257), (65536, 256000)):
        slab = chosen.slab(rows, vocabulary, 2)
        slabs = -(-vocabulary // slab)
        assert slab % 256 == 0 and (slab > 7 * 1024 or slabs == 1)
        assert slabs * slab - vocabulary < slabs * 256  # the last is as wide as the others, but for whole tiles
        assert rows * slab * 2 <= max(chosen.workspace_bytes, 2**30)
    assert chosen.slab(2048, 128256, 2) == 8192  # 34 MB
    assert chosen.slab(1, 128256, 2) >= 128256  # one slab
    assert chosen.slab(262144, 128256, 2) == 2048  # 1 GiB is the limit


@pytest.mark.parametrize("store_bytes", [0, 10**9], ids=["recomputed", "stored"])
@pytest.mark.parametrize("width", [24, 41], ids=["aligned", "unaligned"])
def test_descriptor_loads_and_stores_give_equal_results(width, store_bytes, monkeypatch):
    tensors, *rest = make_case(vocabulary=129, width=width, scale=0.5, bias=True)
    tensors = cast(tensors, torch.float32)
    truth, truth_grads = _truth((cast(tensors, torch.float64), *rest))
    by_descriptor = []
    decides = fused._use_descriptors
    monkeypatch.setattr(fused, "_use_descriptors", lambda *a: by_descriptor.append(decides(*a)) or by_descriptor[-1])
    tile = Tile(16, 32, 16, 1, 1, descriptors=True)
    tiles = Launch(tile, tile, tile, tile, tile, 6, 8 * 1024)
    got, grads = run(tensors, *rest, impl="triton", launch=tiles, store_bytes=store_bytes)
    assert set(by_descriptor) == {width == 24}
    assert_close(got, truth, 1e-6)
    assert_close(grads, truth_grads, 1e-6)


def test_launch_parameters_are_chosen_by_compute_capability(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, target in (
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((12, 0), "sm_80"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert launch.choose(torch.device("cuda"), torch.bfloat16) == launch.BY_TARGET[target]
        narrow = launch.choose(torch.device("cuda"), torch.float32)
        assert narrow.forward.depth * 2 == launch.BY_TARGET[target].forward_more.depth
