"""Where the classification head starts: at a trained model's own head, at the LM head's rows, or at zero."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from clsgen_dist.config import Settings
from clsgen_dist.data.prompt import RenderedPrompt
from clsgen_dist.hf_export.artifact import META_FILE, ModelCard, read_head
from clsgen_dist.io.text import quoted
from clsgen_dist.model.classification_head import ClassLoss, HeadSpec
from clsgen_dist.model.label_space import LabelSpace

logger = logging.getLogger(__name__)


def head_start(
    settings: Settings,
    backbone: Path,
    labels: LabelSpace,
    loss: ClassLoss,
    name_tokens: Sequence[int] | None,
    prior: Sequence[float] | None,
) -> HeadSpec:
    """The head as ``model.head_init`` asks for it.

    Args:
        settings: of the run.
        backbone: its folder.
        labels: the label space.
        loss: of the head; what it adds to the bias outside training is taken off an exported head's, whose logits so
            stay what they were.
        name_tokens: the first token of each class's name; None: two classes share one.
        prior: probability of each class by which a new head's bias starts; None: equal.

    Raises:
        ModelError: the backbone is an export whose head is missing or damaged.
    """
    model = settings.model
    trained = _exported_head(settings, backbone, labels) if model.head_init == "auto" else None
    if trained and loss.bias_correction:
        weight_KD, bias_K = trained
        trained = weight_KD, bias_K - bias_K.new_tensor(loss.bias_correction)
    tokens = None if model.head_init == "zeros" else name_tokens
    return HeadSpec(len(labels), labels.kind, model.head_dropout, tokens, prior, trained)


def _exported_head(settings: Settings, backbone: Path, labels: LabelSpace) -> tuple[Tensor, Tensor] | None:
    """Weight ``[K, D]`` and bias ``[K]`` of an exported backbone; None if it has none that fits the run."""
    if not (backbone / META_FILE).is_file():
        return None
    card = ModelCard.read(backbone)
    if reason := _misfit(card, labels, settings.model.decide):
        logger.warning("the head starts anew, as %s has one that %s", backbone, reason)
        return None
    if card.prompt:
        for change in RenderedPrompt.from_json(card.prompt).changes(**vars(settings.prompt)):
            logger.warning("the head of %s was trained with another prompt: %s", backbone, change)
    logger.info("the head starts from that of %s", backbone)
    return read_head(backbone, card)


def _misfit(card: ModelCard, labels: LabelSpace, decide: str) -> str | None:
    """Why a run cannot go on with an exported head."""
    if card.label_space != labels.kind:
        return f"is {card.label_space}, and these labels are {labels.kind}"
    if card.labels != list(labels.names):
        return f"tells {', '.join(map(quoted, card.labels[:8]))}, not {', '.join(map(quoted, labels.names[:8]))}"
    if {card.decide, decide} == {"before", "after"}:
        return f"is read {card.decide} the explanation"
    return None
