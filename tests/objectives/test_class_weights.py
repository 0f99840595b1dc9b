"""Options of the losses from the settings: class weights undone, priors, and what cannot be undone is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from clsgen_dist.errors import SettingsError
from clsgen_dist.model.classification_head import HeadSpec, head_affine
from clsgen_dist.model.label_space import LabelSpace, class_probabilities
from clsgen_dist.objectives.class_weights import distortions, head_prior
from clsgen_dist.objectives.classification import ClassificationSettings
from clsgen_dist.objectives.settings import ObjectivesSettings
from clsgen_dist.training.build_engine import loss_spec

SINGLE = LabelSpace.of(["a", "b", "c"])
ROWS = [700.0, 200.0, 100.0]


def _settings(**classification):
    return ObjectivesSettings(classification=ClassificationSettings(**classification))


def _fitted(spec, samples_C):
    """The bias that minimises the training loss for rows drawn with these counts, plus the correction."""
    weight = np.asarray(spec.classification.class_weight or (1.0, 1.0, 1.0))
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=200, line_search_fn="strong_wolfe")
    weighted = torch.tensor(samples_C * weight)

    def loss():
        optimizer.zero_grad()
        value = -(weighted * bias.log_softmax(0)).sum() / weighted.sum()
        value.backward()
        return value

    optimizer.step(loss)
    return softmax(bias.detach().numpy() + np.asarray(spec.classification.bias_correction))


@pytest.mark.parametrize("weights", ["balanced", {"c": 5.0}])
def test_class_weights_are_undone_exactly(weights):
    spec = loss_spec(_settings(class_weights=weights), SINGLE, ROWS)
    np.testing.assert_allclose(_fitted(spec, np.array(ROWS)), np.array(ROWS) / 1000, atol=1e-4)


def test_balanced_sampling_is_undone_exactly_with_weights_too():
    spec = loss_spec(_settings(class_weights={"c": 5.0}), SINGLE, ROWS, balanced=True)
    np.testing.assert_allclose(_fitted(spec, np.array([100.0, 100.0, 100.0])), np.array(ROWS) / 1000, atol=1e-4)


def test_balanced_weights_have_equal_sums_over_the_classes():
    weights = np.array(loss_spec(_settings(class_weights="balanced"), SINGLE, ROWS).classification.class_weight)
    np.testing.assert_allclose(weights * ROWS, 1000 / 3)


def test_without_weights_nothing_is_corrected():
    assert loss_spec(_settings(), SINGLE, ROWS).classification.bias_correction is None
    several = LabelSpace.of(["a", "b", "c"], kind="multilabel")
    assert loss_spec(_settings(class_weights="balanced"), several, ROWS).classification.bias_correction is None


@pytest.mark.parametrize("kind", ["single", "multilabel", "ordinal"])
def test_logit_adjustment_starts_the_head_at_the_training_shares(kind):
    labels = LabelSpace.of(["a", "b", "c"], kind=kind)
    prior = head_prior(_settings(logit_adjustment=1.0), labels, ROWS, [1000.0] * 3)
    spec = HeadSpec(3, kind, prior=prior)
    _, bias = head_affine(spec.initial_weight(None, 8), spec.initial_bias(), kind)
    found = class_probabilities(bias[None].numpy(), kind)[0]
    np.testing.assert_allclose(found, np.array(ROWS) / 1000, atol=2e-3)
    assert head_prior(_settings(), labels, ROWS, None) is None


def test_an_ordinal_head_starts_with_equal_classes():
    spec = HeadSpec(4, "ordinal")
    _, bias = head_affine(spec.initial_weight(None, 8), spec.initial_bias(), "ordinal")
    np.testing.assert_allclose(class_probabilities(bias[None].numpy(), "ordinal")[0], 0.25, atol=1e-6)


def test_what_cannot_be_undone_is_named():
    settings = _settings(focal_gamma=2.0, label_smoothing=0.1, class_weights="balanced")
    names = ["objectives.classification.focal_gamma", "objectives.classification.label_smoothing"]
    assert distortions(settings, "single", balanced=True) == names
    assert distortions(settings, "ordinal", balanced=True) == [*names, "data.sampling"]
    assert distortions(_settings(), "multilabel", balanced=False) == []


@pytest.mark.parametrize(
    ("settings", "kind", "rows", "message"),
    [
        ({"class_weights": {"d": 2.0}}, "single", ROWS, "names 'd', expected names of"),
        ({"class_weights": "balanced"}, "ordinal", ROWS, "with ordinal labels"),
        ({"class_weights": "balanced"}, "single", None, "are streamed; give class_weights by name"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings, kind, rows, message):
    with pytest.raises(SettingsError, match=message):
        loss_spec(_settings(**settings), LabelSpace.of(["a", "b", "c"], kind=kind), rows)


def test_classes_without_rows_get_weight_1_and_rare_sets_are_capped():
    several = LabelSpace.of(["a", "b", "c"], kind="multilabel")
    weights = loss_spec(_settings(class_weights="balanced"), several, [5000.0, 1.0, 0.0]).classification.class_weight
    assert weights == (pytest.approx(5001 / 3 / 5000), 10.0, 1.0)


@pytest.mark.parametrize("counts", [[5.0, 5.0, 1e4, 1e4, 1e4], [0.0, 0.0, 3e6, 3e6]])
def test_an_ordinal_head_starts_finite_whatever_the_shares(counts):
    labels = LabelSpace.of([str(n) for n in range(len(counts))], kind="ordinal")
    prior = head_prior(_settings(logit_adjustment=2.0), labels, counts, None)
    bias = HeadSpec(len(counts), "ordinal", prior=prior).initial_bias()
    assert torch.isfinite(bias).all()
    _, cuts = head_affine(torch.zeros(1, 4), bias, "ordinal")
    assert (cuts.diff() < 0).all()


def test_the_prior_of_a_class_counts_the_rows_in_which_it_is_known():
    several = LabelSpace.of(["a", "b"], kind="multilabel")
    prior = head_prior(_settings(logit_adjustment=1.0), several, [50.0, 10.0], [100.0, 10_000.0])
    assert prior == pytest.approx([0.5, 0.0011], abs=1e-3)


def test_names_of_class_weights_are_read_like_labels():
    assert _settings(class_weights={1.0: 2.0, " odd ": 1.0}).classification.class_weights == {"1": 2.0, "odd": 1.0}


def test_the_budget_for_stored_logits_reaches_the_loss():
    settings = _settings()
    assert loss_spec(settings, SINGLE, ROWS).store_bytes == 2**32
    settings.stored_logits_gib = 0.0
    assert loss_spec(settings, SINGLE, ROWS).store_bytes == 0
