"""The contrast term: against a plain formula in float64, and what it draws where."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clsgen_dist.data.pack import Sample, collate, dummy_batch, pack_groups
from clsgen_dist.model.classification_head import ClassLoss
from clsgen_dist.model.forward_pass import ForwardPass
from clsgen_dist.objectives.contrast import ContrastSettings

# label, evidence, counter-evidence, group
ROWS = [
    (0, [[1, 3], [5, 6]], [[7, 9]], 0),
    (1, [[0, 2]], [], 0),
    (0, [[2, 4]], [[4, 5]], 0),  # the first row's class: no negative of it
    (1, [], [[2, 3]], 1),  # no evidence
    (-1, [[3, 5]], [], 1),  # nothing to compare with
    (-1, [[1, 2]], [], 2),
    (-1, [[4, 6]], [], 2),  # labels not known: negatives of each other
]


def _batch(rows=ROWS):
    spans = [np.array(s, dtype=np.int32).reshape(-1, 2) for row in rows for s in row[1:3]]
    samples = [
        Sample(np.arange(10, dtype=np.int32), np.zeros(0, dtype=np.int32), row[0], evidence, counter)
        for row, evidence, counter in zip(rows, spans[::2], spans[1::2], strict=True)
    ]
    return collate(samples, [row[3] for row in rows])


def _forward(batch, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(batch.tokens, 8, generator=generator).to(dtype).requires_grad_()
    inputs = batch.inputs()
    return ForwardPass(
        inputs, hidden_ND, None, None, SimpleNamespace(), None, batch.class_index_S, ClassLoss("single"), None
    )


def _plain(forward, rows, temperature):
    states = forward.hidden_ND.detach().double().numpy().reshape(len(rows), 10, -1)

    def mean(row, spans):
        return np.concatenate([states[row, start:stop] for start, stop in spans]).mean(0) if spans else None

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    total = 0.0
    for r, (label, evidence, counter, group) in enumerate(rows):
        if not evidence:
            continue
        negatives = [mean(r, counter)] if counter else []
        negatives += [
            mean(o, other[1])
            for o, other in enumerate(rows)
            if o != r and other[3] == group and other[1] and (label < 0 or other[0] != label)
        ]
        scores = np.array([cosine(states[r, -1], n) for n in [mean(r, evidence), *negatives]]) / temperature
        total += np.logaddexp.reduce(scores) - scores[0]
    return total


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_contrast_equals_the_formula(temperature):
    batch = _batch()
    forward, term = _forward(batch), ContrastSettings(temperature=temperature).term()
    total = term.sum(forward)
    assert term.count(batch) == 6
    assert float(total.detach()) == pytest.approx(_plain(forward, ROWS, temperature), rel=1e-5)
    total.backward()
    assert torch.isfinite(forward.hidden_ND.grad).all()
    alone = forward.hidden_ND.grad.view(len(ROWS), 10, 8)[4]
    assert not alone.any()


def test_a_step_against_the_gradient_brings_evidence_nearer_and_the_rest_away():
    batch = _batch()
    forward, term = _forward(batch), ContrastSettings().term()

    def similarity(spans):
        states, _ = forward.mean_states(spans)
        return torch.cosine_similarity(forward.hidden_ND[batch.class_index_S], states, dim=1)[[0, 2]]

    near, far = similarity("evidence").detach(), similarity("counter").detach()
    term.sum(forward).backward()
    with torch.no_grad():
        forward.hidden_ND.sub_(0.05 * forward.hidden_ND.grad)
    assert (similarity("evidence") > near).all() and (similarity("counter") < far).all()


def test_gradients_equal_finite_differences():
    batch = _batch()
    term = ContrastSettings(temperature=0.5).term()
    forward = _forward(batch)
    term.sum(forward).backward()
    rng = np.random.default_rng(0)
    for _ in range(5):
        direction = torch.from_numpy(rng.normal(size=forward.hidden_ND.shape)).float()
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                forward.hidden_ND.add_(sign * 1e-3 * direction)
                ends.append(_plain(forward, ROWS, 0.5))
                forward.hidden_ND.sub_(sign * 1e-3 * direction)
        slope = (ends[0] - ends[1]) / 2e-3
        assert float((forward.hidden_ND.grad * direction).sum()) == pytest.approx(slope, rel=1e-2, abs=1e-2)


def test_the_sum_over_groups_does_not_depend_on_how_they_are_packed():
    term = ContrastSettings().term()
    whole = _batch()
    states = _forward(whole).hidden_ND.detach()
    found = []
    for groups in ([[0, 1, 2]], [[0], [2, 1]]):
        total = 0.0
        for of in groups:
            rows = [n for g in of for n, row in enumerate(ROWS) if row[3] == g]
            forward = _forward(_batch([ROWS[n] for n in rows]))
            with torch.no_grad():
                forward.hidden_ND.copy_(states.view(len(ROWS), 10, 8)[rows].flatten(0, 1))
            total += float(term.sum(forward).detach())
        found.append(total)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_rejected_explanation_is_a_negative_of_its_row():
    """Where the preference term brings it: the mean state of its tokens, and nothing of general texts."""
    ids, text = np.arange(10, dtype=np.int32), np.arange(4, dtype=np.int32)
    spans = np.array([[1, 3]], dtype=np.int32)
    samples = [Sample(ids, ids[:0], 0, spans, rejected=ids[:5]), Sample(ids, ids[:0], 0, spans)]
    batch = collate(samples, [0, 0], replayed=[text])
    forward = _forward(batch)
    states = forward.hidden_ND.detach().double()
    anchor, evidence, rejected = states[9], states[1:3].mean(0), states[30:35].mean(0)
    scores = torch.stack([torch.cosine_similarity(anchor, x, dim=0) for x in (evidence, rejected)]) / 0.5
    total = ContrastSettings(temperature=0.5).term().sum(forward)
    assert float(total.detach()) == pytest.approx(float(scores.logsumexp(0) - scores[0]), rel=1e-5)  # the other row: 0
    total.backward()
    assert forward.hidden_ND.grad[30:35].any() and not forward.hidden_ND.grad[[*range(20, 30), *range(35, 39)]].any()


def test_soft_labels_and_rows_without_evidence():
    certain, shared = np.array([1, 0], dtype=np.float32), np.array([0.5, 0.5], dtype=np.float32)
    term = ContrastSettings().term()
    for label, expected in ((certain, 0.0), (shared, None)):
        rows = [(label, [[0, 2]], [], 0), (label, [[3, 4]], [], 0)]
        total = float(term.sum(_forward(_batch(rows))).detach())
        assert total == 0 if expected == 0.0 else total > 0
    dummy = dummy_batch(2)
    assert term.count(dummy) == 0 and float(term.sum(_forward(dummy)).detach()) == 0


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("ranks", [1, 3])
def test_groups_stay_together(ranks, padded):
    length = np.random.default_rng(0).integers(5, 60, 37)
    bins = pack_groups(length, group=4, budget=300, ranks=ranks, padded=padded)
    rows = [row for step in bins for of in step for row in of]
    assert sorted(rows) == list(range(37))
    for of in (of for step in bins for of in step):
        assert {row // 4 for row in of} == {g for g in range(10) if set(range(4 * g, min(4 * g + 4, 37))) <= set(of)}
        assert (len(of) * length[of].max() if padded and len(of) else length[of].sum()) <= 300
    assert len({len(step) for step in bins}) == 1
    with pytest.raises(ValueError, match="more than the budget"):
        pack_groups(length, group=4, budget=60, ranks=ranks, padded=padded)
