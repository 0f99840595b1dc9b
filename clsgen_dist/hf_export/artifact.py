"""The exported folder: an ordinary causal-LM folder, plus the classification head and its metadata.

config.json, model*.safetensors, tokenizer…   opens in transformers, vLLM and converters unchanged; or
adapter_config.json, adapter_model.safetensors   LoRA adapters that are not merged, in peft's format
classification_head/weights.safetensors       weight [K, D], bias [K]; fp32
clsgen.json                                   label space, prompt, calibration, thresholds, fingerprints
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.prompt import saved_prompt
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import ModelError
from clsgen_dist.io.files import atomic_write
from clsgen_dist.model.label_space import Kind, LabelSpace

HEAD_FILE = "classification_head/weights.safetensors"
"""In its own folder, since some engines load every ``*.safetensors`` next to the model as backbone weights."""
_OLDER_HEAD_FILE = "classification_head.safetensors"
META_FILE = "clsgen.json"
_BELOW_CAP = 1 - 2**-9
"""Largest share of a soft cap that is inverted."""
FORMAT = 7
_READABLE_FORMATS = (1, 2, 3, 4, 5, 6, 7)
"""Format 1 has no ``prompt``; 1 and 2 are of single labels, with one ``threshold``; 1 to 3 know affine maps alone; 1 to
4 are not folded; 1 to 5 have neither adapters nor ``decoding``; 1 to 6 are not folded with a soft cap."""


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Where the head is in the LM head, see :mod:`clsgen_dist.hf_export.fold`."""

    rows: list[int]
    """Token of each logit."""
    reference: int
    """Token whose row is zero."""
    largest_difference: float
    """Of a class logit of a text, from the head's in fp32: what rounding to the LM's dtype does."""
    softcap: float | None = None
    """The LM's soft cap, which its log-probabilities have and the class logits do not."""

    @property
    def all_rows(self) -> list[int]:
        """Tokens to ask log-probabilities of, and never to write."""
        return [*self.rows, self.reference]

    def logits(self, log_probs: Mapping[int, float], bias_K: Tensor) -> Tensor:
        """``[K]`` class logits, fp32; ``log_probs``: at the prompt's last token, by token."""
        logits_K = bias_K.new_tensor([log_probs[row] - log_probs[self.reference] for row in self.rows])
        if self.softcap is not None:
            # 16-bit logits may round to the cap itself, whose inverse is infinite.
            capped_K = (logits_K / self.softcap).clamp(-_BELOW_CAP, _BELOW_CAP)
            logits_K = self.softcap * torch.atanh(capped_K)
        return logits_K + bias_K


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Content of ``clsgen.json``."""

    labels: list[str]
    """Class names; ordinal: from low to high."""
    label_space: Kind = "single"
    positive_label: str
    """Binary: the class whose probability is reported."""
    system: str | None
    question: str
    max_prompt_length: int
    max_explanation_length: int
    head_sha256: str
    trained: dict[str, Any]
    """Provenance of the weights: backbone, checkpoint step, fine-tuning."""
    calibration: dict[str, Any] | None = None
    """The calibration fitted on held-out rows, see :mod:`clsgen_dist.calibration.methods`; None: uncalibrated."""
    thresholds: list[float] | None = None
    """Calibrated probability from which a class is predicted; None: 0.5.

    Binary: of the positive class. Multi-label: of each class. Ordinal and more than two single classes have none.
    """
    decide: str = "before"
    """Where the head is read: ``before`` the explanation, ``after`` it, or ``both``."""
    calibration_after: dict[str, Any] | None = None
    """The calibration of the reading after the explanation, where there are both."""
    thresholds_after: list[float] | None = None
    """Its thresholds."""
    calibration_choice: dict[str, Any] | None = None
    """How the methods compared, see :class:`clsgen_dist.calibration.comparison.Comparison`."""
    calibration_choice_after: dict[str, Any] | None = None
    """The same for the reading after the explanation."""
    decisions: dict[str, Any] | None = None
    """How thresholds, sets, handing over and intervals were fitted.

    See :class:`clsgen_dist.calibration.decisions.Decisions`.
    """
    decisions_after: dict[str, Any] | None = None
    """The same for the reading after the explanation."""
    calibrated_on: dict[str, Any] | None = None
    """Source and number of the rows on which calibration and thresholds were fitted."""
    distorted_by: list[str] = field(default_factory=list)
    """Training settings that distort the probabilities until the model is calibrated."""
    prompt: dict[str, Any] | None = None
    """The prompt as rendered for training, see :class:`clsgen_dist.data.prompt.RenderedPrompt`."""
    folded: Folded | None = None
    """Where the head is in the LM head; None: it is not."""
    decoding: dict[str, Any] | None = None
    """How explanations are written unless told otherwise, :class:`DecodingSettings`; None: greedily."""
    base_fingerprint: str | None = None
    """Of the weights that the folder's LoRA adapters are for (:mod:`clsgen_dist.hf_export.adapters`); None: the folder
    has all weights."""
    format_version: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write ``clsgen.json`` atomically."""
        atomic_write(folder / META_FILE, json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ModelCard:
        """The card of an exported folder; ModelError if the folder is not an export."""
        try:
            fields = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(
                f"{folder} has no {META_FILE}, so it is not an exported dual-head model; create one with: "
                "clsgen export --checkpoint RUN --output DIR"
            ) from None
        except json.JSONDecodeError as error:
            raise ModelError(f"{folder / META_FILE} is not valid JSON ({error}); export the model again") from None
        if fields.get("format_version") not in _READABLE_FORMATS:
            raise ModelError(
                f"{folder / META_FILE} has format_version {fields.get('format_version')!r}, this version reads formats "
                f"{' and '.join(map(str, _READABLE_FORMATS))}; use a later version of clsgen_dist"
            )
        if fields["format_version"] < 3:
            threshold = fields.pop("threshold", None)
            fields["thresholds"] = None if threshold is None else [threshold]
        folded = fields.pop("folded", None)
        return cls(**{**fields, "folded": folded and Folded(**folded), "format_version": FORMAT})

    @property
    def decoding_settings(self) -> DecodingSettings:
        """How explanations are written unless told otherwise."""
        return DecodingSettings(**(self.decoding or {}))

    @property
    def space(self) -> LabelSpace:
        """The label space."""
        return LabelSpace(tuple(self.labels), self.positive_label, self.label_space)


def require_replaceable(output: Path) -> None:
    """ModelError if a folder to write exists, and is neither empty nor an earlier export."""
    if output.exists() and (not output.is_dir() or (not (output / META_FILE).is_file() and any(output.iterdir()))):
        raise ModelError(f"{output} exists and is not an exported model; choose another --output")


def head_fingerprint(weight_CD: Tensor, bias_C: Tensor) -> str:
    """SHA-256 over the head's fp32 bytes."""
    digest = hashlib.sha256()
    for tensor in (weight_CD, bias_C):
        digest.update(tensor.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def encoder_of(card: ModelCard, tokenizer: Any) -> Encoder:
    """What turns a text into the prompt that the model was trained with."""
    prompt = saved_prompt(card.prompt, tokenizer, system=card.system, question=card.question)
    return Encoder(tokenizer, max_prompt_length=card.max_prompt_length, rendered=prompt)


def read_head(folder: Path, card: ModelCard) -> tuple[Tensor, Tensor]:
    """Weight ``[K, D]`` and bias ``[K]``; ModelError if they are missing or do not match their fingerprint."""
    from safetensors.torch import load_file

    path = folder / HEAD_FILE
    if not path.is_file() and (folder / _OLDER_HEAD_FILE).is_file():
        path = folder / _OLDER_HEAD_FILE
    if not path.is_file():
        raise ModelError(
            f"{path} is missing, so the model has no classification head; copy the folder again, or export again"
        )
    tensors = load_file(path)
    weight_CD, bias_C = tensors["weight"], tensors["bias"]
    if head_fingerprint(weight_CD, bias_C) != card.head_sha256:
        raise ModelError(f"{path} does not match its fingerprint in {META_FILE}; export the model again")
    return weight_CD, bias_C
