"""An explanation that is being written: its next token, and when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clsgen_dist.decoding.constraint import Constraint
from clsgen_dist.decoding.length import LengthBudget, whole_sentences
from clsgen_dist.errors import SettingsError
from clsgen_dist.explanations.text_units import sentence_ends

# V vocabulary


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0: the most probable one."""

    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass
class Draft:
    """One explanation.

    A plain draft (no constraint, nothing drawn, told or counted) leaves the choice of tokens to its batch.
    """

    tokenizer: Any
    end_token: int
    longest: int
    """Most tokens."""
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    budget: LengthBudget = field(default_factory=LengthBudget)
    told: list[int] = field(default_factory=list)
    """Tokens that are written first, and are not part of the explanation."""
    on_text: Callable[[str], None] | None = None
    """Gets the explanation piece by piece."""
    holds_back: bool = False
    """Whether pieces are whole sentences."""
    scored: bool = False
    """Whether the log-probability is summed up."""
    is_free: bool = True
    """Whether a text that had to stop may end after any sentence: nothing prescribes its form or its quotation."""

    tokens: list[int] = field(default_factory=list, init=False)
    """The explanation's, without the end token."""
    has_ended: bool = field(default=False, init=False)
    is_cut: bool = field(default=False, init=False)
    """Whether it had to stop at ``longest``."""
    log_prob: float = field(default=0.0, init=False)
    """Sum over the tokens, in nats."""
    error: Exception | None = field(default=None, init=False)
    """Why it could not be written, which ends this draft and no other."""

    def __post_init__(self) -> None:
        self._to_tell = list(self.told)
        self._kept: str | None = None
        self._shown = ""
        self._generator: torch.Generator | None = None

    @property
    def tokens_left(self) -> int:
        """Tokens that it may still write."""
        return len(self._to_tell) + self.longest - len(self.tokens)

    @property
    def is_plain(self) -> bool:
        """Whether the most probable token is always the right one."""
        return not (
            self._to_tell or self.scored or self.constraint or self.budget.min_sentences or self.sampling.temperature
        )

    def choose(self, logits_V: Tensor) -> int:
        """The next token; the end token if it cannot be chosen."""
        try:
            return self._to_tell[0] if self._to_tell else self._chosen(logits_V)
        except Exception as error:  # of a grammar, say: others share the batch
            self.error, self.has_ended = error, True
            return self.end_token

    def accept(self, token: int) -> None:
        """Go on by a token, which may end the draft."""
        if self.has_ended:
            return
        if self._to_tell:
            self._to_tell.pop(0)
            return
        try:
            self._go_on(token)
        except Exception as error:
            self.error, self.has_ended = error, True

    @property
    def given_tokens(self) -> list[int]:
        """The tokens of the text that is given, which may be shorter than what was written."""
        text = self.text
        for count in range(len(self.tokens)):
            if self._decoded(count).strip().startswith(text):
                return self.tokens[:count]
        return self.tokens

    def _chosen(self, logits_V: Tensor) -> int:
        allowed_V = logits_V.float()
        if self.constraint is not None:
            allowed_V = allowed_V.masked_fill(~self.constraint.allowed().to(logits_V.device), -torch.inf)
            if allowed_V.max() == -torch.inf:  # all that it allows is never written
                raise SettingsError("the constraint on the explanation allows no token; change it")
        if not self.budget.may_end(self.text):
            without_end_V = allowed_V.clone()
            without_end_V[self.end_token] = -torch.inf
            allowed_V = allowed_V if torch.isinf(without_end_V).all() else without_end_V
        token = int(allowed_V.argmax()) if self.sampling.temperature == 0 else self._drawn(allowed_V)
        if self.scored:
            self.log_prob += float(logits_V.float().log_softmax(-1)[token])
        return token

    def _go_on(self, token: int) -> None:
        if token == self.end_token:
            self.has_ended = True
        else:
            self.tokens.append(token)
            if self.constraint is not None:
                self.constraint.accept(token)
            if len(self.tokens) >= self.longest:
                self.has_ended = self.is_cut = True
        is_complete = self.constraint is None or self.constraint.is_satisfied
        if is_complete and self.budget.is_bounded and (kept := self.budget.kept(self._decoded())) is not None:
            self._kept, self.has_ended, self.is_cut = kept, True, False
        if self.on_text is not None:
            self._show()

    @property
    def text(self) -> str:
        """The explanation so far; once it has ended, without a sentence that is cut."""
        if self._kept is not None:
            return self._kept.strip()
        text = self._decoded()
        return (whole_sentences(text) if self.is_cut and self.is_free else text).strip()

    def _decoded(self, count: int | None = None) -> str:
        """The text of the first ``count`` tokens."""
        return str(self.tokenizer.decode(self.tokens[:count], skip_special_tokens=True))

    def _show(self) -> None:
        """Pass on what is new; not the first bytes of a character, nor blanks at either end.

        Of a text that may be shortened, or may not be taken back, whole sentences.
        """
        text = self.text
        if not self.has_ended:
            if text.endswith("\ufffd"):
                return
            if self.budget.is_bounded or self.holds_back:
                ends = [end for end in sentence_ends(text) if text[end:].strip()]
                text = text[: ends[-1]] if ends else ""
        if self.on_text is not None and text.startswith(self._shown) and len(text) > len(self._shown):
            self.on_text(text[len(self._shown) :])
            self._shown = text

    def _drawn(self, logits_V: Tensor) -> int:
        from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopPLogitsWarper

        sampling = self.sampling
        warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.min_p > 0:
            warpers.append(MinPLogitsWarper(sampling.min_p))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        ids_11: Any = torch.zeros((1, 1), dtype=torch.long)  # no warper looks at it
        scores_1V: Any = logits_V[None].cpu()
        probabilities_V = LogitsProcessorList(warpers)(ids_11, scores_1V)[0].softmax(-1)
        if not torch.isfinite(probabilities_V).all():
            return int(logits_V.argmax())
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(sampling.seed)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))
