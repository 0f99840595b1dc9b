"""The dual-head loss: every path against float64 truth, on odd shapes, with arbitrary upstream gradients."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.utils.checkpoint
from cases import assert_close, cast, make_case, run
from clsgen_kernels import ClassOptions, Execution, GenerationOptions, dual_head_loss, resolve_impl
from clsgen_kernels.implementation import _auto
from clsgen_kernels.inputs import HeadInputs
from clsgen_kernels.tiled import tile_rows
from torch.utils._python_dispatch import TorchDispatchMode

# N tokens, n supervised, D hidden, V vocabulary, C classes, S rows


@pytest.mark.parametrize(("vocabulary", "tile"), [(507, 64), (507, 507), (252, 100), (123, 8192), (1, 1)])
@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
def test_tiled_equals_reference_in_float64(vocabulary, tile, frozen):
    case = make_case(vocabulary=vocabulary)
    trained = ("hidden_ND", "head_weight_CD", "head_bias_C") + (() if frozen else ("lm_weight_VD",))
    truth, truth_grads = run(*case, trained=trained, impl="reference")
    got, grads = run(*case, trained=trained, impl="torch", vocab_tile=tile)
    assert_close(got, truth, 1e-12)
    assert_close(grads, truth_grads, 1e-12)


@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 2e-7), (torch.bfloat16, 1e-3)])
def test_error_is_no_larger_than_plain_torch_in_that_dtype(dtype, slack, frozen):
    tensors, indices, upstream = make_case(width=64, n_tokens=130, supervised=65)
    trained = ("hidden_ND", "head_weight_CD", "head_bias_C") + (() if frozen else ("lm_weight_VD",))
    rounded = cast(tensors, dtype)
    exact = {k: v.double() for k, v in rounded.items()}
    truth, truth_grads = run(exact, indices, upstream, trained=trained, impl="reference")
    plain, plain_grads = run(rounded, indices, upstream, trained=trained, impl="reference")
    ours, our_grads = run(rounded, indices, upstream, trained=trained, impl="torch", vocab_tile=128)
    pairs = [(truth, plain, ours), (truth_grads, plain_grads, our_grads)]
    for expected, theirs, mine in pairs:
        for name, value in expected.items():
            if name == "token_hit":  # in low precision several tokens tie for the argmax
                continue
            scale = value.abs().max()
            their_error = ((theirs[name].double() - value).abs().max() / scale).item()
            my_error = ((mine[name].double() - value).abs().max() / scale).item()
            assert my_error <= 1.5 * their_error + slack, f"{name}: {my_error:.1e} against torch's {their_error:.1e}"


OPTIONS = {
    "smoothing, z-loss, cap": GenerationOptions(label_smoothing=0.1, z_loss=1e-3, softcap=5.0),
    "z-loss": GenerationOptions(z_loss=1e-2),
    "scale": GenerationOptions(logit_scale=0.3),
    "scale, cap": GenerationOptions(logit_scale=3.0, softcap=5.0),
    "all smoothed": GenerationOptions(label_smoothing=1.0),
}
CLASSES = {
    "weighted softmax": ClassOptions(class_weight=(1.0, 2.0, 0.5)),
    "focal softmax": ClassOptions(focal_gamma=2.0),
    "multi-label, weighted, focal": ClassOptions("multilabel", (1.0, 2.0, 0.5), 1.5),
    "soft, weighted": ClassOptions("soft", (1.0, 2.0, 0.5)),
    "ordinal": ClassOptions("ordinal"),
    "sigmoid": ClassOptions("sigmoid"),
}


@pytest.mark.parametrize("generation", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
def test_generation_options_equal_the_reference(generation, bias, frozen):
    case = make_case(bias=bias)
    trained = tuple(k for k in case[0] if not (frozen and k == "lm_weight_VD"))
    truth, truth_grads = run(*case, trained=trained, impl="reference", generation=generation)
    plain, _ = run(*case, trained=trained, impl="reference")
    got, grads = run(*case, trained=trained, impl="torch", vocab_tile=100, generation=generation)
    assert not torch.allclose(truth["generation_loss"], plain["generation_loss"])
    assert_close(got, truth, 1e-12)
    assert_close(grads, truth_grads, 1e-12)


@pytest.mark.parametrize("classification", CLASSES.values(), ids=CLASSES)
def test_label_spaces_equal_the_reference(classification):
    case = make_case(kind=classification.kind, classes=1 if classification.kind == "sigmoid" else 3)
    truth, truth_grads = run(*case, impl="reference", classification=classification)
    got, grads = run(*case, impl="torch", vocab_tile=100, classification=classification)
    assert_close(got, truth, 1e-12)
    assert_close(grads, truth_grads, 1e-12)


def test_label_spaces_by_hand():
    logits = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)

    def loss(label, **options):
        side = HeadInputs(
            torch.zeros(1, 1), torch.zeros(3, 1), torch.zeros(3), torch.tensor(label), ClassOptions(**options)
        )
        return float(side.losses(logits))

    chance = torch.sigmoid(logits)[0].tolist()
    q, p = (0.7, 0.1, 0.2), torch.softmax(logits, dim=1)[0].tolist()
    assert loss([q], kind="soft") == pytest.approx(-sum(a * math.log(b) for a, b in zip(q, p, strict=True)))
    assert loss([[1.0, 0.3, -1.0]], kind="multilabel") == pytest.approx(
        -math.log(chance[0]) - 0.3 * math.log(chance[1]) - 0.7 * math.log(1 - chance[1])
    )
    assert loss([[1, 0, -1]], kind="multilabel") == pytest.approx(-math.log(chance[0]) - math.log(1 - chance[1]))
    # Three thresholds, four ordered classes: class 2 is above the first two and not above the third.
    expected = -math.log(chance[0]) - math.log(chance[1]) - math.log(1 - chance[2])
    assert loss([2], kind="ordinal") == pytest.approx(expected)
    p = float(torch.softmax(logits, dim=1)[0, 1])
    assert loss([1], focal_gamma=2.0, class_weight=(1.0, 3.0, 1.0)) == pytest.approx(-3 * (1 - p) ** 2 * math.log(p))


@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
def test_each_heads_gradient_at_the_hidden_states_is_measured_apart(frozen):
    tensors, indices, (tokens, _, rows) = make_case()
    trained = tuple(k for k in tensors if not (frozen and k == "lm_weight_VD"))
    square, apart = torch.zeros(3), []
    run(tensors, indices, (tokens, torch.zeros(5, 3), rows), trained=trained, impl="torch", hidden_grad_square=square)
    for head, upstream in enumerate([(tokens, torch.zeros(5, 3), rows * 0), (tokens * 0, torch.zeros(5, 3), rows)]):
        _, grads = run(tensors, indices, upstream, impl="reference")
        apart.append(grads["hidden_ND"])
        assert square[head].item() == pytest.approx(grads["hidden_ND"].square().sum().item(), rel=1e-6)
    assert square[2].item() == pytest.approx((apart[0] * apart[1]).sum().item(), rel=1e-5) and square[2].item()


def test_ignored_targets_have_no_loss_and_token_hit_is_the_argmax():
    tensors, indices, upstream = make_case()
    outputs, grads = run(tensors, indices, upstream, impl="torch", vocab_tile=100)
    ignored = indices["target_n"] == -100
    assert ignored.any() and (outputs["generation_loss"][ignored] == 0).all()
    assert not outputs["token_hit"][ignored].any()
    place = indices["supervised_index_n"][ignored]
    alone = place[~torch.isin(place, indices["class_index_S"])]
    assert len(alone) and (grads["hidden_ND"][alone] == 0).all()
    logits = tensors["hidden_ND"][indices["supervised_index_n"]] @ tensors["lm_weight_VD"].T
    indices["target_n"] = logits.argmax(dim=1)
    assert run(tensors, indices, upstream, impl="torch", vocab_tile=100)[0]["token_hit"].all()


def test_gradient_accumulates_in_fp32_over_micro_batches():
    tensors, indices, upstream = make_case()
    tensors = cast(tensors, torch.bfloat16)
    _, grads = run(cast(tensors, torch.float64), indices, upstream, impl="reference")
    total = torch.zeros(507, 24)
    for _ in range(3):
        _, other = run(tensors, indices, upstream, impl="torch", vocab_tile=100, lm_weight_grad_VD=total)
        assert other["lm_weight_VD"] is None
    assert_close({"dW": total / 3}, {"dW": grads["lm_weight_VD"]}, 2e-2)


def test_large_logits_stay_finite():
    case = make_case(scale=80.0)
    truth, truth_grads = run(*case, impl="reference")
    got, grads = run(*case, impl="torch", vocab_tile=50)
    assert torch.isfinite(got["generation_loss"]).all()
    assert_close(got, truth, 1e-11)
    assert_close(grads, truth_grads, 1e-11)


def test_strided_inputs_give_equal_results():
    tensors, indices, upstream = make_case()
    strided = {k: v if v.dim() == 1 else v.T.contiguous().T for k, v in tensors.items()}
    truth, truth_grads = run(tensors, indices, upstream, impl="reference")
    leaves = {k: v.detach().requires_grad_() for k, v in strided.items()}
    assert not leaves["hidden_ND"].is_contiguous()
    outputs = dual_head_loss(**leaves, **indices, impl="torch", execution=Execution(vocab_tile=100))
    sum((o * w).sum() for o, w in zip(outputs[:3], upstream, strict=True)).backward()
    assert_close(outputs._asdict(), truth, 1e-12)
    assert_close({k: leaf.grad for k, leaf in leaves.items()}, truth_grads, 1e-12)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize(("supervised", "rows"), [(0, 5), (23, 0), (0, 0)])
def test_nothing_supervised_or_no_rows_gives_zero_gradients_not_errors(impl, supervised, rows):
    outputs, grads = run(*make_case(supervised=supervised, rows=rows), impl=impl)
    assert outputs["generation_loss"].shape == (supervised,)
    assert outputs["class_logits"].shape == (rows, 3)
    assert all(torch.isfinite(g).all() for g in grads.values())
    if supervised == 0:
        assert grads["lm_weight_VD"].abs().max() == 0
    if rows == 0:
        assert grads["head_weight_CD"].abs().max() == 0


def test_rows_without_label_have_no_classification_loss():
    tensors, indices, _ = make_case()
    outputs = dual_head_loss(**tensors, **indices)
    assert (outputs.class_loss[indices["label_S"] == -1] == 0).all()
    assert (outputs.class_loss[indices["label_S"] >= 0] > 0).all()


def test_dropout_scale_reaches_logits_and_gradients():
    tensors, indices, upstream = make_case()
    mask = (
        torch.bernoulli(torch.full((5, 24), 0.5, dtype=torch.float64), generator=torch.Generator().manual_seed(0)) * 2
    )
    truth, truth_grads = run(tensors, indices, upstream, impl="reference", dropout_scale_SD=mask)
    got, grads = run(tensors, indices, upstream, impl="torch", vocab_tile=100, dropout_scale_SD=mask)
    plain = dual_head_loss(**tensors, **indices)
    assert not torch.allclose(got["class_logits"], plain.class_logits)
    assert_close(got, truth, 1e-12)
    assert_close(grads, truth_grads, 1e-12)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_sum_reduction_is_the_weighted_sum(impl):
    tensors, indices, _ = make_case()
    weight = torch.rand(23, dtype=torch.float64)
    each = dual_head_loss(**tensors, **indices, impl=impl)
    total = dual_head_loss(**tensors, **indices, impl=impl, reduction="sum", token_weight_n=weight)
    assert total.generation_loss.shape == ()
    torch.testing.assert_close(total.generation_loss, (each.generation_loss * weight).sum())
    torch.testing.assert_close(total.class_loss, each.class_loss.sum())


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_autocast_multiplies_the_lm_head_in_its_dtype_and_the_class_head_in_fp32(impl):
    tensors, *rest = make_case(vocabulary=65, width=16)
    master = cast(tensors, torch.float32)  # fp32 weights, and states as a layer leaves them under autocast
    narrow = {k: v if k.startswith("head") else v.bfloat16() for k, v in master.items()}
    expected, expected_grads = run(narrow, *rest, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        got, grads = run({**master, "hidden_ND": narrow["hidden_ND"]}, *rest, impl=impl)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    assert got["class_logits"].dtype == got["generation_loss"].dtype == torch.float32
    for name, grad in grads.items():
        assert grad.dtype == (torch.bfloat16 if name == "hidden_ND" else torch.float32), name
        assert torch.equal(grad, expected_grads[name].to(grad.dtype)), name


def test_the_meta_device_has_no_autocast_and_works():
    tensors, indices, _ = make_case()
    meta = {k: v.to("meta").requires_grad_() for k, v in cast(tensors, torch.bfloat16).items()}
    outputs = dual_head_loss(**meta, **{k: v.to("meta") for k, v in indices.items()}, impl="torch")
    (outputs.generation_loss.sum() + outputs.class_loss.sum()).backward()
    assert all(leaf.grad.shape == leaf.shape for leaf in meta.values())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_checkpointing_gives_the_same_gradients(impl, reentrant):
    tensors, indices, upstream = make_case(vocabulary=65, width=16)
    tensors = cast(tensors, torch.float32)
    _, plain = run(tensors, indices, upstream, impl=impl)
    leaves = {k: v.clone().requires_grad_() for k, v in tensors.items()}

    def loss(*values):
        outputs = dual_head_loss(**dict(zip(leaves, values, strict=True)), **indices, impl=impl)
        return sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs[:3], upstream, strict=True))

    torch.utils.checkpoint.checkpoint(loss, *leaves.values(), use_reentrant=reentrant).backward()
    assert all(torch.equal(leaf.grad, plain[name]) for name, leaf in leaves.items())


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.bytes = max(self.bytes, value.numel() * value.element_size())
        return out


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_full_logits_are_never_materialised(impl):
    n, vocabulary = 100, 1024
    tensors, *rest = make_case(n_tokens=200, supervised=n, width=16, vocabulary=vocabulary)
    case = cast(tensors, torch.float32), *rest
    with LargestTensor() as seen:
        run(*case, impl=impl, vocab_tile=128)
    assert 0 < seen.bytes < 4 * n * vocabulary / 4
    with LargestTensor() as seen:
        run(*case, impl="reference")
    assert seen.bytes >= 4 * n * vocabulary  # it does see the tensors


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_nothing_of_all_tokens_is_wider_than_the_hidden_states(impl):
    tensors, *rest = make_case(n_tokens=2000, supervised=10, width=16, vocabulary=65)
    with LargestTensor() as seen:
        run(cast(tensors, torch.bfloat16), *rest, impl=impl)
    assert seen.bytes == 2 * 2000 * 16


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
        ({"target_n": torch.zeros(22, dtype=torch.int64)}, "equal length"),
        ({"label_S": torch.zeros(5)}, "int64"),
        ({"impl": "trition"}, "not one of"),
        ({"token_weight_n": torch.ones(23)}, "reduction='sum'"),
        ({"lm_bias_V": torch.zeros(5)}, r"expected \[507\]"),
        (
            {"execution": Execution(lm_weight_grad_VD=torch.zeros(507, 24, dtype=torch.float16))},
            r"expected torch.float32 \(507, 24\)",
        ),
        ({"reduction": "mean"}, "expected 'none' or 'sum'"),
        ({"classification": ClassOptions(class_weight=(1.0,))}, "one for each of 3"),
        ({"classification": ClassOptions("sigmoid")}, "expected 1 for kind 'sigmoid'"),
        ({"classification": ClassOptions("multilabel")}, r"expected int64 or float32 or float64 \(5, 3\)"),
        ({"classification": ClassOptions("soft")}, r"expected float32 or float64 \(5, 3\) for kind 'soft'"),
        ({"impl": "triton"}, "supports fp32, fp16 and bf16"),
    ],
)
def test_wrong_input_is_refused_with_value_and_expectation(change, message):
    tensors, indices, _ = make_case()
    with pytest.raises(ValueError, match=message):
        dual_head_loss(**{**tensors, **indices, **change})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GenerationOptions(label_smoothing=1.1), "label_smoothing is 1.1"),
        (lambda: GenerationOptions(z_loss=-1.0), "z_loss is -1.0"),
        (lambda: GenerationOptions(softcap=0.0), "softcap is 0.0"),
        (lambda: GenerationOptions(logit_scale=0.0), "logit_scale is 0.0"),
        (lambda: ClassOptions(focal_gamma=-1.0), "focal_gamma is -1.0"),
        (lambda: ClassOptions(kind="binary"), "kind 'binary' is not one of"),
        (lambda: ClassOptions(kind="soft", focal_gamma=1.0), "expected 0 for kind 'soft'"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_auto_selects_torch_on_cpu_and_triton_on_gpu_and_logs_it_once(caplog):
    _auto.cache_clear()
    with caplog.at_level("INFO", logger="clsgen_kernels"):
        assert [resolve_impl("auto") for _ in range(3)] == ["torch"] * 3
        assert resolve_impl("auto", "cuda") == "triton"
    assert [r.getMessage() for r in caplog.records] == [
        "dual_head_loss: impl 'auto' is 'torch', since tensors are on cpu",
        "dual_head_loss: impl 'auto' is 'triton', since a GPU and Triton are available",
    ]


def test_auto_selects_torch_on_an_old_gpu(caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    _auto.cache_clear()
    with caplog.at_level("INFO", logger="clsgen_kernels"):
        assert resolve_impl("auto", "cuda") == "torch"
    _auto.cache_clear()
    assert "8.0, this GPU has (7, 0)" in caplog.text


def test_triton_without_gpu_or_interpreter_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="needs tensors on a GPU, these are on cpu"):
        resolve_impl("triton", "cpu")


def test_tiles_stay_cache_sized():
    for n, vocabulary in product((0, 1, 512, 4096, 100_000), (1, 500, 49152, 128256)):
        rows = tile_rows(n, vocabulary)
        assert 1 <= rows <= vocabulary
        assert n * rows <= max(2**21, n * 512)
