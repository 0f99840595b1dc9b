"""Packing: rows of any length become micro-batches of tokens without padding.

The rows of an optimizer step are distributed over ranks x micro-steps bins of at most ``budget`` tokens. Best-fit
decreasing gives the number of micro-steps; then the rows are balanced over that many bins (longest row first, always to
the emptiest bin), since under ZeRO-3 the ranks wait for each other at every layer. If the balanced bins overflow, the
best fit is used. Fuller bins run first and the order of ranks alternates, so that both the bins of a micro-step and the
sums of the ranks are balanced.

A packed batch is one row of N tokens. Sequences are distinguished by their starts, and positions restart at 0 in each,
so none attends to another (:mod:`clsgen_dist.model.attention`).

Cost: O(R log R) for R rows, a millisecond for a thousand; every rank computes the same bins from the lengths alone.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clsgen_dist.data.encode import Ids

# N packed tokens, S sequences, n supervised tokens, e tokens of evidence, c of counter-evidence, R rows to pack


@dataclass(frozen=True, slots=True)
class Sample:
    """One visit of a row: the tokens that the model sees."""

    prompt: Ids
    """Token ids up to and including the classification token."""
    explanation: Ids
    """Token ids of the explanation of this visit, end token included; may be empty."""
    label: int | np.ndarray
    """Class index, or -1 without label; several classes or votes: float32 ``[C]``, negative where not known."""
    evidence: Ids = field(default_factory=lambda: _NO_SPANS)
    """``[P, 2]`` tokens [start, stop) of the prompt that speak for the label."""
    counter_evidence: Ids = field(default_factory=lambda: _NO_SPANS)
    """``[P, 2]`` tokens [start, stop) of the prompt that speak against it."""
    rejected: Ids = field(default_factory=lambda: _NOTHING)
    """Token ids of an explanation that reviewers rejected, end token included; may be empty."""
    mismatched: Ids = field(default_factory=lambda: _NOTHING)
    """Token ids of another row's explanation, end token included; may be empty."""
    reference: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Log-probabilities before training, nats, of explanation, rejected and mismatched one; 0 where not known."""


OWN, REJECTED, MISMATCHED, REPLAYED = range(4)
"""Whose explanation a sequence has: its row's own, one that reviewers rejected, another row's; or a general text."""
_NOTHING: Ids = np.zeros(0, dtype=np.int32)
_NO_SPANS: Ids = np.zeros((0, 2), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a micro-step: sequences end to end, without padding.

    A row is one sequence, in order. After them come the rejected explanations and those of other rows, each with the
    prompt of the row that it is about, and general texts.
    """

    input_ids_N: Tensor
    position_N: Tensor
    """Position of each token in its sequence."""
    sequence_start_S1: Tensor
    """``[S + 1]`` where each sequence begins, and N (``cu_seqlens``); int32, as flash-attention expects."""
    longest: int
    """Tokens of the longest sequence."""
    supervised_index_n: Tensor
    """Positions whose next token is supervised."""
    target_n: Tensor
    """These next tokens."""
    class_index_S: Tensor
    """Position of each sequence's classification token."""
    end_index_S: Tensor
    """Position of the last token of each sequence's explanation; where it has none, the classification token's."""
    label_S: Tensor
    """Class index, or -1 without label; where some row has several classes or votes, float32 ``[S, C]``."""
    group_S: Tensor
    """Group of each sequence: those of one number may be compared with each other."""
    evidence_index_e: Tensor
    """Positions of evidence in all sequences."""
    evidence_row_e: Tensor
    """Their sequences, ascending."""
    counter_index_c: Tensor
    """Positions of counter-evidence."""
    counter_row_c: Tensor
    """Their sequences, ascending."""
    further_index_f: Tensor
    """Positions in the further sequences whose next token is one of an explanation."""
    further_target_f: Tensor
    """These next tokens."""
    role_S: Tensor
    """OWN for a row with its explanation or without any; REJECTED, MISMATCHED, REPLAYED for the further sequences."""
    of_S: Tensor
    """The row that each sequence is about; of a general text, itself."""
    replayed: int
    """Tokens of general text that are predicted: the last of the further ones."""
    replayed_texts: int
    """Sequences of general text, which are the last ones."""
    reference_S: Tensor
    """Log-probability of each sequence's explanation before training, nats; 0 if not known."""

    @property
    def tokens(self) -> int:
        """Tokens that run through the model."""
        return self.input_ids_N.numel()

    @property
    def is_dummy(self) -> bool:
        """Whether nothing is learnt from it: the batch of a rank without rows."""
        return not (self.supervised or self.labelled or self.further_target_f.numel())

    @property
    def supervised(self) -> int:
        """Tokens with generation loss."""
        return self.target_n.numel()

    @property
    def labelled(self) -> int:
        """Rows with classification loss."""
        return int(self.is_labelled.sum())

    @property
    def is_labelled(self) -> Tensor:
        """bool ``[S]``."""
        return (self.label_S.view(len(self.label_S), -1) >= 0).any(dim=1)

    @property
    def is_explained(self) -> Tensor:
        """bool ``[S]``."""
        return self.end_index_S != self.class_index_S

    @property
    def is_pair(self) -> Tensor:
        """bool ``[S]``: sequences with a rejected explanation, whose row has an explanation too."""
        return (self.role_S == REJECTED) & self.is_explained[self.of_S]

    @property
    def is_judged(self) -> Tensor:
        """bool ``[S]``: sequences with a row's explanation or a rejected one."""
        return self.is_explained | (self.role_S == REJECTED)

    @property
    def has_evidence(self) -> Tensor:
        """bool ``[S]``."""
        return torch.bincount(self.evidence_row_e, minlength=len(self.label_S)) > 0

    @property
    def has_target(self) -> Tensor:
        """bool ``[S]``: rows with a label or an explanation, as all training rows are; not those of a dummy batch."""
        return self.is_labelled | self.is_explained

    def inputs(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The model's keyword arguments, on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in values.items()}


def collate(
    samples: Sequence[Sample],
    groups: Sequence[int] | np.ndarray | None = None,
    replayed: Sequence[Ids] = (),
) -> Batch:
    """The samples end to end.

    Args:
        samples: the rows.
        groups: the group of each, by default one of its own.
        replayed: tokens of general texts, each all predicted but the first.
    """
    rows = len(samples)
    further = [(row, REJECTED, s.rejected) for row, s in enumerate(samples) if len(s.rejected)]
    further += [(row, MISMATCHED, s.mismatched) for row, s in enumerate(samples) if len(s.mismatched)]
    known = [samples[row].reference[role] for row, role, _ in further]
    about = [*range(rows), *(row for row, *_ in further)]
    of_S = np.array([*about, *range(len(about), len(about) + len(replayed))], dtype=np.int64)
    prompts_S = [samples[row].prompt for row in about] + [text[:1] for text in replayed]
    answers_S = [s.explanation for s in samples] + [answer for *_, answer in further] + [text[1:] for text in replayed]
    extra = len(of_S) - rows
    last_S, start_S1 = _ends(prompts_S, answers_S)
    index_S = [np.arange(last, last + len(answer)) for last, answer in zip(last_S, answers_S, strict=True)]
    lengths = np.diff(start_S1)
    group_S = np.arange(rows) if groups is None else np.asarray(groups, dtype=np.int64)
    labels = [s.label for s in samples]
    return Batch(
        torch.from_numpy(_joined([part for pair in zip(prompts_S, answers_S, strict=True) for part in pair])),
        torch.from_numpy(np.arange(start_S1[-1]) - np.repeat(start_S1[:-1], lengths)),
        torch.from_numpy(start_S1.astype(np.int32)),
        int(lengths.max()),
        torch.from_numpy(_joined(index_S[:rows])),
        torch.from_numpy(_joined(answers_S[:rows])),
        torch.from_numpy(last_S),
        # Further sequences have no end at which a decision is read.
        torch.from_numpy(np.concatenate([start_S1[1 : rows + 1] - 1, last_S[rows:]])),
        _labels(labels + [-1] * extra),
        torch.from_numpy(np.concatenate([group_S[about], np.full(len(replayed), -1)])),
        *_spans([s.evidence for s in samples], start_S1),
        *_spans([s.counter_evidence for s in samples], start_S1),
        torch.from_numpy(_joined(index_S[rows:])),
        torch.from_numpy(_joined(answers_S[rows:])),
        torch.tensor([OWN] * rows + [role for _, role, _ in further] + [REPLAYED] * len(replayed)),
        torch.from_numpy(of_S),
        sum(len(text) - 1 for text in replayed),
        len(replayed),
        torch.tensor([*(s.reference[OWN] for s in samples), *known, *(0.0 for _ in replayed)]),
    )


def _ends(prompts_S: Sequence[Ids], answers_S: Sequence[Ids]) -> tuple[np.ndarray, np.ndarray]:
    """``[S]`` position of each prompt's last token, and ``[S + 1]`` where each sequence begins, and the end."""
    prompt_S, answer_S = (np.array([len(part) for part in parts]) for parts in (prompts_S, answers_S))
    start_S1 = np.concatenate([[0], np.cumsum(prompt_S + answer_S)])
    return start_S1[:-1] + prompt_S - 1, start_S1


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)


def _spans(spans_S: Sequence[Ids], start_S1: np.ndarray) -> tuple[Tensor, Tensor]:
    """Positions in these spans of each sequence, and the sequence of each."""
    indices = [np.arange(*span) + at for spans, at in zip(spans_S, start_S1, strict=False) for span in spans]
    rows = [row for row, spans in enumerate(spans_S) for _ in spans]
    nothing = [np.zeros(0, dtype=np.int64)]
    return (
        torch.from_numpy(np.concatenate(nothing + indices)),
        torch.from_numpy(np.repeat(np.array(rows, dtype=np.int64), [len(index) for index in indices])),
    )


def _labels(labels: Sequence[int | np.ndarray]) -> Tensor:
    """Class indices ``[S]``, or answers ``[S, C]`` where some row has any: an index is then one class for certain."""
    answers = [label for label in labels if isinstance(label, np.ndarray)]
    if not answers:
        return torch.tensor(labels)
    label_SC = np.full((len(labels), len(answers[0])), -1.0, dtype=np.float32)
    for row, label in enumerate(labels):
        if isinstance(label, np.ndarray):
            label_SC[row] = label
        elif label >= 0:
            label_SC[row] = np.arange(label_SC.shape[1]) == label
    return torch.from_numpy(label_SC)


def dummy_batch(token: int) -> Batch:
    """A batch without any loss, for a rank without rows, which must run the modules all the same."""
    return collate([Sample(np.full(2, token, dtype=np.int32), np.zeros(0, dtype=np.int32), -1)])


Bins = list[list[np.ndarray]]
"""``bins[micro_step][rank]``: indices of rows, ascending; may be empty."""


def pack(length_R: np.ndarray, *, budget: int, ranks: int, padded: bool = False) -> Bins:
    """Pack the rows into bins of at most ``budget`` tokens, the same number of micro-steps for every rank.

    ``padded``: each row of a bin counts with the length of the longest.

    Raises:
        ValueError: a row is longer than the budget.
    """
    if len(length_R) and length_R.max() > budget:
        raise ValueError(f"a row has {length_R.max()} tokens, more than the budget of {budget}")
    longest_first = np.argsort(-length_R, kind="stable")
    fitted = (_padded_fit if padded else _best_fit)(length_R, longest_first, budget)
    micro_steps = max(1, -(-len(fitted) // ranks))
    empty = [np.zeros(0, dtype=np.int64)] * (micro_steps * ranks - len(fitted))
    even = _even_padded_fit if padded else _even_fit
    bins = even(length_R, longest_first, micro_steps * ranks, budget) or fitted + empty
    fullest_first = sorted(bins, key=lambda rows: -int(length_R[rows].sum()))
    steps = [fullest_first[m * ranks : (m + 1) * ranks] for m in range(micro_steps)]
    return [step if m % 2 == 0 else step[::-1] for m, step in enumerate(steps)]


def pack_groups(
    length_R: np.ndarray, *, group: int, budget: int, ranks: int, padded: bool = False, alone: int = 0
) -> Bins:
    """As :func:`pack`, with every ``group`` consecutive rows in one bin; the last ``alone`` belong to no group.

    Raises:
        ValueError: a group is longer than the budget.
    """
    grouped = len(length_R) - alone
    starts = np.concatenate([np.arange(0, grouped, group), np.arange(grouped, len(length_R))])
    if group == 1 or not len(starts):
        return pack(length_R, budget=budget, ranks=ranks, padded=padded)
    if padded:
        bins = pack(np.maximum.reduceat(length_R, starts), budget=budget // group, ranks=ranks, padded=True)
    else:
        bins = pack(np.add.reduceat(length_R, starts), budget=budget, ranks=ranks)
    members = np.split(np.arange(len(length_R)), starts[1:])
    return [[np.concatenate([starts[:0], *(members[g] for g in groups)]) for groups in step] for step in bins]


def _even_fit(length_R: np.ndarray, longest_first: np.ndarray, count: int, budget: int) -> list[np.ndarray] | None:
    """Longest row first, each to the emptiest bin; None if one overflows."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, b) for b in range(count)]
    for row in longest_first:
        load, emptiest = loads[0]
        load += int(length_R[row])
        if load > budget:
            return None
        heapq.heapreplace(loads, (load, emptiest))
        bins[emptiest].append(int(row))
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in bins]


def _padded_fit(length_R: np.ndarray, longest_first: np.ndarray, budget: int) -> list[np.ndarray]:
    """Longest row first, as many rows per bin as fit when padded to its first: the least padding."""
    bins: list[list[int]] = []
    for row in longest_first:
        if not bins or length_R[bins[-1][0]] * (len(bins[-1]) + 1) > budget:
            bins.append([])
        bins[-1].append(int(row))
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in bins]


def _even_padded_fit(
    length_R: np.ndarray, longest_first: np.ndarray, count: int, budget: int
) -> list[np.ndarray] | None:
    """The same in ``count`` bins, with the smallest budget for which they suffice."""
    if not len(length_R):
        return None
    low, high = int(length_R.max()), budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_padded_fit(length_R, longest_first, middle)) <= count else (middle + 1, high)
    bins = _padded_fit(length_R, longest_first, low)
    return bins + [np.zeros(0, dtype=np.int64)] * (count - len(bins))


def _best_fit(length_R: np.ndarray, longest_first: np.ndarray, budget: int) -> list[np.ndarray]:
    """Longest row first, each to the fullest bin that still holds it, or to a new one."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, bin), ascending
    for row in longest_first:
        length = int(length_R[row])
        at = bisect.bisect_left(rooms, (length, -1))
        if at < len(rooms):
            room, best = rooms.pop(at)
        else:
            room, best = budget, len(bins)
            bins.append([])
        bins[best].append(int(row))
        bisect.insort(rooms, (room - length, best))
    return [np.sort(np.array(rows, dtype=np.int64)) for rows in bins]


@dataclass(frozen=True)
class PackingStats:
    """How well a step's tokens are balanced; 1 is perfect."""

    efficiency: float
    """Tokens over ranks x (the fullest bin of each micro-step): the share of time that ranks do not wait."""
    imbalance: float
    """Tokens of the fullest rank, over the mean of the ranks."""
    micro_steps: int


def packing_stats(bins: Bins, length_R: np.ndarray) -> PackingStats:
    """Efficiency and balance of packed rows."""
    load_MW = np.array([[int(length_R[rows].sum()) for rows in step] for step in bins], dtype=np.float64)
    total = load_MW.sum()
    return PackingStats(
        efficiency=float(total / (load_MW.max(axis=1).sum() * load_MW.shape[1])) if total else 1.0,
        imbalance=float(load_MW.sum(axis=0).max() * load_MW.shape[1] / total) if total else 1.0,
        micro_steps=len(bins),
    )
