"""The preference term: DPO's and KTO's losses equal TRL's; log-ratios equal plain transformers."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from clsgen_dist.config import parse_settings
from clsgen_dist.data.pack import Sample, collate, dummy_batch
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.adapters import adapters_off
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.objectives.preference import PreferenceSettings, dpo_loss, kto_loss


def _trainer(**options):
    """A trainer of TRL's, as far as its loss looks at it."""
    trainer = MagicMock(beta=0.1, aux_loss_enabled=False, precompute_ref_logps=True, _tp_size=1, **options)
    trainer.accelerator.device = "cpu"
    trainer.accelerator.gather_for_metrics = lambda value: value
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer._total_train_tokens = 0
    return trainer


def _outputs(log_probs):
    zeros = torch.zeros_like(log_probs)
    return lambda **_: SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


@pytest.fixture
def numbers():
    """Log-probabilities of the tokens of eight completions, their mask, and the reference's sums."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(8, 12, dtype=torch.int64)
    mask[:, 4:] = 1
    log_probs = -torch.rand(8, 11, generator=generator, dtype=torch.float64) * 6 * mask[:, 1:]
    reference = -torch.rand(8, generator=generator, dtype=torch.float64) * 48
    ids = torch.ones(8, 12, dtype=torch.int64)
    return log_probs.requires_grad_(), reference, {"input_ids": ids, "attention_mask": ids, "completion_mask": mask}


def test_dpo_equals_trl(numbers):
    from trl import DPOTrainer

    log_probs, reference, inputs = numbers
    inputs |= {"ref_chosen_logps": reference[:4], "ref_rejected_logps": reference[4:]}
    trainer = _trainer(
        ld_alpha=None, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0], use_weighting=False
    )
    expected = DPOTrainer._compute_loss(trainer, _outputs(log_probs), inputs, return_outputs=False)
    (gradient,) = torch.autograd.grad(expected, log_probs)
    ratio = log_probs.sum(dim=1) - reference
    found = dpo_loss(ratio[:4] - ratio[4:], 0.1).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, log_probs)[0], gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize("moved", [-3.0, 0.7])
def test_kto_equals_trl(numbers, moved):
    from trl import KTOTrainer

    log_probs, reference, inputs = numbers
    accepted = torch.tensor([True, True, False, True, False, False, True, False])
    inputs |= {"label": accepted, "ref_logps": reference, "ref_KL_logps": torch.zeros(8, dtype=torch.float64)}
    trainer = _trainer(loss_type="kto", calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.3)
    trainer._compute_kl_logps = lambda *_: torch.full((8,), moved, dtype=torch.float64)
    expected = KTOTrainer._compute_loss(trainer, _outputs(log_probs), inputs, return_outputs=False)
    (gradient,) = torch.autograd.grad(expected, log_probs)
    loss = kto_loss(log_probs.sum(dim=1) - reference, accepted, max(moved, 0.0), 0.1)
    found = torch.where(accepted, loss, 1.3 * loss).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, log_probs)[0], gradient, rtol=1e-12, atol=0)


# own explanation, rejected, another row's
LENGTHS = [(4, 5, 3), (3, 0, 4), (0, 6, 0), (2, 2, 2)]


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(3, 99, n).astype(np.int32)

    return [
        Sample(draw(7), draw(own), 1, rejected=draw(rejected), mismatched=draw(mismatched))
        for own, rejected, mismatched in LENGTHS
    ]


def _log_prob(lm, prompt, answer):
    """Of one answer, by plain transformers."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))
    log_p = lm(ids[None]).logits[0].double().log_softmax(dim=1)
    return log_p[torch.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]].sum()


def _ratio(model, prompt, answer):
    lm = model.lm
    with torch.no_grad(), adapters_off(lm):
        before = _log_prob(lm, prompt, answer)
    return _log_prob(lm, prompt, answer) - before


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_the_terms_sum_equals_that_of_plain_transformers(loss, layout, model, samples):
    settings = PreferenceSettings(loss=loss, beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)
    term = settings.term()
    model.loss_spec, model.layout, model.reference_point = LossSpec("torch", terms=(term,)), layout, 0.4
    model.train().zero_grad()
    batch = collate(samples)
    output = model(**batch.inputs())
    (total,) = output.term_sums
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.lm.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected, count = torch.zeros((), dtype=torch.float64), 0
    for s in samples:
        own, rejected = (_ratio(model, s.prompt, a) if len(a) else None for a in (s.explanation, s.rejected))
        if loss == "dpo" and own is not None and rejected is not None:
            expected, count = expected + torch.log1p(torch.exp(-0.3 * (own - rejected))), count + 1
        if loss == "kto":
            if own is not None:
                expected, count = expected + 1.2 * (1 - torch.sigmoid(0.3 * (own - 0.4))), count + 1
            if rejected is not None:
                expected, count = expected + 0.7 * (1 - torch.sigmoid(0.3 * (0.4 - rejected))), count + 1
    assert term.count(batch) == count == (2 if loss == "dpo" else 6)
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        plain = model.lm.get_parameter(name).grad
        torch.testing.assert_close(gradient, plain, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        mismatched = [_ratio(model, s.prompt, s.mismatched) for s in samples if len(s.mismatched)]
    moved, number = output.mismatched_sums.tolist()
    assert (moved, number) == (pytest.approx(float(sum(mismatched)), rel=1e-4, abs=1e-4), 3)


def test_margins_are_reported_outside_training(model, samples):
    model.loss_spec, model.layout = LossSpec("torch", terms=(PreferenceSettings().term(),)), "packed"
    with torch.no_grad():
        margin = model.eval()(**collate(samples).inputs()).preference_margin
        pairs = [
            _ratio(model, s.prompt, s.explanation) - _ratio(model, s.prompt, s.rejected)
            for s in (samples[0], samples[3])
        ]
    assert margin[torch.isfinite(margin)].tolist() == pytest.approx([float(p) for p in pairs], abs=1e-4)


def test_a_dummy_batch_counts_for_nothing_and_runs_the_reference(model):
    for loss in ("dpo", "kto"):
        term = PreferenceSettings(loss=loss).term()
        model.loss_spec, model.layout = LossSpec("torch", terms=(term,)), "packed"
        (total,) = model.train()(**dummy_batch(2).inputs()).term_sums
        assert term.count(dummy_batch(2)) == 0 and float(total.detach()) == 0


def test_adapters_are_on_again_after_an_error(model):
    scales = [dict(m.scaling) for m in model.modules() if hasattr(m, "scaling") and isinstance(m.scaling, dict)]
    with pytest.raises(RuntimeError, match="stop"), adapters_off(model.lm):
        raise RuntimeError("stop")
    assert scales and scales == [
        dict(m.scaling) for m in model.modules() if hasattr(m, "scaling") and isinstance(m.scaling, dict)
    ]


def test_the_reference_runs_before_the_pass_that_is_trained(model, monkeypatch):
    """After a later pass without gradients ZeRO-3 would release no weights in the backward pass."""
    passes = []
    run = type(model).hidden_states
    monkeypatch.setattr(
        type(model), "hidden_states", lambda *a, **k: passes.append(torch.is_grad_enabled()) or run(*a, **k)
    )
    model.train()(**dummy_batch(1).inputs())
    assert passes == [False, True]


def test_full_finetuning_has_no_reference():
    argv = ["--objectives.preference.weight=1", "--model.finetune=full"]
    with pytest.raises(SettingsError, match=r"set the reference to start"):
        parse_settings(argv, default_config="configs/demo.yaml")
