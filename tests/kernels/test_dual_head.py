"""The dual-head loss: every path against float64 truth, on odd shapes, with arbitrary upstream gradients."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from clsgen_kernels import dual_head_loss, resolve_impl
from clsgen_kernels.tiled import tile_rows

# N tokens, n supervised, D hidden, V vocabulary, C classes, S rows


def _inputs(n_tokens=37, supervised=23, width=24, vocabulary=507, classes=3, rows=5, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    index = torch.randperm(n_tokens, generator=generator)
    tensors = {
        "hidden_ND": normal(n_tokens, width) * scale,
        "lm_weight_VD": normal(vocabulary, width),
        "head_weight_CD": normal(classes, width),
        "head_bias_C": normal(classes),
    }
    label = torch.randint(0, classes, (rows,), generator=generator)
    label[::3] = -1
    indices = {
        "supervised_index_n": index[:supervised].sort().values,
        "target_n": torch.randint(0, vocabulary, (supervised,), generator=generator),
        # Some classification tokens are supervised as well: the last prompt token predicts the first of the reason.
        "class_index_S": index[supervised - min(2, supervised) :][:rows],
        "label_S": label,
    }
    if supervised:
        indices["target_n"][0] = vocabulary - 1
        indices["target_n"][-1] = 0
    upstream = normal(supervised), normal(rows, classes), normal(rows)
    return {k: v.to(dtype) for k, v in tensors.items()}, indices, upstream


def _run(tensors, indices, upstream, trained=("hidden_ND", "lm_weight_VD", "head_weight_CD", "head_bias_C"), **options):
    leaves = {k: v.clone().requires_grad_(k in trained) for k, v in tensors.items()}
    outputs = dual_head_loss(**leaves, **indices, **options)
    total = sum((output * weight.to(output.dtype)).sum() for output, weight in zip(outputs, upstream, strict=True))
    total.backward()
    return outputs, {k: leaves[k].grad for k in trained}


def _assert_close(got, truth, tolerance):
    for name, expected in truth.items():
        scale = expected.abs().max().clamp(min=1e-2)
        error = ((got[name].double() - expected).abs().max() / scale).item()
        assert error <= tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.0e}"


@pytest.mark.parametrize(("vocabulary", "tile"), [(507, 64), (507, 507), (252, 100), (123, 8192), (1, 1)])
@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
def test_tiled_equals_reference_in_float64(vocabulary, tile, frozen):
    case = _inputs(vocabulary=vocabulary)
    trained = ("hidden_ND", "head_weight_CD", "head_bias_C") + (() if frozen else ("lm_weight_VD",))
    truth, truth_grads = _run(*case, trained=trained, impl="reference")
    got, grads = _run(*case, trained=trained, impl="torch", vocab_tile=tile)
    _assert_close(got._asdict(), truth._asdict(), 1e-12)
    _assert_close(grads, truth_grads, 1e-12)


@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 2e-7), (torch.bfloat16, 1e-3)])
def test_error_is_no_larger_than_plain_torch_in_that_dtype(dtype, slack, frozen):
    tensors, indices, upstream = _inputs(width=64, n_tokens=130, supervised=65)
    trained = ("hidden_ND", "head_weight_CD", "head_bias_C") + (() if frozen else ("lm_weight_VD",))
    rounded = {k: v.to(dtype) for k, v in tensors.items()}
    exact = {k: v.double() for k, v in rounded.items()}
    truth, truth_grads = _run(exact, indices, upstream, trained=trained, impl="reference")
    plain, plain_grads = _run(rounded, indices, upstream, trained=trained, impl="reference")
    ours, our_grads = _run(rounded, indices, upstream, trained=trained, impl="torch", vocab_tile=128)
    pairs = [(truth._asdict(), plain._asdict(), ours._asdict()), (truth_grads, plain_grads, our_grads)]
    for expected, theirs, mine in pairs:
        for name, value in expected.items():
            scale = value.abs().max()
            their_error = ((theirs[name].double() - value).abs().max() / scale).item()
            my_error = ((mine[name].double() - value).abs().max() / scale).item()
            assert my_error <= 1.5 * their_error + slack, f"{name}: {my_error:.1e} against torch's {their_error:.1e}"


def test_large_logits_stay_finite():
    case = _inputs(scale=80.0)
    truth, truth_grads = _run(*case, impl="reference")
    got, grads = _run(*case, impl="torch", vocab_tile=50)
    assert torch.isfinite(got.generation_loss).all()
    _assert_close(got._asdict(), truth._asdict(), 1e-11)
    _assert_close(grads, truth_grads, 1e-11)


def test_strided_inputs_give_the_same():
    tensors, indices, upstream = _inputs()
    strided = {k: v if v.dim() == 1 else v.T.contiguous().T for k, v in tensors.items()}
    truth, truth_grads = _run(tensors, indices, upstream, impl="reference")
    leaves = {k: v.detach().requires_grad_() for k, v in strided.items()}
    assert not leaves["hidden_ND"].is_contiguous()
    outputs = dual_head_loss(**leaves, **indices, impl="torch", vocab_tile=100)
    sum((o * w).sum() for o, w in zip(outputs, upstream, strict=True)).backward()
    _assert_close(outputs._asdict(), truth._asdict(), 1e-12)
    _assert_close({k: leaf.grad for k, leaf in leaves.items()}, truth_grads, 1e-12)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize(("supervised", "rows"), [(0, 5), (23, 0), (0, 0)])
def test_nothing_supervised_or_no_rows_gives_zero_gradients_not_errors(impl, supervised, rows):
    outputs, grads = _run(*_inputs(supervised=supervised, rows=rows), impl=impl)
    assert outputs.generation_loss.shape == (supervised,)
    assert outputs.class_logits.shape == (rows, 3)
    assert all(torch.isfinite(g).all() for g in grads.values())
    if supervised == 0:
        assert grads["lm_weight_VD"].abs().max() == 0
    if rows == 0:
        assert grads["head_weight_CD"].abs().max() == 0


def test_rows_without_label_cost_nothing():
    tensors, indices, _ = _inputs()
    outputs = dual_head_loss(**tensors, **indices)
    assert (outputs.class_loss[indices["label_S"] == -1] == 0).all()
    assert (outputs.class_loss[indices["label_S"] >= 0] > 0).all()


def test_dropout_scale_reaches_logits_and_gradients():
    tensors, indices, upstream = _inputs()
    mask = (
        torch.bernoulli(torch.full((5, 24), 0.5, dtype=torch.float64), generator=torch.Generator().manual_seed(0)) * 2
    )
    truth, truth_grads = _run(tensors, indices, upstream, impl="reference", dropout_scale_SD=mask)
    got, grads = _run(tensors, indices, upstream, impl="torch", vocab_tile=100, dropout_scale_SD=mask)
    plain = dual_head_loss(**tensors, **indices)
    assert not torch.allclose(got.class_logits, plain.class_logits)
    _assert_close(got._asdict(), truth._asdict(), 1e-12)
    _assert_close(grads, truth_grads, 1e-12)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_sum_reduction_is_the_weighted_sum(impl):
    tensors, indices, _ = _inputs()
    weight = torch.rand(23, dtype=torch.float64)
    each = dual_head_loss(**tensors, **indices, impl=impl)
    total = dual_head_loss(**tensors, **indices, impl=impl, reduction="sum", token_weight_n=weight)
    assert total.generation_loss.shape == ()
    torch.testing.assert_close(total.generation_loss, (each.generation_loss * weight).sum())


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made():
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    n, vocabulary = 200, 4096
    case = _inputs(n_tokens=400, supervised=n, width=16, vocabulary=vocabulary, dtype=torch.float32)
    with Watch():
        _run(*case, impl="torch", vocab_tile=256)
    assert largest < n * vocabulary / 4
    with Watch():
        _run(*case, impl="reference")
    assert largest >= n * vocabulary  # the watch sees what it should


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_ND": torch.zeros(2, 3, 24, dtype=torch.float64)}, "flatten batch and time"),
        ({"lm_weight_VD": torch.zeros(0, dtype=torch.float64)}, "ZeRO-3"),
        ({"lm_weight_VD": torch.zeros(507, 12, dtype=torch.float64)}, r"expected \[\*, 24\]"),
        ({"lm_weight_VD": torch.zeros(507, 24)}, "cast one"),
        ({"head_bias_C": torch.zeros(7, dtype=torch.float64)}, r"expected \[3\]"),
        ({"target_n": torch.full((23,), 507)}, r"expected 0\.\.506"),
        ({"label_S": torch.full((5,), 3)}, r"expected -1\.\.2"),
        ({"class_index_S": torch.full((5,), 37)}, r"expected 0\.\.36"),
        ({"target_n": torch.zeros(22, dtype=torch.int64)}, "one length"),
        ({"label_S": torch.zeros(5)}, "int64"),
        ({"impl": "trition"}, "not one of"),
        ({"token_weight_n": torch.ones(23)}, "reduction='sum'"),
    ],
)
def test_wrong_input_is_refused_with_value_and_expectation(change, message):
    tensors, indices, _ = _inputs()
    with pytest.raises(ValueError, match=message):
        dual_head_loss(**{**tensors, **indices, **change})


def test_auto_never_means_the_reference():
    assert resolve_impl("auto") == "torch"


def test_tiles_stay_cache_sized():
    for n, vocabulary in product((0, 1, 512, 4096, 100_000), (1, 500, 49152, 128256)):
        rows = tile_rows(n, vocabulary)
        assert 1 <= rows <= vocabulary
        assert n * rows <= max(2**21, n * 512)
