"""Probability and explanation from one prefill.

The backbone runs once over the prompt: the last final-norm state gives the class logits and, through the LM head, the
first explanation token; the rest is decoded greedily from the KV cache of that pass, and rows whose explanation has
ended leave the batch. Rows of similar length are batched, padded on the left. A model that decides after its
explanation reads the head at the end of what it wrote, which takes a second pass over prompt and explanation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clsgen_dist.data.encode import Ids
from clsgen_dist.errors import ModelError, SettingsError
from clsgen_dist.hf_export.adapters import merge_adapters, open_export
from clsgen_dist.hf_export.artifact import ModelCard, encoder_of, read_head
from clsgen_dist.inference.prediction import AnswerReader, Prediction
from clsgen_dist.inference.raw_predictions import RawPrediction, require_finite
from clsgen_dist.model.attention import accepted_inputs, choose_attention
from clsgen_dist.model.context_length import context_length
from clsgen_dist.model.self_test import ROUNDING, relative_difference
from clsgen_dist.track.progress import Progress

logger = logging.getLogger(__name__)

# S sequences of a batch, R of them still decoded, T padded length, D hidden, V vocabulary, C classes, K logits


@dataclass(frozen=True)
class PromptBatches:
    """The prompts of texts, and which of them are computed together."""

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
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=backbone.config)
        self.encoder = encoder_of(self.card, self.tokenizer)
        end = self.encoder.end_token
        lm: Any = AutoModelForCausalLM.from_pretrained(
            backbone.path,
            attn_implementation=choose_attention("auto", on_gpu=self.device.type != "cpu", lm=backbone.meta),
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
        self._may_pad = self._padding_is_exact()
        self.reader = AnswerReader(self.card)
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
        progress: bool = False,
        ids: Sequence[str] | None = None,
    ) -> list[Prediction]:
        """Predictions in the order of the texts.

        Args:
            texts: texts to classify.
            batch_size: texts decoded together.
            explain: decode explanations too. A model that decides after them decodes them in any case.
            max_new_tokens: longest explanation in tokens; None: the longest that training allowed.
            progress: show the progress on stderr.
            ids: names of the texts, for errors; None: their places, from 0.

        Raises:
            ModelError: the class logits of some texts are not finite.
            SettingsError: prompt and ``max_new_tokens`` exceed the model's context.
        """
        found: dict[int, RawPrediction] = {}
        batches = self.prompt_batches(texts, batch_size)
        with Progress(len(texts), enabled=progress, unit="row", label="predict") as shown:
            for number in range(len(batches.rows)):
                batch = self.compute(batches, number, explain=explain, max_new_tokens=max_new_tokens)
                found |= batch
                shown.update(len(batch))
        raws = [found[index] for index in range(len(texts))]
        require_finite(raws, ids)
        return [self.read(raw) for raw in raws]

    def prompt_batches(self, texts: Sequence[str], batch_size: int) -> PromptBatches:
        """The texts in batches of similar length; of equal length, if padding would change a row's states."""
        prompts = [self.encoder.prompt(text) for text in texts]
        lengths = [len(prompt) for prompt, _ in prompts]
        order = sorted(range(len(texts)), key=lambda i: -lengths[i])
        groups = [order] if self._may_pad else [list(rows) for _, rows in groupby(order, key=lambda i: lengths[i])]
        return PromptBatches(
            prompts, [rows[start : start + batch_size] for rows in groups for start in range(0, len(rows), batch_size)]
        )

    @torch.inference_mode()
    def compute(
        self, batches: PromptBatches, number: int, *, explain: bool, max_new_tokens: int | None = None
    ) -> dict[int, RawPrediction]:
        """What the model computes for each text of a batch, by the text's index; arguments as for :meth:`predict`."""
        rows = batches.rows[number]
        # The longest explanation counts its end token, which is appended where the head is read after it.
        longest = self.card.max_explanation_length - (self.card.decide != "before")
        longest = longest if max_new_tokens is None else max_new_tokens
        writes = explain or self.card.decide == "after"
        prompts = [batches.prompts[index][0] for index in rows]
        if writes and max_new_tokens is not None:
            self._require_room(max(map(len, prompts)), max_new_tokens)
        first_SK, after_SK, texts_S = self._batch(prompts, longest if writes else 0)
        return {
            index: RawPrediction(
                first=tuple(first_SK[row].tolist()),
                after=None if after_SK is None else tuple(after_SK[row].tolist()),
                explanation=texts_S[row] if explain else None,
                truncated=batches.prompts[index][1],
            )
            for row, index in enumerate(rows)
        }

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

    def _batch(self, prompts: Sequence[Ids], new_tokens: int) -> tuple[np.ndarray, np.ndarray | None, list[str | None]]:
        """Logits ``[S, K]`` at the prompts' ends, those after the explanations (or None), and the explanations."""
        ids_ST, mask_ST = left_padded(prompts, self.encoder.end_token, self.device)
        outputs = prefill(self.lm, ids_ST, mask_ST, use_cache=new_tokens > 0)
        last_SD = outputs.last_hidden_state[:, -1]
        logits_SK = F.linear(last_SD.float(), *self._head).cpu().numpy()
        if new_tokens == 0:
            return logits_SK, None, [None] * len(prompts)
        first_S1 = self.lm.get_output_embeddings()(last_SD).argmax(dim=-1, keepdim=True)
        # None for models with another kind of cache (Mamba): generate then recomputes the prompt.
        cache = getattr(outputs, "past_key_values", None)
        written = self._continue(ids_ST, mask_ST, first_S1, cache, new_tokens)
        after_SK = None if self.card.decide == "before" else self._logits_after(prompts, written)
        return logits_SK, after_SK, [self._text(tokens) for tokens in written]

    def _logits_after(self, prompts: Sequence[Ids], written: Sequence[list[int]]) -> np.ndarray:
        """``[S, K]`` logits at the end token of each explanation."""
        end = self.encoder.end_token
        rows = [np.concatenate([p, np.array([*w, end], dtype=p.dtype)]) for p, w in zip(prompts, written, strict=True)]
        found = []
        for batch in [rows] if self._may_pad else [[row] for row in rows]:
            outputs = prefill(self.lm, *left_padded(batch, end, self.device), use_cache=False)
            found.append(F.linear(outputs.last_hidden_state[:, -1].float(), *self._head).cpu().numpy())
        return np.concatenate(found)

    def _continue(
        self, ids_ST: Tensor, mask_ST: Tensor, first_S1: Tensor, cache: Any, new_tokens: int
    ) -> list[list[int]]:
        """The explanations' tokens without the end token, decoded greedily from the prefill's KV cache.

        Whenever a quarter of the batch has ended, decoding stops, and goes on without these rows; not for families with
        a cache of their own, which may not be able to drop rows.
        """
        from transformers import DynamicCache

        end, prompt = self.encoder.end_token, ids_ST.shape[1]

        def quarter_has_ended(ids_RT: Tensor, scores: Any) -> Tensor:
            return ((ids_RT[:, -1] == end).float().mean() >= 0.25).expand(len(ids_RT))

        drops = type(cache) is DynamicCache
        written: list[list[int]] = [[] for _ in ids_ST]
        row_R, ids_RT, mask_RT = list(range(len(ids_ST))), torch.cat([ids_ST, first_S1], dim=1), mask_ST
        while True:
            for row, tokens in zip(row_R, ids_RT[:, prompt:].tolist(), strict=True):
                written[row] = tokens[: tokens.index(end)] if end in tokens else tokens
            left, going_R = prompt + new_tokens - ids_RT.shape[1], ids_RT[:, -1] != end
            if left == 0 or not going_R.any():
                return written
            if drops and not going_R.all():
                keep = going_R.nonzero().flatten()
                row_R, ids_RT, mask_RT = [row_R[place] for place in keep.tolist()], ids_RT[keep], mask_RT[keep]
                cache.reorder_cache(keep)
            mask_RT = F.pad(mask_RT, (0, ids_RT.shape[1] - mask_RT.shape[1]), value=1)
            ids_RT = self.lm.generate(
                input_ids=ids_RT,
                attention_mask=mask_RT,
                past_key_values=cache,
                max_new_tokens=left,
                stopping_criteria=[quarter_has_ended] if drops else None,
            )

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def left_padded(prompts: Sequence[Ids], pad_token: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask ``[S, T]`` with every prompt ending in the last column."""
    length = max(map(len, prompts))
    ids_ST = torch.full((len(prompts), length), pad_token)
    mask_ST = torch.zeros_like(ids_ST)
    for row, prompt in enumerate(prompts):
        ids_ST[row, length - len(prompt) :] = torch.from_numpy(prompt)
        mask_ST[row, length - len(prompt) :] = 1
    return ids_ST.to(device), mask_ST.to(device)


def prefill(lm: Any, ids_ST: Tensor, mask_ST: Tensor, *, use_cache: bool) -> Any:
    """The backbone's outputs for left-padded prompts; ``last_hidden_state[:, -1]`` are the classification states."""
    position_ST = (mask_ST.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"input_ids": ids_ST, "attention_mask": mask_ST, "position_ids": position_ST, "use_cache": use_cache}
    return lm.base_model(**accepted_inputs(lm.base_model, inputs))


@torch.inference_mode()
def classification_states(lm: Any, prompts: Sequence[Ids], pad_token: int, batch_size: int = 32) -> np.ndarray:
    """``[N, D]`` final-norm states at the classification tokens, the features of a linear probe."""
    states = []
    for start in range(0, len(prompts), batch_size):
        ids_ST, mask_ST = left_padded(prompts[start : start + batch_size], pad_token, lm.device)
        states.append(prefill(lm, ids_ST, mask_ST, use_cache=False).last_hidden_state[:, -1].float().cpu())
    return torch.cat(states).numpy()
