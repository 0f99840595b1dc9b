"""Periodic evaluation on the dev rows, through the same engine forward as training.

Cost: one forward pass over the dev rows, shared by the ranks, and one gather of at most ``rows x 3 C`` numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clsgen_dist.data.loader import evaluation_batches
from clsgen_dist.data.pack import Batch, Sample, collate, dummy_batch, pack
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.replay import ReplayTexts
from clsgen_dist.engine.world import World
from clsgen_dist.errors import SettingsError
from clsgen_dist.evaluation.metrics import HIGHER_IS_BETTER, METRICS, class_metrics, decide, is_labelled
from clsgen_dist.model.label_space import Kind, LabelSpace
from clsgen_dist.objectives.normalization import mean
from clsgen_dist.objectives.term import Term
from clsgen_dist.resilience.watchdog import Watchdog

if TYPE_CHECKING:
    from clsgen_dist.track.reliability import Reliability

# N dev rows, C classes


@dataclass(frozen=True)
class DevResult:
    """What an evaluation found, the same on every rank."""

    logits_NK: np.ndarray
    """Class logits where the model decides; before the explanation, where it decides before and after."""
    after_NK: np.ndarray | None
    """Class logits after the rows' own explanations, where the model decides before and after."""
    labels: np.ndarray
    """As :attr:`RowDataset.labels`."""
    losses: dict[str, float]
    """Mean of each term, nats."""
    names_NC: np.ndarray | None = None
    """The LM's logits of the classes' names where explanations begin; None where most of the rows' own do not."""
    evidence_mass: float | None = None
    """Share of the decision's attention on evidence, mean of the rows that have any; None if no term reads it."""
    preferred: float | None = None
    """Share of pairs whose chosen explanation the model prefers more than its reference does; None without any."""


def evaluate(
    engine: Any,
    rows: RowDataset,
    world: World,
    terms: Sequence[Term],
    *,
    budget: int,
    padded: bool = False,
    watchdog: Watchdog,
) -> DevResult:
    """Score the dev rows; collective.

    Args:
        engine: the ZeRO-3 engine; left in training mode.
        rows: the dev rows.
        world: this rank among the others.
        budget: tokens of a batch, padding included where rows are padded.
        padded: pad the rows of a batch instead of packing them.
        watchdog: gets a beat after each batch.
    """
    engine.eval()
    found: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    sums, counts, named, extras = np.zeros(len(terms)), np.zeros(len(terms)), np.zeros(2), np.zeros(4)
    spec = engine.module.loss_spec
    # Read after its own explanation, the head knows what that names: there is nothing to compare.
    tokens = torch.tensor((spec.decide != "after" and spec.name_tokens) or (), dtype=torch.int64)
    with torch.no_grad():
        for indices, batch in evaluation_batches(
            rows, rank=world.rank, world_size=world.size, budget=budget, padded=padded
        ):
            output = engine(**batch.inputs(world.device))
            # Dummy batches have no index.
            both = [output.class_logits, output.after_logits] if len(output.after_logits) else [output.class_logits]
            logits_SRK = torch.stack(both, dim=1).cpu().numpy()
            names = output.name_logits.cpu().numpy() if len(tokens) else itertools.repeat(None)
            found += zip(indices.tolist(), logits_SRK, names, strict=False)
            named += _begin_with_a_name(batch, tokens)
            mass_S, margin_S = output.evidence_mass, output.preference_margin
            looked_at = [float(mass_S.nansum()), int(mass_S.isfinite().sum())]
            extras += [*looked_at, int((margin_S > 0).sum()), int(margin_S.isfinite().sum())]
            sums += [total.item() for total in output.term_sums]
            counts += [term.count(batch) for term in terms]
            watchdog.beat()
    engine.train()
    everything = sorted((item for part in world.gather(found) for item in part), key=lambda item: item[0])
    logits_NRK = np.stack([logits for _, logits, _ in everything])  # R readings
    *totals, begun, explained, looked, evident, preferred, pairs = world.sum(*sums, *counts, *named, *extras)
    means = map(_mean, totals[: len(terms)], totals[len(terms) :])
    after_NK = logits_NRK[:, 1] if logits_NRK.shape[1] > 1 else None
    losses = dict(zip((term.name for term in terms), means, strict=True))
    names_NC = np.stack([names for _, _, names in everything]) if begun and 2 * begun >= explained else None
    mass = _mean(looked, evident) if evident else None
    return DevResult(
        logits_NRK[:, 0], after_NK, rows.labels, losses, names_NC, mass, preferred / pairs if pairs else None
    )


@contextlib.contextmanager
def without_terms(engine: Any) -> Iterator[None]:
    """Inside, the engine evaluates both heads alone, without gradients; after it, it trains."""
    spec = engine.module.loss_spec
    engine.eval()
    engine.module.loss_spec = dataclasses.replace(spec, terms=())
    try:
        with torch.no_grad():
            yield
    finally:
        engine.module.loss_spec = spec
        engine.train()


def perplexity(
    engine: Any, texts: ReplayTexts, world: World, *, budget: int, padded: bool = False, watchdog: Watchdog
) -> float:
    """Of general texts: the exponential of the mean negative log-likelihood of a token; collective."""
    found = np.zeros(2)
    with without_terms(engine):
        for ranks in pack(texts.lengths(np.arange(len(texts))), budget=budget, ranks=world.size, padded=padded):
            tokens = [texts.tokens(int(text)) for text in ranks[world.rank]]
            batch = collate([Sample(t[:1], t[1:], -1) for t in tokens]) if tokens else dummy_batch(0)
            output = engine(**batch.inputs(world.device))
            found += [float(output.generation_loss.sum()), batch.supervised]
            watchdog.beat()
    total, count = world.sum(*found)
    return float(np.exp(total / count))


def _begin_with_a_name(batch: Batch, tokens: Tensor) -> tuple[int, int]:
    """Explanations whose first token is a class's, and all."""
    first_n = torch.isin(batch.supervised_index_n, batch.class_index_S)
    return int(torch.isin(batch.target_n[first_n], tokens).sum()), int(batch.is_explained.sum())


def _mean(total: float, count: float) -> float:
    """A global mean; NaN where nothing was counted, infinite where the sum is no number."""
    return mean(total if np.isfinite(total) else np.inf, count)


def reliability(found: DevResult, space: LabelSpace) -> Reliability | None:
    """The reliability diagram of the label space's pooled question on the labelled rows.

    None without any, or if logits are not finite.
    """
    from clsgen_dist.evaluation.questions import pooled_question
    from clsgen_dist.evaluation.reliability import bin_rows
    from clsgen_dist.track.reliability import Reliability

    labelled = is_labelled(found.labels)
    if not labelled.any():
        return None
    logits_NK, labels = found.logits_NK[labelled], found.labels[labelled]
    if not np.isfinite(logits_NK).all():
        return None
    question = pooled_question(space.probabilities(logits_NK), labels, space.kind, space.positive_index)
    bins = bin_rows(question.probability_M, question.outcome_M)
    return Reliability(bins.mean_B, bins.frequency_B, bins.count_B)


def metric_fault(rows: RowDataset, metric: str, kind: Kind) -> str | None:
    """Why the dev rows cannot say which checkpoint is the best; None if they can.

    SettingsError if the label space has no such metric.
    """
    if metric == "loss":
        return None
    if metric not in (*METRICS[kind], "nll"):
        known = ", ".join((*METRICS[kind], "nll", "loss"))
        raise SettingsError(f"train.best_metric is {metric}, expected one of {known} for {kind} labels")
    classes = len(np.unique(rows.label_N[rows.label_N >= 0]))
    needed = 2 if metric in ("auroc", "auroc_micro") else 1
    if classes >= needed:
        return None
    return (
        f"train.best_metric is {metric}, but the labelled dev rows {rows.name} are of {classes} classes, expected "
        f"{needed} or more; add rows, or set train.best_metric to loss"
    )


def dev_metrics(found: DevResult, space: LabelSpace, weights: Mapping[str, float]) -> dict[str, float]:
    """The metrics of the label space at even odds on the labelled rows, and the losses by term.

    ``after/NAME`` are those of the reading after the rows' own explanations, which may name the label. ``stated/NAME``
    compare the head with the class whose name the LM would most likely begin with: agreement, κ, and AUROC of the
    head's probability with that class as the truth. ``evidence/attention`` is the share of the decision's attention on
    evidence; ``preference/accuracy`` of pairs, the share that the model tells apart better than its reference.

    A NaN loss means no rows to measure it on; an infinite one was not finite on some row.
    """
    metrics = {f"loss/{name}": loss for name, loss in found.losses.items()}
    metrics["loss"] = float(np.nansum([weights[name] * loss for name, loss in found.losses.items()]))
    metrics |= _class_metrics(found.logits_NK, found.labels, space)
    if found.after_NK is not None:
        after = _class_metrics(found.after_NK, found.labels, space)
        metrics |= {f"after/{name}": value for name, value in after.items()}
    if found.evidence_mass is not None:
        metrics["evidence/attention"] = found.evidence_mass
    if found.preferred is not None:
        metrics["preference/accuracy"] = found.preferred
    if found.names_NC is not None and space.kind != "multilabel":
        metrics |= _stated_metrics(found.logits_NK, found.names_NC, space)
    return metrics


def _stated_metrics(logits_NK: np.ndarray, names_NC: np.ndarray, space: LabelSpace) -> dict[str, float]:
    from clsgen_dist.explanations.stated_class import cohen_kappa

    if not (np.isfinite(logits_NK).all() and np.isfinite(names_NC).all()):
        return dict.fromkeys(("stated/agreement", "stated/kappa", "stated/auroc"), float("nan"))
    p_NC, stated_N = space.probabilities(logits_NK), names_NC.argmax(axis=1)
    decided_N = decide(p_NC, space.kind, space.positive_index)
    ranked = class_metrics(p_NC, stated_N, space.kind, space.positive_index, names=("auroc",))
    return {
        "stated/agreement": float((stated_N == decided_N).mean()),
        "stated/kappa": cohen_kappa(stated_N, decided_N, len(space), quadratic=space.kind == "ordinal"),
        "stated/auroc": ranked["auroc"],
    }


def _class_metrics(logits_NK: np.ndarray, labels: np.ndarray, space: LabelSpace) -> dict[str, float]:
    labelled = is_labelled(labels)
    logits_NK, labels = logits_NK[labelled], labels[labelled]
    if not len(labels):
        return {}
    if not np.isfinite(logits_NK).all():
        return dict.fromkeys(METRICS[space.kind], float("nan"))
    return class_metrics(
        space.probabilities(logits_NK), labels, space.kind, space.positive_index, names=METRICS[space.kind]
    )


def metric_name(best_metric: str) -> str:
    """How :func:`dev_metrics` calls what ``train.best_metric`` names: the NLL is the classification loss."""
    return "loss/classification" if best_metric == "nll" else best_metric


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether ``value`` beats ``best``; what is not finite never does."""
    if not np.isfinite(value):
        return False
    return best is None or (value > best if metric in HIGHER_IS_BETTER else value < best)
