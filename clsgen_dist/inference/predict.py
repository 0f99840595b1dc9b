"""Probability and explanation from one prefill.

The backbone runs once over the prompt: the last final-norm state gives the class logits and, through the LM head, the
first explanation token; the rest is decoded from the KV cache of that pass (:mod:`clsgen_dist.decoding`). Rows of
similar length are batched, padded on the left. A model that decides after its explanation reads the head at the end of
what it wrote, which takes a second pass over prompt and explanation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from clsgen_dist.data.encode import Ids
from clsgen_dist.decoding.constraint import ConstraintCompiler
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import ModelError, SettingsError
from clsgen_dist.hf_export.adapters import merge_adapters, open_export
from clsgen_dist.hf_export.artifact import ModelCard, encoder_of, read_head
from clsgen_dist.inference.batch_decoder import BatchDecoder, Task, require_usable
from clsgen_dist.inference.prediction import AnswerReader, Prediction
from clsgen_dist.inference.prefill import left_padded, prefill
from clsgen_dist.inference.raw_predictions import RawPrediction, require_explained, require_finite
from clsgen_dist.model.attention import choose_attention
from clsgen_dist.model.context_length import context_length
from clsgen_dist.model.self_test import ROUNDING, relative_difference
from clsgen_dist.track.progress import Progress

logger = logging.getLogger(__name__)

# T padded length, D hidden, K logits


_TOLD_TOKENS = 40
"""Room for a decision that is told, a class."""


@dataclass(frozen=True)
class PromptBatches:
    """The prompts of texts, and which of them are computed together."""

    texts: list[str]
    prompts: list[tuple[Ids, bool]]
    """Token ids, and whether the text was truncated."""
    rows: list[list[int]]
    """Indices of the texts in each batch, the longest prompts first, so that memory peaks early."""


class Predictor:
    """An exported model, ready to predict.

    Args:
        folder: output of ``clsgen export``.
        device: torch device; None uses CUDA if available, else the CPU.

    Raises:
        ModelError: the folder is not an export, its head does not match its fingerprint, or has weights that are not
            finite; or it has adapters, and their base is not there or another one.
    """

    def __init__(self, folder: str | Path, device: str | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        folder = Path(folder)
        self.card = ModelCard.read(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        weight_CD, bias_C = read_head(folder, self.card)
        if bad := sum(int((~torch.isfinite(tensor)).sum()) for tensor in (weight_CD, bias_C)):
            raise ModelError(
                f"{folder}: {bad} weights of the classification head are not finite (NaN or infinity), so the run "
                "diverged; export an earlier checkpoint"
            )
        self._head = (weight_CD.to(self.device), bias_C.to(self.device))
        backbone = open_export(folder, self.card)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, config=backbone.config)
        self.encoder = encoder_of(self.card, self.tokenizer)
        end = self.encoder.end_token
        lm: Any = AutoModelForCausalLM.from_pretrained(
            backbone.path,
            trust_remote_code=False,
            attn_implementation=choose_attention(
                "auto",
                on_gpu=self.device.type != "cpu",
                dtype=backbone.config.dtype or torch.float32,
                lm=backbone.meta,
            ),
            # Not the base's, whose penalties, beams and forced tokens would change greedy decoding.
            generation_config=GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=end),
        )
        if self.card.base_fingerprint is not None:
            merge_adapters(lm, folder)
        self.lm = lm.to(self.device).eval()
        self.space = self.card.space
        expected = (self.space.outputs, self.lm.get_output_embeddings().weight.shape[1])
        if self._head[0].shape != expected:
            raise ModelError(
                f"{folder}: the head's shape is {tuple(weight_CD.shape)}, expected {expected} from labels and "
                "backbone; export the model again"
            )
        self.may_pad = self._padding_is_exact()
        self.reader = AnswerReader(self.card)
        self.constraints = ConstraintCompiler(self.tokenizer, self.lm.get_output_embeddings().weight.shape[0], end)
        if self.card.distorted_by and not self.card.calibration:
            logger.warning(
                "%s was trained with %s, which distorts probabilities: run clsgen calibrate on held-out rows",
                *(folder, " and ".join(self.card.distorted_by)),
            )

    def predict(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 16,
        explain: bool = True,
        max_new_tokens: int | None = None,
        decoding: DecodingSettings | None = None,
        progress: bool = False,
        ids: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of the texts.

        Args:
            texts: texts to classify.
            batch_size: texts decoded together.
            explain: decode explanations too. A model that decides after them decodes them in any case.
            max_new_tokens: longest explanation in tokens; None: the longest that training allowed.
            decoding: how explanations are written; None: as the model's folder says.
            progress: show the progress on stderr.
            ids: names of the texts, for errors; None: their places, from 0.

        Raises:
            ModelError: the class logits of some texts are not finite.
            SettingsError: prompt and ``max_new_tokens`` exceed the model's context, or ``decoding`` cannot be kept to.
        """
        found: dict[int, RawPrediction] = {}
        batches = self.prompt_batches(texts, batch_size)
        with Progress(len(texts), enabled=progress, unit="row", label="predict") as shown:
            for number in range(len(batches.rows)):
                batch = self.compute(batches, number, explain=explain, max_new_tokens=max_new_tokens, decoding=decoding)
                found |= batch
                shown.update(len(batch))
        raws = [found[index] for index in range(len(texts))]
        require_explained(raws, ids)
        require_finite(raws, ids)
        return [self.read(raw) for raw in raws]

    def prompt_batches(self, texts: Sequence[str], batch_size: int) -> PromptBatches:
        """The texts in batches of similar length; of equal length, if padding would change a row's states."""
        prompts = [self.encoder.prompt(text) for text in texts]
        lengths = [len(prompt) for prompt, _ in prompts]
        order = sorted(range(len(texts)), key=lambda i: -lengths[i])
        groups = [order] if self.may_pad else [list(rows) for _, rows in groupby(order, key=lambda i: lengths[i])]
        return PromptBatches(
            list(texts),
            prompts,
            [rows[start : start + batch_size] for rows in groups for start in range(0, len(rows), batch_size)],
        )

    def compute(
        self,
        batches: PromptBatches,
        number: int,
        *,
        explain: bool,
        max_new_tokens: int | None = None,
        decoding: DecodingSettings | None = None,
    ) -> dict[int, RawPrediction]:
        """What the model computes for each text of a batch, by the text's index; arguments as for :meth:`predict`."""
        rows, texts, prompts = batches.rows[number], batches.texts, batches.prompts
        options: Any = {"decoding": self.decoding(decoding), "explain": explain, "max_new_tokens": max_new_tokens}
        tasks = [self.task(texts[row], prompts[row], **options) for row in rows]
        return dict(zip(rows, self.decoder().answer(tasks), strict=True))

    def decoding(self, settings: DecodingSettings | None = None) -> DecodingSettings:
        """How explanations are written: as said, else as the model's folder says; SettingsError if they cannot be."""
        return require_usable(settings or self.card.decoding_settings, self.card.decide)

    def task(
        self,
        text: str,
        prompt: tuple[Ids, bool],
        *,
        decoding: DecodingSettings,
        explain: bool = True,
        max_new_tokens: int | None = None,
    ) -> Task:
        """A text to be answered by :meth:`decoder`; SettingsError if prompt and explanation exceed the context."""
        ids, truncated = prompt
        # The longest explanation counts its end token, which is appended where the head is read after it.
        longest = self.card.max_explanation_length - (self.card.decide != "before")
        writes = explain or self.card.decide == "after"
        if writes and max_new_tokens is not None:
            longest = max_new_tokens
            self._require_room(len(ids), max_new_tokens)
        context = context_length(self.lm.config)
        if writes and decoding.tell != "nothing" and context is not None:
            told = _TOLD_TOKENS * (len(self.space) if self.space.kind == "multilabel" else 1)
            if (longest := min(longest, context - len(ids) - told)) < 1:
                raise SettingsError(
                    f"decoding.tell has no room: a prompt of {len(ids)} tokens and some {told} for the decision exceed "
                    f"the model's context of {context}; leave it out"
                )
        read = "\n".join(text[start:end] for start, end in self.encoder.read_spans(text)) if truncated else None
        return Task(text, ids, truncated, decoding, longest if writes else 0, read, explain)

    def decoder(self, ended_share: float = 0.25) -> BatchDecoder:
        """What computes tasks with this model; several share it, one at a time."""
        return BatchDecoder(
            self.lm,
            self._head,
            self.reader,
            self.encoder,
            self.tokenizer,
            self.constraints,
            may_pad=self.may_pad,
            ended_share=ended_share,
        )

    def read(self, raw: RawPrediction) -> Prediction:
        """The prediction, with the model's calibration and thresholds; of logits that are finite."""
        return self.reader.read(raw)

    @torch.inference_mode()
    def _padding_is_exact(self) -> bool:
        """Whether left padding leaves a row's states unchanged, which not every recurrent layer ensures."""
        prompts = [self.encoder.prompt(text)[0] for text in ("a", "a longer text " * 6)]
        together = prefill(self.lm, *left_padded(prompts, self.encoder.end_token, self.device), use_cache=False)
        alone = prefill(self.lm, *left_padded(prompts[:1], self.encoder.end_token, self.device), use_cache=False)
        padded_D, alone_D = together.last_hidden_state[:1, -1], alone.last_hidden_state[:1, -1]
        return relative_difference(padded_D, alone_D) <= ROUNDING.get(alone_D.dtype, 1e-1)

    def _require_room(self, prompt: int, new_tokens: int) -> None:
        """SettingsError if prompt and new tokens exceed the context."""
        context = context_length(self.lm.config)
        if new_tokens < 1:
            raise SettingsError(
                f"--max_new_tokens is {new_tokens}, expected 1 or more (--explain false generates none)"
            )
        new_tokens += self.card.decide != "before"  # the end token, at which the head is read
        if context is not None and prompt + new_tokens > context:
            raise SettingsError(
                f"--max_new_tokens is {new_tokens}, which after a prompt of {prompt} tokens exceeds the model's "
                f"context of {context}; lower it to {context - prompt}"
            )
