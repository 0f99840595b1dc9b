"""The plain function against torch's cross-entropy, with the options that its users know."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from clsgen_kernels import Execution, GenerationOptions, linear_cross_entropy

D, V = 12, 131


def _inputs(shape=(3, 9), bias=True, ignore=-100):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*size, D, generator=generator, dtype=torch.float64) for size in (shape, (V,)))
    target = torch.randint(0, V, shape, generator=generator)
    target.flatten()[::4] = ignore
    bias_V = torch.randn(V, generator=generator, dtype=torch.float64) if bias else None
    return hidden, weight, target, bias_V


def _both(found, expected, *leaves):
    torch.testing.assert_close(found, expected)
    weight = torch.linspace(1, 2, max(1, found.numel()), dtype=found.dtype).view(found.shape)
    leaves = [leaf for leaf in leaves if leaf is not None]
    grads = [torch.autograd.grad((value * weight).sum(), leaves) for value in (found, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore", [-100, -1, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_it_is_cross_entropy_of_a_linear_layer(reduction, ignore, smoothing):
    hidden, weight, target, bias = _inputs(ignore=ignore)
    for leaf in (hidden, weight, bias):
        leaf.requires_grad_()
    options = {"ignore_index": ignore, "reduction": reduction, "label_smoothing": smoothing}
    expected = F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, 1), target.flatten(), **options)
    found = linear_cross_entropy(hidden, weight, target, bias, **options)
    assert found.shape == (target.shape if reduction == "none" else ())
    _both(found, expected.view(found.shape), hidden, weight, bias)


@pytest.mark.parametrize("shift", [True, 2])
@pytest.mark.parametrize("frozen", [False, True])
def test_shift_scale_soft_cap_and_z_loss(shift, frozen):
    hidden, weight, target, _ = _inputs(bias=False)
    hidden.requires_grad_()
    weight.requires_grad_(not frozen)
    options = GenerationOptions(z_loss=0.01, softcap=4.0, logit_scale=0.3)
    found = linear_cross_entropy(
        hidden, weight, target, shift=shift, z_loss=0.01, softcap=4.0, logit_scale=0.3, return_lse=True,
        return_z_loss=True, return_predicted_tokens=True,
    )  # fmt: skip
    logits = 4.0 * torch.tanh(0.3 * (hidden[:, : -int(shift)] @ weight.T) / 4.0)
    labels = target[:, int(shift) :]
    counted, lse = labels != -100, logits.logsumexp(dim=-1)
    z_loss = options.z_loss * (lse**2)[counted].mean()
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten()) + z_loss
    _both(found.loss, expected, hidden, *([] if frozen else [weight]))
    torch.testing.assert_close(found.lse, torch.where(counted, lse, 0).detach())
    torch.testing.assert_close(found.z_loss, z_loss.detach())
    assert torch.equal(found.predicted_tokens, logits.argmax(dim=-1).where(counted, -1))
    assert not found.lse.requires_grad and not found.z_loss.requires_grad


@pytest.mark.parametrize("impl", ["torch", "triton", "reference"])
def test_predicted_tokens_are_the_first_of_equals_in_every_tile(impl):
    weight = torch.eye(8).repeat(1200, 1)  # nine thousand rows: each of eight repeats in every tile
    hidden, target = torch.eye(8)[:3], torch.zeros(3, dtype=torch.int64)
    found = linear_cross_entropy(hidden, weight, target, impl=impl, return_predicted_tokens=True)
    assert found.predicted_tokens.tolist() == [0, 1, 2] and found.lse is found.z_loss is None


def test_nothing_that_counts_gives_zero_and_not_nan():
    hidden, weight, target, _ = _inputs()
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(target, -100))
    loss.backward()
    assert loss == 0 and (hidden.grad == 0).all()


def test_only_targets_that_count_are_multiplied():
    from torch.utils.flop_counter import FlopCounterMode

    hidden, weight, target, _ = _inputs(shape=(40,))
    target[:35] = -100
    with FlopCounterMode(display=False) as counted:
        linear_cross_entropy(hidden, weight, target)
    assert counted.get_total_flops() == 2 * int((target != -100).sum()) * D * V


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "avg"}, "expected 'mean', 'sum' or 'none'"),
        ({"target": torch.zeros(3, 8, dtype=torch.int64)}, r"target has shape \(3, 8\), expected \(3, 9\)"),
        ({"target": torch.full((3, 9), -1)}, r"target holds -1, expected 0..130 or ignore_index -100"),
        ({"ignore_index": -1}, r"target holds -100, expected 0..130 or ignore_index -1"),
        ({"target": torch.full((3, 9), V)}, r"expected 0..130"),
        ({"bias": torch.zeros(5)}, r"lm_bias_V has shape \(5,\), expected \[131\]"),
        ({"weight": torch.zeros(V, D)}, "cast one of them"),
        ({"hidden": torch.zeros(D), "target": torch.tensor(3)}, "expected .* with a dimension of positions"),
        ({"shift": -1}, "shift is -1, expected 0 to 8"),
        ({"shift": 9}, "shift is 9, expected 0 to 8"),
    ],
)
def test_wrong_input_is_refused(change, message):
    hidden, weight, target, bias = _inputs()
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{"hidden": hidden, "weight": weight, "target": target, "bias": bias, **change})


@pytest.mark.parametrize("excluded", [slice(0, 64), slice(128, 160), slice(60, 70)], ids=str)
@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")], ids=str)
@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_bias_of_minus_infinity_excludes_whole_tiles(impl, trained, excluded):
    generator = torch.Generator().manual_seed(0)
    tensors = {"hidden": torch.randn(20, 16, generator=generator), "weight": torch.randn(160, 16, generator=generator)}
    target = torch.randint(80, 120, (20,), generator=generator)
    bias = torch.zeros(160)
    bias[excluded] = -torch.inf
    leaves = {name: tensor.requires_grad_(name in trained) for name, tensor in tensors.items()}
    truth = torch.nn.functional.cross_entropy(leaves["hidden"] @ leaves["weight"].T + bias, target)
    wanted = [leaves[name] for name in trained]
    expected = torch.autograd.grad(truth, wanted)
    for store_bytes in (0, 1, 2**40):
        execution = Execution(vocab_tile=32, store_bytes=store_bytes)
        loss = linear_cross_entropy(*leaves.values(), target, bias, impl=impl, execution=execution)
        torch.testing.assert_close(loss, truth)
        torch.testing.assert_close(torch.autograd.grad(loss, wanted), expected)
