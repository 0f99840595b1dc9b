"""Order and batches: which rows an optimizer step sees, and how they are spread over ranks and micro-batches.

The stream of rows is a pure function of (seed, position): epoch ``e`` is a permutation drawn from (seed, e), and step
``k`` takes positions ``[k·B, (k+1)·B)``. World size and micro-batch only say who computes which of them, so the state
to resume is the step number. Every rank runs the same number of micro-steps; one that has no row left for a micro-step
runs a stand-in of weight zero, since ZeRO-3's gathers are collectives.

Several explanations of a row are taken in turn over the epochs, starting at a place drawn from the row's index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from clsgen_dist.data.encode import EncodedRow

# S sequences, T padded length, n supervised tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a micro-step, right-padded. Positions count in the flattened ``S·T`` tokens."""

    input_ids_ST: Tensor
    attention_mask_ST: Tensor
    supervised_index_n: Tensor
    """Positions whose next token is supervised."""
    target_n: Tensor
    """Those next tokens."""
    class_index_S: Tensor
    """Position of each row's classification token."""
    label_S: Tensor
    """Class index, or -1 without label."""

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask_ST.sum())

    @property
    def supervised(self) -> int:
        """Tokens that carry generation loss."""
        return self.target_n.numel()

    @property
    def labelled(self) -> int:
        """Rows that carry classification loss."""
        return int((self.label_S >= 0).sum())

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The model's keyword arguments, on ``device``."""
        return {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}


def collate(rows: Sequence[tuple[EncodedRow, tuple[int, ...]]], *, pad_token: int) -> Batch:
    """A batch of rows, each with the explanation chosen for it (empty: the prompt alone)."""
    sequences = [row.prompt + explanation for row, explanation in rows]
    length = max(len(s) for s in sequences)
    input_ids = torch.full((len(rows), length), pad_token)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    supervised: list[int] = []
    target: list[int] = []
    class_index: list[int] = []
    for s, (row, explanation) in enumerate(rows):
        input_ids[s, : len(sequences[s])] = torch.tensor(sequences[s])
        mask[s, : len(sequences[s])] = 1
        last = s * length + len(row.prompt) - 1
        class_index.append(last)
        supervised.extend(range(last, last + len(explanation)))
        target.extend(explanation)
    return Batch(
        input_ids,
        mask,
        torch.tensor(supervised, dtype=torch.int64),
        torch.tensor(target, dtype=torch.int64),
        torch.tensor(class_index),
        torch.tensor([row.label for row, _ in rows]),
    )


def stand_in(row: EncodedRow, *, pad_token: int) -> Batch:
    """A batch with nothing to learn, for a rank that must run the modules all the same."""
    batch = collate([(row, ())], pad_token=pad_token)
    batch.label_S.fill_(-1)
    return batch


class TrainStream:
    """The batches of a run, by step.

    Args:
        rows: the training rows.
        seed, batch_size, epochs: the order, see above; ``batch_size`` is over all ranks.
        rank, world_size, micro_batch_size: this rank's share.
        pad_token: any valid id; padding is masked by length.
    """

    def __init__(
        self,
        rows: Sequence[EncodedRow],
        *,
        seed: int,
        batch_size: int,
        epochs: float,
        rank: int,
        world_size: int,
        micro_batch_size: int,
        pad_token: int,
    ) -> None:
        self.rows, self.seed, self.batch_size, self.pad_token = rows, seed, batch_size, pad_token
        self.rank, self.world_size = rank, world_size
        self.positions = max(1, round(epochs * len(rows)))
        self.steps = math.ceil(self.positions / batch_size)
        self.accumulation = accumulation_steps(batch_size, micro_batch_size, world_size)
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0))

    def at(self, position: int) -> tuple[EncodedRow, tuple[int, ...]]:
        """The row at a position of the stream, with the explanation chosen for it."""
        epoch, place = divmod(position, len(self.rows))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows)))
        index = int(self._epoch[1][place])
        row = self.rows[index]
        if not row.explanations:
            return row, ()
        return row, row.explanations[(epoch + index * 2654435761) % len(row.explanations)]

    def step(self, step: int) -> list[Batch]:
        """This rank's micro-batches of an optimizer step, ``accumulation`` of them whatever the step holds."""
        start = step * self.batch_size
        positions = np.arange(start, min(start + self.batch_size, self.positions))
        shares = np.array_split(positions, self.accumulation * self.world_size)[self.rank :: self.world_size]
        return [
            collate([self.at(int(p)) for p in share], pad_token=self.pad_token)
            if len(share)
            else stand_in(self.rows[0], pad_token=self.pad_token)
            for share in shares
        ]


def accumulation_steps(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro-steps per optimizer step, so that no rank holds more than ``micro_batch_size`` rows at once."""
    return math.ceil(batch_size / (micro_batch_size * world_size))


def evaluation_batches(
    rows: Sequence[EncodedRow], *, rank: int, world_size: int, batch_size: int, pad_token: int
) -> list[tuple[list[int], Batch]]:
    """This rank's share of the rows in order, with their indices; equally many batches on every rank.

    Each row comes with its first explanation. Rows of like length go together, so little padding is computed.
    """
    by_length = sorted(range(len(rows)), key=lambda i: (rows[i].length, i))
    per_round = batch_size * world_size
    batches: list[tuple[list[int], Batch]] = []
    for start in range(0, len(rows), per_round):
        share = by_length[start : start + per_round][rank::world_size]
        chosen = [(rows[i], rows[i].explanations[0] if rows[i].explanations else ()) for i in share]
        batches.append(
            (share, collate(chosen, pad_token=pad_token) if share else stand_in(rows[0], pad_token=pad_token))
        )
    return batches
