"""Settings of the explanations that an exported model writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from clsgen_dist.io.value_ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

Length = Literal["short", "standard", "detailed"]
Told = Literal["nothing", "decision", "probability"]
_SENTENCES: dict[Length | None, tuple[int, int | None]] = {
    None: (0, None), "short": (0, 1), "standard": (0, 3), "detailed": (3, None)
}  # fmt: skip
"""Least and most sentences."""


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """How explanations are written by `clsgen predict`, `evaluate` and `serve`."""

    length: Length | None = None
    """`short`: one sentence; `standard`: up to three; `detailed`: three or more; none: as the model learned it."""
    max_sentences: PositiveInt | None = None
    """Most sentences."""
    max_words: PositiveInt | None = None
    """Most words. The text ends with the last sentence that fits; a first sentence is never cut."""
    tell: Told = "nothing"
    """What the model is told before it writes: the decision of the head, or the decision and its calibrated probability in words and percent."""
    state_decision: bool = False
    """Begin the explanation with the decided class."""
    quote_evidence: bool = False
    """Have the explanation quote a phrase of the text, word for word."""
    forbidden: list[str] = field(default_factory=list)
    """Phrases that are never written, in any case of letters, such as `100% certain`."""
    json_schema: str | None = None
    """JSON schema that the explanation must follow."""
    regex: str | None = None
    """Regular expression (Rust's syntax) that the complete explanation must match."""
    grammar: str | None = None
    """Lark grammar that the explanation must follow."""
    temperature: NonNegativeFloat = 0.0
    """0: the most probable token each time; from 0.01 to 100, tokens are drawn."""
    top_p: ClosedUnitInterval = 1.0
    """Draw among the most probable tokens that together have this probability (nucleus sampling)."""
    min_p: ClosedUnitInterval = 0.0
    """Draw among tokens with at least this share of the most probable one's probability."""
    seed: NonNegativeInt = 0
    """Of the drawn tokens: the same text, settings and seed give the same explanation."""
    candidates: PositiveInt = 1
    """Explanations drawn from one prefill; the first of those that agree with the head and are grounded best is given, the others beside it."""
    redraws: NonNegativeInt = 2
    """How often an explanation that states another class than the head decided is drawn anew before it is given, marked as a contradiction."""

    @property
    def sentences(self) -> tuple[int, int | None]:
        """Least and most sentences of the explanation."""
        least, most = _SENTENCES[self.length]
        return least, self.max_sentences if most is None else min(most, self.max_sentences or most)

    @property
    def uses_decision(self) -> bool:
        """Whether what is written depends on what the head decided, and so on calibration and thresholds."""
        return self.tell != "nothing" or self.state_decision or self.redraws > 0 or self.candidates > 1

    @property
    def form(self) -> str | None:
        """The setting that prescribes the whole text: ``json_schema``, ``regex`` or ``grammar``; None: none does."""
        return next((name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None), None)

    def faults(self) -> Iterator[str]:
        """What does not go together, a sentence each."""
        forms = [name for name in ("json_schema", "regex", "grammar") if getattr(self, name) is not None]
        if len(forms) > 1:
            yield f"decoding has {' and '.join(forms)}, expected one of them; put everything into the grammar"
        free = [name for name in ("state_decision", "quote_evidence", "forbidden") if getattr(self, name)]
        free += [name for name in ("length", "max_sentences", "max_words") if getattr(self, name) is not None]
        if forms and free:
            yield (
                f"decoding.{forms[0]} prescribes the whole text, so decoding.{free[0]} cannot change it; "
                "put it into the prescription, or leave one out"
            )
        if self.candidates > 1 and self.temperature == 0:
            yield (
                f"decoding.candidates is {self.candidates} with decoding.temperature 0, so all would be equal; "
                "set the temperature to 0.7, for example"
            )
        if self.temperature == 0 and (self.top_p < 1 or self.min_p > 0):
            name = "top_p" if self.top_p < 1 else "min_p"
            yield f"decoding.{name} is {getattr(self, name):g} with decoding.temperature 0, where nothing is drawn; set it"
        if self.temperature and not 0.01 <= self.temperature <= 100:
            yield f"decoding.temperature is {self.temperature:g}, expected 0, or 0.01 to 100"
        if self.length == "detailed" and self.max_sentences is not None and self.max_sentences < 3:
            yield (
                f"decoding.length is detailed, three sentences or more, and decoding.max_sentences {self.max_sentences}; "
                "leave one out"
            )
        texts = [*self.forbidden, self.json_schema or "", self.regex or "", self.grammar or ""]
        if any(0xD800 <= ord(character) < 0xE000 for text in texts for character in text):
            yield "decoding has half a character (a lone surrogate), expected valid Unicode"
        if self.top_p == 0:
            yield "decoding.top_p is 0, which leaves no token; expected above 0, or temperature 0 for the most probable"
        for phrase in self.forbidden:
            if not phrase.strip():
                yield "decoding.forbidden has an empty phrase, which forbids every text; leave it out"
