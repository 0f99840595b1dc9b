"""Tokens and money: what was spent by all runs of a journal, and whether one more request fits.

A request on its way counts with what it may cost at most: its prompt, by the tokens per byte seen so far (1/2 before
the first answer), and all tokens that its answer may have. So a run stops before its limit, never behind it, but for
prompts of more tokens per byte than the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from clsgen_dist.errors import SettingsError
from clsgen_dist.teacher.journal import Journal

_MILLION = 1e6
_FIRST_RATIO = 0.5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be spent; prices are money per million tokens, in whatever currency."""

    max_tokens_total: int | None = None
    max_cost: float | None = None
    price_input: float | None = None
    price_output: float | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and (self.price_input is None or self.price_output is None):
            raise SettingsError(
                f"--max_cost is {self.max_cost:g}, but what tokens cost is not known; give --price_input and "
                "--price_output, per million tokens"
            )


class Budget:
    """The limits, and a journal's tokens."""

    def __init__(self, limits: Limits, journal: Journal) -> None:
        self._limits, self._journal = limits, journal
        self._reserved: dict[str, tuple[float, int]] = {}
        self._bytes = self._tokens = 0

    @property
    def tokens(self) -> int:
        """Spent in all."""
        return self._journal.prompt_tokens + self._journal.completion_tokens

    def cost(self, prompt_tokens: float | None = None, completion_tokens: float | None = None) -> float:
        """Of these tokens; of all spent ones without arguments. 0 without prices."""
        read = self._journal.prompt_tokens if prompt_tokens is None else prompt_tokens
        written = self._journal.completion_tokens if completion_tokens is None else completion_tokens
        return (read * (self._limits.price_input or 0) + written * (self._limits.price_output or 0)) / _MILLION

    def estimate(self, prompt: str) -> float:
        """Tokens of a prompt."""
        ratio = self._tokens / self._bytes if self._bytes else _FIRST_RATIO
        return len(prompt.encode("utf-8", "replace")) * ratio

    def fits(self, prompt: str, max_tokens: int) -> bool:
        """Whether one more request may be sent, whatever those on their way cost."""
        read = self.estimate(prompt) + sum(r for r, _ in self._reserved.values())
        written = max_tokens + sum(w for _, w in self._reserved.values())
        limits = self._limits
        if limits.max_tokens_total is not None and self.tokens + read + written > limits.max_tokens_total:
            return False
        return limits.max_cost is None or self.cost() + self.cost(read, written) <= limits.max_cost

    def reserve(self, key: str, prompt: str, max_tokens: int) -> None:
        """A request is on its way."""
        self._reserved[key] = (self.estimate(prompt), max_tokens)

    def release(self, key: str) -> None:
        """It has been answered, or given up."""
        self._reserved.pop(key)

    def learn(self, prompt: str, tokens: int) -> None:
        """A prompt had so many tokens."""
        self._bytes += len(prompt.encode("utf-8", "replace"))
        self._tokens += tokens
