"""Texts on their way to an answer, many at a time: prefill, decide, write, check.

tasks ─begin─▶ prefill ─▶ class logits ─▶ decision ─▶ drafts ─┐
▼
answers ◀─ contradicts? draw anew ◀─ ended ◀─run─ decode loop ◀─ tasks that join later
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from clsgen_dist.data.encode import Encoder, Ids
from clsgen_dist.decoding.candidates import ranked
from clsgen_dist.decoding.constraint import ConstraintCompiler
from clsgen_dist.decoding.draft import Draft, Sampling
from clsgen_dist.decoding.length import LengthBudget
from clsgen_dist.decoding.loop import DecodeLoop
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.decoding.verbal_probability import told
from clsgen_dist.errors import SettingsError, first_line
from clsgen_dist.inference.prediction import AnswerReader, Reading
from clsgen_dist.inference.prefill import fit_together, left_padded, prefill
from clsgen_dist.inference.raw_predictions import RawPrediction
from clsgen_dist.model.lm_head import LMHead

# S sequences of a batch, T padded length, D hidden, V vocabulary, K logits

_REDRAW_TEMPERATURE = 0.7
"""Least temperature of an explanation that is drawn anew."""


@dataclass
class Task:
    """A text to answer."""

    text: str
    prompt: Ids
    truncated: bool
    decoding: DecodingSettings
    longest: int
    """Most tokens of the explanation; 0: none is written."""
    read: str | None = None
    """What the model reads of the text, where it was truncated; quotations come from there."""
    explain: bool = True
    """Whether the explanation is given; a model that decides after it writes one in any case."""
    on_reading: Callable[[Reading], None] | None = None
    """Gets the decision, before anything is written."""
    on_text: Callable[[str], None] | None = None
    """Gets the explanation piece by piece; of several candidates nothing."""
    holds_back: bool = False
    """Whether pieces are whole sentences, for those who cannot take back what may be shortened."""
    on_redraw: Callable[[], None] | None = None
    """Told that the pieces so far are void."""

    raw: RawPrediction | None = field(default=None, init=False)
    """The answer, once there is one."""
    error: Exception | None = field(default=None, init=False)
    """Why there is none."""
    reader: AnswerReader | None = field(default=None, init=False)
    """What made the decision, and reads the answer: a calibration that comes meanwhile is for later tasks."""
    first: tuple[float, ...] = field(default=(), init=False)
    reading: Reading | None = field(default=None, init=False)
    drafts: list[Draft] = field(default_factory=list, init=False)
    redraws: int = field(default=0, init=False)
    is_cancelled: bool = field(default=False, init=False)
    tokens_written: int = field(default=0, init=False)
    """Of all explanations, the void ones too."""

    def cancel(self) -> None:
        """Nobody waits for the answer any more; from any thread."""
        self.is_cancelled = True


class BatchDecoder:
    """Computes tasks with one model.

    Args:
        lm: the causal LM.
        head: weight ``[K, D]`` and bias ``[K]``.
        reader: of logits, and what the model's folder says.
        encoder: of the prompts.
        tokenizer: of the LM.
        constraints: for this tokenizer.
        may_pad: whether padding on the left leaves a row's states unchanged.
        ended_share: see :class:`clsgen_dist.decoding.loop.DecodeLoop`.
    """

    def __init__(
        self,
        lm: Any,
        head: tuple[Tensor, Tensor],
        reader: AnswerReader,
        encoder: Encoder,
        tokenizer: Any,
        constraints: ConstraintCompiler,
        *,
        may_pad: bool,
        ended_share: float = 0.25,
    ) -> None:
        self._lm, self._head, self._encoder, self._tokenizer, self._constraints = (
            lm,
            head,
            encoder,
            tokenizer,
            constraints,
        )
        self.reader, self._may_pad = reader, may_pad
        self._loop = DecodeLoop(lm, reader.card.folded.all_rows if reader.card.folded else (), ended_share)
        self._writing: dict[int, Task] = {}
        """By the id of its drafts."""
        self._again: list[Task] = []

    @property
    def tasks(self) -> int:
        """Texts that are being answered."""
        return len({id(task) for task in self._writing.values()}) + len(self._again)

    @property
    def is_open(self) -> bool:
        """Whether other tasks may begin now."""
        return self._loop.is_open

    def answer(self, tasks: Sequence[Task]) -> list[RawPrediction]:
        """Begin and finish a batch; a text whose explanation cannot be written has an ``error``."""
        self.begin(tasks)
        while self.tasks:
            self.run()
        return [task.raw or _failed(task) for task in tasks]

    @torch.inference_mode()
    def begin(self, tasks: Sequence[Task]) -> list[Task]:
        """Put prompts through the model; those without explanation are answered, the others are written by :meth:`run`.

        Where padding is not exact, the prompts must have one length.
        """
        silent = [task for task in tasks if task.longest == 0]
        writing = [task for task in tasks if task.longest > 0]
        if silent:
            outputs = prefill(self._lm, *self._padded([task.prompt for task in silent]), use_cache=False)
            for task, first in zip(silent, self._class_logits(outputs.last_hidden_state[:, -1]), strict=True):
                self._decide(task, first)
                task.raw = self._raw(task, None)
        return silent + (self._write(writing) if writing else [])

    @torch.inference_mode()
    def run(self, interrupted: Callable[[], bool] = lambda: False) -> list[Task]:
        """Write until some explanations have ended, or until ``interrupted``; the tasks that are answered now.

        ``interrupted`` is asked after each token; cancelled tasks leave.
        """
        failed: list[Task] = []
        if self._again and self._loop.is_open:
            failed = self._write_again()

        def stops() -> bool:
            for task in self._writing.values():
                if task.is_cancelled:
                    for draft in task.drafts:
                        draft.has_ended = True
            return interrupted()

        ended = {id(task): task for task in (self._writing[id(draft)] for draft in self._loop.run(stops))}
        whole = [task for task in ended.values() if all(draft.has_ended for draft in task.drafts)]
        for task in whole:
            for draft in task.drafts:
                del self._writing[id(draft)]
                task.tokens_written += len(draft.tokens)
        done = [task for task in whole if not self._is_to_be_redrawn(task)]
        self._finish(done)
        return failed + done

    def _write_again(self) -> list[Task]:
        """Begin those that are to be redrawn, as many as fit; the tasks whose constraint cannot be read."""
        again = [task for task in self._again if not task.is_cancelled]
        lengths = [len(task.prompt) for task in again]
        count = 0
        while count < len(again) and fit_together(lengths[: count + 1], may_pad=self._may_pad):
            count += 1
        self._again = again[count:]
        return self._write(again[:count]) if count else []

    def _padded(self, prompts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
        return left_padded(prompts, self._encoder.end_token, self._head[0].device)

    def _class_logits(self, states_SD: Tensor) -> list[list[float]]:
        found: list[list[float]] = F.linear(states_SD.float(), *self._head).cpu().numpy().tolist()
        return found

    def _write(self, tasks: Sequence[Task]) -> list[Task]:
        """Prefill, decide, and take the drafts into the loop; the tasks whose constraint cannot be read."""
        ids_ST, mask_ST = self._padded([task.prompt for task in tasks])
        outputs = prefill(self._lm, ids_ST, mask_ST, use_cache=True)
        drafts: list[tuple[int, Draft]] = []
        for row, (task, first) in enumerate(
            zip(tasks, self._class_logits(outputs.last_hidden_state[:, -1]), strict=True)
        ):
            self._decide(task, first)
            try:
                task.drafts = self._drafts(task)
            except Exception as error:  # others share the batch
                task.error, task.drafts = error, []
            drafts += [(row, draft) for draft in task.drafts]
        # None for models with another kind of cache (Mamba): generate then recomputes the prompt.
        cache = getattr(outputs, "past_key_values", None)
        rows = [row for row, _ in drafts]
        if rows and rows != list(range(len(tasks))) and type(cache) is not DynamicCache:
            ids_ST, mask_ST, drafts = ids_ST[rows], mask_ST[rows], list(enumerate(draft for _, draft in drafts))
            outputs = prefill(self._lm, ids_ST, mask_ST, use_cache=True)
            cache = getattr(outputs, "past_key_values", None)
        if rows:
            logits_SV = LMHead.of(self._lm).logits(outputs.last_hidden_state[:, -1])
            self._loop.admit(ids_ST, mask_ST, cache, logits_SV, drafts)
        self._writing |= {id(draft): task for task in tasks for draft in task.drafts}
        return [task for task in tasks if task.error is not None]

    def _decide(self, task: Task, first: list[float]) -> None:
        """Keep the head's logits, and tell the decision; not of a text that is drawn anew."""
        if task.first:
            return
        task.first, task.reader = tuple(first), self.reader
        if self.reader.card.decide != "after" and bool(np.isfinite(first).all()):
            task.reading = self.reader.first(first)
            if task.on_reading is not None:
                task.on_reading(task.reading)

    def _drafts(self, task: Task) -> list[Draft]:
        """The explanations of a task that are to be written."""
        settings, reading = task.decoding, task.reading
        decided = [] if reading is None else [reading.label] if isinstance(reading.label, str) else reading.label
        prefix = told(settings.tell, decided, reading.probabilities) if reading else ""
        least, most = settings.sentences
        temperature = redraw_temperature(settings, task.redraws)
        single = settings.candidates == 1
        return [
            Draft(
                self._tokenizer,
                self._encoder.end_token,
                task.longest,
                Sampling(temperature, settings.top_p, settings.min_p, draw_seed(settings.seed, task.redraws, number)),
                self._constraints.constraint(settings, task.read or task.text, decided, task.longest),
                LengthBudget(settings.max_words, most, least),
                self._tokenizer.encode(prefix, add_special_tokens=False) if prefix else [],
                task.on_text if single else None,
                holds_back=task.holds_back,
                scored=not single,
                is_free=settings.form is None and not settings.quote_evidence,
            )
            for number in range(settings.candidates)
        ]

    def _is_to_be_redrawn(self, task: Task) -> bool:
        """Whether all of a task's explanations contradict its decision, and it may be drawn anew: it then is."""
        reading = task.reading
        if reading is None or task.is_cancelled or task.redraws >= task.decoding.redraws or any(_errors(task)):
            return False
        if not all(self.reader.contradicts(draft.text, reading) for draft in task.drafts):
            return False
        task.redraws += 1
        if task.on_redraw is not None:
            task.on_redraw()
        self._again.append(task)
        return True

    def _finish(self, tasks: Sequence[Task]) -> None:
        """Choose among the explanations of each task, and read the head after it where the model decides there."""
        chosen: list[tuple[Task, Draft, tuple[str, ...]]] = []
        for task in tasks:
            task.error = next(_errors(task), None)
            if task.error is None:
                chosen.append((task, *self._best(task)))
        after: Sequence[tuple[float, ...] | None] = [None] * len(chosen)
        if self.reader.card.decide != "before" and chosen:
            after = self._logits_after([(task.prompt, draft.given_tokens) for task, draft, _ in chosen])
        for (task, draft, others), logits in zip(chosen, after, strict=True):
            task.raw = self._raw(task, draft, others, logits)

    def _best(self, task: Task) -> tuple[Draft, tuple[str, ...]]:
        """The explanation to give, and the others."""
        drafts = task.drafts
        if len(drafts) == 1:
            return drafts[0], ()
        texts = [draft.text for draft in drafts]
        reading = task.reading
        contradicts = [reading is not None and self.reader.contradicts(text, reading) for text in texts]
        means = [draft.log_prob / (len(draft.tokens) + (not draft.is_cut)) for draft in drafts]  # and the end token
        best, *others = ranked(task.text, texts, means, contradicts, self.reader.names)
        return drafts[best], tuple(texts[place] for place in others)

    def _raw(
        self, task: Task, draft: Draft | None, others: tuple[str, ...] = (), after: tuple[float, ...] | None = None
    ) -> RawPrediction:
        shown = draft if task.explain else None
        return RawPrediction(
            first=task.first,
            after=after,
            explanation=None if shown is None else shown.text,
            truncated=task.truncated,
            cut=shown is not None and shown.is_cut,
            redraws=task.redraws,
            others=others if task.explain else (),
        )

    def _logits_after(self, written: Sequence[tuple[Ids, list[int]]]) -> list[tuple[float, ...]]:
        """The class logits at the end tokens of explanations."""
        end = self._encoder.end_token
        rows = [np.concatenate([prompt, np.array([*tokens, end], dtype=prompt.dtype)]) for prompt, tokens in written]
        found: list[tuple[float, ...]] = []
        for batch in [rows] if self._may_pad else [[row] for row in rows]:
            outputs = prefill(self._lm, *self._padded(batch), use_cache=False)
            found += map(tuple, self._class_logits(outputs.last_hidden_state[:, -1]))
        return found


def _errors(task: Task) -> Iterator[Exception]:
    return (draft.error for draft in task.drafts if draft.error is not None)


def _failed(task: Task) -> RawPrediction:
    return RawPrediction(
        task.first, None, None, task.truncated, error=first_line(task.error or ValueError("no answer"))
    )


def require_usable(settings: DecodingSettings, decide: str) -> DecodingSettings:
    """The settings for a model that decides ``before`` or ``after`` its explanation, or both.

    Raises:
        SettingsError: they do not go together, or need a decision that is not there yet.
    """
    if faults := list(settings.faults()):
        raise SettingsError("; ".join(faults))
    asks = "tell" if settings.tell != "nothing" else "state_decision" if settings.state_decision else None
    if decide == "after" and asks is not None:
        raise SettingsError(
            f"decoding.{asks} needs the decision before the explanation, but this model decides after it; leave it out"
        )
    if decide == "both" and asks == "tell":
        raise SettingsError(
            "decoding.tell puts the first decision before the explanation, from which this model decides again; leave "
            "it out, or use a model that decides before"
        )
    return replace(settings, redraws=0) if decide == "after" else settings


def redraw_temperature(settings: DecodingSettings, redraws: int) -> float:
    """The temperature of an explanation that was drawn ``redraws`` times before: the most probable one would return."""
    return max(settings.temperature, _REDRAW_TEMPERATURE) if redraws else settings.temperature


def draw_seed(seed: int, redraws: int, number: int = 0) -> int:
    """A seed of its own for each draw of each candidate, below 2^31."""
    return (seed * 1_000_003 + redraws * 1009 + number) % 2**31
