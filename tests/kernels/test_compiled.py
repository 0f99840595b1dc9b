"""torch.compile around the loss: one graph, equal results."""

from __future__ import annotations

import pytest
import torch
from cases import ALONE, CLASSES, EVERYTHING, cast, make_case
from clsgen_kernels import Execution, dual_head_loss, linear_cross_entropy

FROZEN = ("hidden_ND", "head_weight_CD")


def _gradients(case, compiled, trained, backend="aot_eager", **options):
    tensors, indices, upstream = case
    leaves = {k: v.detach().clone().requires_grad_(k in trained) for k, v in tensors.items()}

    def loss(leaves, indices, upstream):
        scaled = {**leaves, "hidden_ND": leaves["hidden_ND"] * 2}
        outputs = dual_head_loss(**scaled, **indices, **options)
        return sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs[:3], upstream, strict=True)), outputs.token_hit

    torch._dynamo.reset()
    function = torch.compile(loss, fullgraph=True, backend=backend) if compiled else loss
    total, hits = function(leaves, indices, upstream)
    total.backward()
    return {"total": total.detach(), "hits": hits} | {k: leaves[k].grad for k in trained}


@pytest.mark.parametrize("frozen", [False, True], ids=["lm trained", "lm frozen"])
@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_the_compiled_loss_is_one_graph_with_equal_results(impl, frozen):
    tensors, *rest = make_case(vocabulary=65, bias=True)
    case = cast(tensors, torch.float32), *rest
    trained = FROZEN if frozen else tuple(tensors)
    options = (
        {"impl": impl} if frozen else {"impl": impl, "generation": EVERYTHING, "classification": CLASSES["softmax"]}
    )
    expected = _gradients(case, False, trained, **options)
    tolerance = 1e-5 if impl == "reference" else 0.0  # plain torch, which the compiler sees and may reorder
    for name, value in _gradients(case, True, trained, **options).items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


def test_one_output_alone_and_none_at_all():
    tensors, indices, _ = make_case(vocabulary=65)
    leaves = {k: v.requires_grad_() for k, v in cast(tensors, torch.float32).items()}
    torch._dynamo.reset()
    outputs = torch.compile(dual_head_loss, fullgraph=True, backend="aot_eager")(**leaves, **indices, reduction="sum")
    outputs.class_loss.backward()
    expected = torch.autograd.grad(dual_head_loss(**leaves, **indices).class_loss.sum(), leaves["hidden_ND"])[0]
    torch.testing.assert_close(leaves["hidden_ND"].grad, expected)
    with torch.no_grad():
        outputs = torch.compile(dual_head_loss, fullgraph=True, backend="aot_eager")(**leaves, **indices)
    torch.testing.assert_close(outputs.generation_loss, dual_head_loss(**leaves, **indices).generation_loss)


@pytest.mark.long
def test_inductor_compiles_it_too():
    tensors, *rest = make_case(vocabulary=65, bias=True)
    case = cast(tensors, torch.float32), *rest
    expected = _gradients(case, False, tuple(tensors), generation=EVERYTHING)
    for name, value in _gradients(case, True, tuple(tensors), "inductor", generation=EVERYTHING).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_the_operators_pass_torchs_own_checks():
    from clsgen_kernels.compiled import _dual_head

    tensors, indices, _ = make_case(vocabulary=65, bias=True)
    leaves = {k: v.requires_grad_() for k, v in cast(tensors, torch.float32).items()}
    options = ("torch", 0.1, 0.01, None, 0.5, "softmax", [1.0, 2.0, 0.5], 0.0, False, 16, [True] * 5)
    given = (*leaves.values(), *(indices[k] for k in ("supervised_index_n", "target_n", "class_index_S", "label_S")))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    assert set(torch.library.opcheck(_dual_head, (*given, None, None, *options), test_utils=checks).values()) == {
        "SUCCESS"
    }


def test_linear_cross_entropy_compiles():
    torch._dynamo.reset()
    hidden, weight = torch.randn(2, 7, 8, requires_grad=True), torch.randn(33, 8, requires_grad=True)
    target = torch.randint(0, 33, (2, 7))
    target[0, 3:] = -100
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(hidden, weight, target, shift=True), [hidden, weight])
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, target, shift=True), [hidden, weight])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": Execution(hidden_grad_square=torch.zeros(3))}, "hidden_grad_square is set inside torch.compile"),
        ({"execution": Execution(vocab_shards=ALONE)}, "vocab_shards is set inside torch.compile"),
    ],
)
def test_what_adds_to_other_tensors_is_refused(options, message):
    tensors, indices, _ = make_case(vocabulary=65)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=message):
        torch.compile(dual_head_loss, fullgraph=True, backend="eager")(**tensors, **indices, **options)


def test_the_states_of_all_tokens_are_not_kept():
    hidden, weight = torch.randn(400, 64, requires_grad=True), torch.randn(200, 64, requires_grad=True)
    index, none = torch.randperm(400)[:40], torch.zeros(0, dtype=torch.int64)
    given = {"supervised_index_n": index, "target_n": index % 200, "class_index_S": none, "label_S": none}

    def loss(hidden):
        return dual_head_loss(hidden * 1, weight, torch.zeros(2, 64), torch.zeros(2), **given).generation_loss.sum()

    shapes = []
    torch._dynamo.reset()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        found = torch.compile(loss, backend="aot_eager")(hidden)
    assert shapes and (400, 64) not in shapes
    gradient, expected = (torch.autograd.grad(value, hidden)[0] for value in (found, loss(hidden)))
    torch.testing.assert_close(gradient, expected)
