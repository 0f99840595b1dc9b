"""What a backward pass does not compute, double backward, and the reference as an independent judge."""

from __future__ import annotations

import pytest
import torch
from cases import CLASSES, cast, errors, make_case, run
from clsgen_kernels import Execution, dual_head_loss, fused, tiled
from clsgen_kernels.inputs import HeadInputs
from torch.utils.flop_counter import FlopCounterMode

N_TOKENS, WIDTH, VOCABULARY, OUTPUTS = 23, 24, 65, 3
PASS = 2 * N_TOKENS * WIDTH * VOCABULARY
"""FLOPs of one product of the supervised states and the vocabulary."""


def _outputs(impl, trained=("hidden_ND", "lm_weight_VD", "head_weight_CD", "head_bias_C"), **execution):
    tensors, indices, _ = make_case(vocabulary=VOCABULARY)
    leaves = {k: v.requires_grad_(k in trained) for k, v in cast(tensors, torch.float32).items()}
    return leaves, dual_head_loss(**leaves, **indices, impl=impl, execution=Execution(**execution))


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_backward_through_the_class_outputs_alone_reads_no_vocabulary(impl, monkeypatch):
    leaves, outputs = _outputs(impl)
    monkeypatch.setattr(fused, "backward", None)
    monkeypatch.setattr(tiled, "backward", None)
    with FlopCounterMode(display=False) as counted:
        (outputs.class_loss.sum() + outputs.class_logits.sum()).backward()
    assert 0 < counted.get_total_flops() < PASS / 2
    assert leaves["lm_weight_VD"].grad is None
    truth_leaves, truth = _outputs("reference")
    (truth.class_loss.sum() + truth.class_logits.sum()).backward()
    for name in ("hidden_ND", "head_weight_CD", "head_bias_C"):
        torch.testing.assert_close(leaves[name].grad, truth_leaves[name].grad, rtol=1e-5, atol=1e-5)


def test_backward_through_the_generation_loss_alone_leaves_the_class_head():
    leaves, outputs = _outputs("torch", hidden_grad_square=(square := torch.zeros(3)))
    with FlopCounterMode(display=False) as counted:
        outputs.generation_loss.sum().backward()
    assert counted.get_total_flops() == PASS  # and one that adds in place, which the counter does not see
    assert leaves["head_weight_CD"].grad is leaves["head_bias_C"].grad is None
    truth_leaves, truth = _outputs("reference")
    truth.generation_loss.sum().backward()
    torch.testing.assert_close(leaves["hidden_ND"].grad, truth_leaves["hidden_ND"].grad, rtol=1e-4, atol=1e-5)
    assert square[0] > 0 and square[1] == square[2] == 0


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_no_slope_is_computed_and_nothing_kept(impl, context, monkeypatch):
    _, expected = _outputs(impl)
    monkeypatch.setattr(HeadInputs, "slopes", None)
    keeps = torch.autograd.graph.saved_tensors_hooks(pytest.fail, pytest.fail)
    with context(), keeps, FlopCounterMode(display=False) as counted:
        _, outputs = _outputs(impl, store_bytes=10**9)
    assert not any(output.requires_grad for output in outputs)
    assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
    if impl == "torch":
        assert counted.get_total_flops() == PASS + 2 * 5 * WIDTH * OUTPUTS  # a frozen weight's would carry its own sum
    with context(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "forward", _refuse_stored(fused.forward))
        _outputs("triton", store_bytes=10**9)


def _refuse_stored(forward):
    def call(*args, **options):
        assert options["stored_snK"] is None
        return forward(*args, **options)

    return call


def test_double_backward_is_refused_with_the_remedy():
    leaves, outputs = _outputs("torch")
    (grad,) = torch.autograd.grad(outputs.generation_loss.sum(), leaves["hidden_ND"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated twice \(create_graph=True\), expected once.*'reference'"):
        grad.sum().backward()
    leaves, outputs = _outputs("reference")
    (grad,) = torch.autograd.grad(outputs.generation_loss.sum(), leaves["hidden_ND"], create_graph=True)
    grad.sum().backward()
    assert leaves["hidden_ND"].grad.abs().max() > 0


MUTANTS = {
    "focal factor": ("_focal", lambda original: lambda self, part: original(self, part) * 1.01),
    "binary targets": (
        "_binary_targets",
        lambda original: lambda self, logits: (original(self, logits)[0] * 0.99, original(self, logits)[1]),
    ),
    "class weights": ("weights_C", lambda original: lambda self: original(self) * 1.01),
    "logits": ("logits", lambda original: lambda self: original(self) * 1.01),
    "losses": ("losses", lambda original: lambda self, logits: original(self, logits) * 1.01),
    "slopes": ("slopes", lambda original: lambda self, logits: original(self, logits) * 1.01),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_reference_catches_a_fault_in_the_class_head(mutant, monkeypatch):
    name, wrong = MUTANTS[mutant]
    monkeypatch.setattr(HeadInputs, name, wrong(getattr(HeadInputs, name)))
    worst = 0.0
    for kind, options in CLASSES.items():
        case = make_case(kind=kind, classes=1 if kind == "sigmoid" else 3)
        truth, truth_grads = run(*case, impl="reference", classification=options)
        got, grads = run(*case, impl="torch", classification=options)
        worst = max(worst, *errors(got, truth).values(), *errors(grads, truth_grads).values())
    assert worst > 1e-3, f"the mutant {mutant!r} passes"


def _kept_bytes(compute):
    """Bytes of each storage that autograd keeps."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return list(kept.values())


@pytest.mark.parametrize(
    ("impl", "trained"), [("torch", "hidden_ND"), ("torch", "head_weight_CD"), ("triton", "head_weight_CD")]
)
def test_states_and_logits_that_no_backward_reads_are_not_kept(impl, trained):
    """The LM's weight frozen, or the class head alone learning: neither the compacted states, nor their logits."""
    width = 400
    tensors, indices, _ = make_case(vocabulary=VOCABULARY, width=width)
    leaves = {k: v.requires_grad_(k == trained) for k, v in cast(tensors, torch.float32).items()}
    kept = _kept_bytes(lambda: dual_head_loss(**leaves, **indices, impl=impl, execution=Execution(store_bytes=10**9)))
    carried = trained == "hidden_ND"  # the frozen weight's sum, which is as large as the states
    assert kept.count(4 * N_TOKENS * width) == carried
    assert 4 * N_TOKENS * -(-VOCABULARY // 8) * 8 not in kept
