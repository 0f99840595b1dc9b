"""The Triton kernels on a real GPU: values, bit-equal repeats, memory. Skipped without one.

TRITON_INTERPRET=0 python -m pytest tests/kernels/test_on_gpu.py
"""

from __future__ import annotations

import pytest
import torch
from cases import CLASSES, EVERYTHING, assert_close, cast, errors, make_case, run
from clsgen_kernels import Execution, dual_head_loss, fused, linear_cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or fused.interpreted(), reason="needs a GPU, and TRITON_INTERPRET=0"
    ),
]

SHAPES = {
    "several tiles of each": {"vocabulary": 1203, "width": 136, "n_tokens": 700, "supervised": 400},
    "GPT-2's odd vocabulary": {"vocabulary": 50257, "width": 576, "n_tokens": 300, "supervised": 130},
    "unaligned width": {"vocabulary": 1029, "width": 17, "n_tokens": 60, "supervised": 33, "classes": 2},
    "one token": {"vocabulary": 3000, "width": 64, "supervised": 1, "rows": 1},
    "more classes than a tile": {"vocabulary": 330, "width": 64, "classes": 300},
    "nothing supervised": {"vocabulary": 650, "width": 64, "supervised": 0},
    "no rows": {"vocabulary": 650, "width": 64, "rows": 0},
    "neither": {"vocabulary": 650, "width": 64, "supervised": 0, "rows": 0},
}


def _on_gpu(tensors, indices, upstream):
    def move(some):
        return {k: v.cuda() for k, v in some.items()}

    return move(tensors), move(indices), tuple(v.cuda() for v in upstream)


def _truth(tensors, *rest, **options):
    return run(*_on_gpu(cast(tensors, torch.float64), *rest), impl="reference", **options)


def _no_worse_than_torch(case, slack, **options):
    """Losses and gradients against float64: no larger an error than plain torch in the same dtype, plus ``slack``."""
    truth, truth_grads = _truth(*case, **options)
    plain, plain_grads = run(*_on_gpu(*case), impl="reference", **options)
    got, grads = run(*_on_gpu(*case), impl="triton", **options)
    del truth["token_hit"]  # a tie may fall either way
    for mine, theirs in ((errors(got, truth), errors(plain, truth)), _pair(grads, plain_grads, truth_grads)):
        for name, error in mine.items():
            assert error <= 1.5 * theirs[name] + slack, f"{name}: {error:.1e}, plain torch {theirs[name]:.1e}"


def _pair(grads, plain_grads, truth_grads):
    return errors(grads, truth_grads), errors(plain_grads, truth_grads)


@pytest.mark.parametrize(
    ("dtype", "slack"), [(torch.float32, 3e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)], ids=str
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_losses_and_gradients_against_float64(shape, dtype, slack):
    tensors, *rest = make_case(**{"scale": 0.3, **shape})
    _no_worse_than_torch((cast(tensors, dtype), *rest), slack)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_options_together(kind, dtype):
    classes = 1 if kind == "sigmoid" else 3
    tensors, *rest = make_case(vocabulary=1290, width=64, kind=kind, classes=classes, bias=True, scale=0.3)
    slack = 3e-6 if dtype == torch.float32 else 8e-3
    _no_worse_than_torch((cast(tensors, dtype), *rest), slack, generation=EVERYTHING, classification=CLASSES[kind])


@pytest.mark.parametrize("store_bytes", [1, 2**40], ids=["in the gradient", "apart"])
@pytest.mark.parametrize("supervised", [300, 1500], ids=["all fit", "a third fits"])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_stored_logits_give_the_same_loss_and_close_gradients(dtype, slack, supervised, store_bytes):
    tensors, *rest = make_case(vocabulary=20011, width=512, n_tokens=3000, supervised=supervised, rows=200, scale=0.05)
    case = _on_gpu(cast(tensors, dtype), *rest)
    first, grads = run(*case, impl="triton")
    stored, stored_grads = run(*case, impl="triton", store_bytes=store_bytes)
    assert_close(stored, first, 1e-5)
    assert_close(stored_grads, grads, slack)
    again, again_grads = run(*case, impl="triton", store_bytes=store_bytes)
    assert all(torch.equal(again[name], value) for name, value in stored.items())
    assert all(torch.equal(again_grads[name], value) for name, value in stored_grads.items())


@pytest.mark.parametrize("store_bytes", [0, 1, 2**40], ids=["recomputed", "in the gradient", "apart"])
def test_gradients_of_confident_tokens_are_no_worse_than_plain_torchs(store_bytes):
    generator = torch.Generator("cuda").manual_seed(0)
    weight = torch.randn(4000, 256, generator=generator, device="cuda").bfloat16()
    target = torch.randint(0, 4000, (200,), generator=generator, device="cuda")
    strength = torch.linspace(0.02, 0.12, 200, device="cuda")[:, None]
    noise = 0.05 * torch.randn(200, 256, generator=generator, device="cuda")
    states = (weight[target].float() * strength + noise).bfloat16()
    found = {}
    for impl in ("triton", "plain", "truth"):
        dtype = torch.float64 if impl == "truth" else torch.bfloat16
        hidden, matrix = (t.to(dtype).requires_grad_() for t in (states, weight))
        if impl == "triton":
            loss = linear_cross_entropy(
                hidden, matrix, target, reduction="none", impl=impl, execution=Execution(store_bytes=store_bytes)
            )
        else:
            logits = hidden @ matrix.T
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        found[impl] = loss.detach(), *(g.double() for g in torch.autograd.grad(loss.sum(), (hidden, matrix)))
    sure = found["truth"][0] < 0.02
    assert 20 < sure.sum() < 180
    for part in (lambda of: of[1], lambda of: of[1][sure], lambda of: of[2]):
        truth = part(found["truth"])
        mine, theirs = (float((part(found[impl]) - truth).norm() / truth.norm()) for impl in ("triton", "plain"))
        assert mine <= 1.1 * theirs


def test_a_second_backward_of_one_graph_recomputes():
    tensors, indices, _ = _on_gpu(*_large_case())
    leaves = {k: v.requires_grad_() for k, v in tensors.items()}
    loss = dual_head_loss(**leaves, **indices, impl="triton", reduction="sum").generation_loss
    asked = (leaves["hidden_ND"], leaves["lm_weight_VD"])
    first = [grad.clone() for grad in torch.autograd.grad(loss, asked, retain_graph=True)]
    second = torch.autograd.grad(loss, asked)
    for name, one, other in zip(("hidden", "weight"), first, second, strict=True):
        assert_close({name: other}, {name: one}, 2e-2)


def test_the_logits_take_no_memory_where_the_gradient_holds_them():
    tensors, indices, _ = _on_gpu(*make_case(vocabulary=32000, width=1024, n_tokens=1024, supervised=512, scale=0.05))
    leaves = {k: v.requires_grad_() for k, v in cast(tensors, torch.bfloat16).items()}

    def step():
        for leaf in leaves.values():
            leaf.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        dual_head_loss(**leaves, **indices, impl="triton", reduction="sum").generation_loss.backward()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    step()
    states, slab = 512 * 1024 * 2, fused.choose(torch.device("cuda"), torch.bfloat16).slab(512, 32000, 2)
    # The gradients; the compacted states; beside them the workspace; offsets of the stored logits, in the 4 MB.
    assert step() <= leaves["lm_weight_VD"].nbytes + 2 * states + states + 512 * slab * 2 + 4 * 2**20


def _large_case(dtype=torch.bfloat16):
    tensors, *rest = make_case(vocabulary=20011, width=512, n_tokens=3000, supervised=1500, rows=200, scale=0.05)
    return cast(tensors, dtype), *rest


def test_repeats_are_bit_equal():
    # A race shows as a difference between runs: many row tiles and splits, all of them at once.
    case = _on_gpu(*_large_case())
    first, grads = run(*case, impl="triton")
    for _ in range(30):
        again, again_grads = run(*case, impl="triton")
        assert all(torch.equal(again[name], value) for name, value in first.items())
        assert all(torch.equal(again_grads[name], value) for name, value in grads.items())


@pytest.mark.parametrize("store_bytes", [0, 2**30], ids=["recomputed", "stored"])
def test_a_target_beyond_the_vocabulary_is_nan(store_bytes):
    tensors, indices, upstream = _on_gpu(*_large_case())
    indices["target_n"][700] = 20011
    got, grads = run(tensors, indices, upstream, impl="triton", store_bytes=store_bytes)
    others = torch.arange(1500, device="cuda") != 700
    assert got["generation_loss"][700].isnan() and got["generation_loss"][others].isfinite().all()
    assert grads["hidden_ND"][indices["supervised_index_n"][700]].isnan().all()
    assert grads["hidden_ND"][indices["supervised_index_n"][others]].isfinite().all()


def test_many_row_tiles_run_in_groups():
    tensors, *rest = make_case(vocabulary=3001, width=1024, n_tokens=40000, supervised=33000, rows=20, scale=0.05)
    tensors = cast(tensors, torch.bfloat16)
    tile = (launch := fused.choose(torch.device("cuda"), torch.bfloat16)).forward
    assert launch.group(tile, 33000, 1024, 2) < -(-33000 // tile.rows)
    _no_worse_than_torch((tensors, *rest), 8e-3)


@pytest.mark.parametrize("supervised", [1, 7, 600])
@pytest.mark.parametrize(("vocabulary", "width"), [(50257, 576), (49152, 576), (151936, 5120), (256000, 8192)])
def test_the_heads_of_real_models(vocabulary, width, supervised):
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("float64 takes 50 GB")
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(800, width, generator=generator, device="cuda").bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator, device="cuda") * width**-0.5).bfloat16()
    weight.requires_grad_()
    index = torch.randperm(800, generator=generator, device="cuda")[:supervised].sort().values
    target = torch.randint(0, vocabulary, (supervised,), generator=generator, device="cuda")
    found = {}
    for impl, leaves in (
        ("triton", (hidden, weight)),
        ("plain", (hidden, weight)),
        ("truth", tuple(leaf.detach().double().requires_grad_() for leaf in (hidden, weight))),
    ):
        if impl == "triton":
            loss = linear_cross_entropy(leaves[0][index], leaves[1], target, impl=impl)
        else:
            logits = leaves[0][index] @ leaves[1].T
            loss = torch.nn.functional.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)), target
            )
            del logits
        grads = torch.autograd.grad(loss, leaves)
        found[impl] = {"loss": float(loss), **{k: g.cpu() for k, g in zip(("hidden", "weight"), grads, strict=True)}}
        del loss, grads
    assert found["triton"]["loss"] == pytest.approx(found["truth"]["loss"], rel=1e-6)
    for name in ("hidden", "weight"):
        truth = found["truth"][name]
        mine, theirs = (
            float(torch.linalg.vector_norm(found[impl][name].double() - truth) / torch.linalg.vector_norm(truth))
            for impl in ("triton", "plain")
        )
        assert mine <= 1.1 * theirs + 1e-4, f"{name}: {mine:.1e}, plain torch {theirs:.1e}"


def test_gradient_accumulates_in_fp32():
    tensors, *rest = _large_case()
    _, truth = _truth(tensors, *rest)
    total = torch.zeros_like(tensors["lm_weight_VD"], dtype=torch.float32, device="cuda")
    for _ in range(3):
        run(*_on_gpu(tensors, *rest), impl="triton", lm_weight_grad_VD=total)
    assert_close({"dW": total / 3}, {"dW": truth["lm_weight_VD"]}, 1e-2)


def test_memory_is_returned_and_stays_far_below_the_logits():
    case = _on_gpu(*_large_case())
    run(*case, impl="triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(*case, impl="triton")
    torch.cuda.synchronize()
    leaves = 2 * sum(v.nbytes for v in case[0].values())  # copies that the run makes, and their gradients
    n, width = 1500, 512
    workspace = n * fused.choose(torch.device("cuda"), torch.bfloat16).slab(n, 20011, 2) * 2
    states = n * width * (2 + 4 + 2)  # compacted; their gradient in fp32, and as it is scattered
    assert torch.cuda.max_memory_allocated() - before <= leaves + workspace + states + 4 * 2**20
    assert torch.cuda.memory_allocated() == before
