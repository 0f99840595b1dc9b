"""Many drafts decoded together, which join and leave between tokens.

    prefill ─▶ admit ─▶ ┌ ids, mask, KV cache: one row a draft ┐ ─▶ ended drafts
                        └ lm.generate, until some have ended ──┘
                            ▲ each token: chosen by the draft where it has rules of its own

Rows end at the right edge; those that join are padded on the left to the same width, and columns that are padding in
every row are dropped. transformers' ``generate`` computes the tokens, so every family's own inputs are prepared as
always. Families whose cache is not a plain one keep their batch until all its drafts have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from clsgen_dist.decoding.draft import Draft
from clsgen_dist.decoding.roomy_cache import make_room

# S prompts, R drafts, T columns, V vocabulary, D hidden


class DecodeLoop:
    """The drafts that are written at a time.

    Args:
        lm: causal LM.
        never: tokens that are never written.
        ended_share: share of the drafts whose end stops ``generate``, to go on without them; 0: each one's.
    """

    def __init__(self, lm: Any, never: Sequence[int] = (), ended_share: float = 0.25) -> None:
        self._lm, self._never, self._ended_share = lm, list(never), ended_share
        self.drafts: list[Draft] = []
        self._ids_RT: Tensor = torch.empty(0)
        self._mask_RT: Tensor = torch.empty(0)
        self._cache: Any = None
        self._joins = True

    @property
    def is_open(self) -> bool:
        """Whether drafts can be admitted now."""
        return not self.drafts or self._joins

    def admit(
        self, ids_ST: Tensor, mask_ST: Tensor, cache: Any, logits_SV: Tensor, drafts: Sequence[tuple[int, Draft]]
    ) -> None:
        """Take drafts in, whose prompts were just put through the model.

        Args:
            ids_ST: left-padded prompts.
            mask_ST: 1 where they are not padding.
            cache: the model's cache after them; None for families that have another kind.
            logits_SV: of the first token of each prompt's answer.
            drafts: each with the row of its prompt; a prompt may have several if the cache is a plain one.
        """
        joins = type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
        assert not self.drafts or (self._joins and joins), "only plain caches take new rows in"
        row_R = torch.tensor([row for row, _ in drafts], device=ids_ST.device)
        if len(drafts) != len(ids_ST) or row_R.tolist() != list(range(len(ids_ST))):
            cache.reorder_cache(row_R)
        logits_RV = self._without_never(logits_SV)
        first_R = torch.tensor([self._first(logits_RV[row], draft) for row, draft in drafts], device=ids_ST.device)
        ids_RT = torch.cat([ids_ST[row_R], first_R[:, None]], dim=1)
        mask_RT = F.pad(mask_ST[row_R], (0, 1), value=1)
        if self.drafts:
            ids_RT, mask_RT, cache = self._joined(ids_RT, mask_RT, cache)
        if type(cache) is DynamicCache:
            make_room(cache)
        self.drafts += [draft for _, draft in drafts]
        self._ids_RT, self._mask_RT, self._cache, self._joins = ids_RT, mask_RT, cache, joins

    def run(self, interrupted: Callable[[], bool] = lambda: False) -> list[Draft]:
        """Decode until some drafts have ended, or until ``interrupted``; the drafts that have ended, which leave.

        ``interrupted`` is asked after every token, and may end drafts. A batch whose rows cannot leave goes on.
        """
        if not all(draft.has_ended for draft in self.drafts) and not (self._may_drop and self._some_ended()):
            self._decode(interrupted)
        ended = [draft for draft in self.drafts if draft.has_ended]
        self._keep([row for row, draft in enumerate(self.drafts) if not draft.has_ended])
        return ended

    @property
    def _may_drop(self) -> bool:
        """Whether rows can leave one by one."""
        return type(self._cache) is DynamicCache

    def _some_ended(self) -> bool:
        return sum(draft.has_ended for draft in self.drafts) >= max(1, self._ended_share * len(self.drafts))

    def _decode(self, interrupted: Callable[[], bool]) -> None:
        """``generate`` until it should stop."""

        def step(ids_RT: Tensor, scores: Any) -> Tensor:
            for draft, token in zip(self.drafts, ids_RT[:, -1].tolist(), strict=True):
                draft.accept(token)
            stops = (interrupted() or self._some_ended()) and self._may_drop
            return torch.tensor([stops or draft.has_ended for draft in self.drafts], device=ids_RT.device)

        left = max(draft.tokens_left for draft in self.drafts if not draft.has_ended)
        processors = LogitsProcessorList([_Chooser(self.drafts, self._without_never)])
        self._ids_RT = self._lm.generate(
            input_ids=self._ids_RT,
            attention_mask=self._mask_RT,
            past_key_values=self._cache,
            max_new_tokens=left,
            logits_processor=processors,
            stopping_criteria=[step],
        )
        self._mask_RT = F.pad(self._mask_RT, (0, self._ids_RT.shape[1] - self._mask_RT.shape[1]), value=1)

    def _first(self, logits_V: Tensor, draft: Draft) -> int:
        token = int(logits_V.argmax()) if draft.is_plain else draft.choose(logits_V)
        draft.accept(token)
        return token

    def _without_never(self, logits_RV: Tensor) -> Tensor:
        if not self._never:
            return logits_RV
        logits_RV = logits_RV.clone()
        logits_RV[:, self._never] = -torch.inf
        return logits_RV

    def _keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        if not rows:
            self.drafts, self._cache, self._joins = [], None, True
        elif len(rows) < len(self.drafts) and self._may_drop:
            kept = torch.tensor(rows, device=self._ids_RT.device)
            self.drafts = [self.drafts[row] for row in rows]
            self._ids_RT, self._mask_RT = self._ids_RT[kept], self._mask_RT[kept]
            self._cache.reorder_cache(kept)

    def _joined(self, ids_RT: Tensor, mask_RT: Tensor, cache: Any) -> tuple[Tensor, Tensor, Any]:
        """Old and new rows as one batch, as narrow as its longest row."""
        blocks = [(self._ids_RT, self._mask_RT, self._cache), (ids_RT, mask_RT, cache)]
        needed = [int(mask.any(dim=0).int().argmax()) for _, mask, _ in blocks]  # first column that any row uses
        widths = [mask.shape[1] - first for (_, mask, _), first in zip(blocks, needed, strict=True)]
        width = max(widths)

        def fitted(block_RT: Tensor, first: int, pad: int) -> Tensor:
            return F.pad(block_RT[:, first:], (pad, 0))

        pads = [width - own for own in widths]
        ids = torch.cat([fitted(b[0], f, p) for b, f, p in zip(blocks, needed, pads, strict=True)])
        mask = torch.cat([fitted(b[1], f, p) for b, f, p in zip(blocks, needed, pads, strict=True)])
        merged = DynamicCache()
        for number, layers in enumerate(zip(*(c.layers for _, _, c in blocks), strict=True)):
            keys, values = (
                torch.cat(
                    [
                        F.pad(getattr(layer, name)[:, :, first:], (0, 0, pad, 0))
                        for layer, first, pad in zip(layers, needed, pads, strict=True)
                    ]
                )
                for name in ("keys", "values")
            )
            merged.update(keys, values, number)
        return ids, mask, merged


class _Chooser(LogitsProcessor):
    """Leaves one token to choose for each draft that has rules of its own."""

    def __init__(self, drafts: list[Draft], without_never: Callable[[Tensor], Tensor]) -> None:
        self._drafts, self._without_never = drafts, without_never

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores_RV = self._without_never(scores)
        for row, draft in enumerate(self._drafts):
            if not (draft.has_ended or draft.is_plain):
                token = draft.choose(scores_RV[row])
                scores_RV[row] = -torch.inf
                scores_RV[row, token] = 0
        return scores_RV
