"""What a run's stages ask of the ranks: steps, micro-steps, and the tokens of the fullest rank in each.

From the recipe's rows, by the planning and packing that training uses; or, where they are not available, from a given
number of rows of one length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from clsgen_kernels.launch import BY_TARGET
from clsgen_kernels.stored_logits import choose_storage

from clsgen_dist.config import Settings
from clsgen_dist.data.curriculum.stages import PlannedStage, plan_stages
from clsgen_dist.data.pack import Bins
from clsgen_dist.data.reading.records import is_local
from clsgen_dist.errors import SettingsError

if TYPE_CHECKING:
    from clsgen_dist.training.datasets import Datasets

# B rows of a step

_SAMPLED_STEPS = 32
"""Steps of a stage that are packed; the others are taken to be like them."""
_ROWS_UNKNOWN = 1_000_000


@dataclass(frozen=True)
class StageLoad:
    """A stage of the run, for the ranks."""

    name: str
    steps: int
    rows: int
    tokens: float
    """Of the whole stage, all ranks."""
    micro_steps: float
    """Per optimizer step."""
    fullest: float
    """Tokens of the fullest rank, mean over micro-steps: the others wait for it."""


@dataclass(frozen=True)
class Workload:
    """The run's stages, and a full micro-batch."""

    stages: list[StageLoad]
    row_tokens: float
    """Mean length of a row."""
    longest: int
    """Tokens of the longest row."""
    supervised_share: float
    """Of all tokens, those that carry generation loss."""
    budget: int
    """Largest micro-batch of the stages, in tokens."""
    note: str
    """Where the rows come from, for people."""
    assumed: bool
    """Whether the rows are neither read nor described completely by the user."""
    text_share: float = 0.0
    """Of all tokens, those of general texts beside the rows."""
    text_length: int = 0
    """Tokens of such a text."""
    rows: int = 0
    """Training rows."""

    def full_micro_batch(self) -> tuple[list[int], int, int]:
        """Lengths of the sequences of a micro-batch that fills the budget, its supervised tokens, its general texts.

        The texts are the last sequences.
        """
        texts = 0
        if self.text_share:
            most = max(1, (self.budget - 2) // self.text_length)
            texts = min(most, max(1, round(self.text_share * self.budget / self.text_length)))
        room = max(2, self.budget - texts * self.text_length)
        length = max(2, min(room, round(self.row_tokens)))
        lengths = [length] * (room // length)
        if rest := room - sum(lengths):
            lengths[-1] += rest  # a remainder of a few tokens would be a row that nobody has
        supervised = max(1, round(self.supervised_share * self.budget))
        return [*lengths, *[self.text_length] * texts], supervised, texts


def rows_are_available(settings: Settings) -> bool:
    """Whether the recipe's rows can be read here, so that none need be assumed."""
    return settings.data.stream_window is None and is_local(settings.data.train)


def workload_of_rows(settings: Settings, rows: Datasets, *, ranks: int) -> Workload:
    """The stages as training would pack them for ``ranks``; SettingsError, DataError as training raises them."""
    from clsgen_dist.data.tables.dataset import RowDataset
    from clsgen_dist.training.sampling_plan import plan_stream, total_steps

    train = rows.train
    if not isinstance(train, RowDataset):
        raise SettingsError("data.stream_window is set: state the rows with --rows and --tokens_per_row")
    # More ranks than rows in a step: one row each, and nothing for the others.
    stream = plan_stream(settings, rows, rank=0, world_size=min(ranks, settings.train.batch_size))
    total = total_steps(stream, settings)
    stages, lengths, prompts, texts = [], [], [], []
    for planned in stream.stages:
        steps = planned.steps_before(total)
        sampled = np.unique(np.linspace(0, steps - 1, min(steps, _SAMPLED_STEPS)).astype(int))
        loads, visited, row_count = [], [], 0
        for step in sampled + planned.first_step:
            row_B, _, length_B, bins = stream.bins(int(step))
            loads.append(_fullest(bins, length_B))
            visited.append(length_B)
            texts.append(length_B[len(row_B) :])
            row_count += len(row_B)
            prompts.append(
                train.encoder.prompt_lengths(train.table.text_length_N[row_B], planned.stage.max_prompt_length)
            )
        row_tokens = float(np.concatenate(visited).sum() / row_count)  # with what is packed beside the rows
        stages.append(_stage(planned, steps, settings.train.batch_size, row_tokens, loads))
        lengths += visited
    length_p, text_p = np.concatenate(lengths), np.concatenate(texts)
    text_share = float(text_p.sum() / length_p.sum())
    supervised = 1 - text_share - np.concatenate(prompts).sum() / length_p.sum()
    note = f"rows of {train.name}: {len(train)}, {length_p.mean():.0f} tokens each, {supervised:.0%} supervised"
    longest = max(train.longest(planned.stage.max_prompt_length) for planned in stream.stages)
    row_tokens = float((length_p.sum() - text_p.sum()) / (len(length_p) - len(text_p)))
    beside = (text_share, round(float(text_p.mean()))) if len(text_p) else (0.0, 0)
    return Workload(
        stages, row_tokens, longest, float(supervised), _budget(settings), note, False, *beside, rows=len(train)
    )


def assumed_workload(
    settings: Settings,
    *,
    ranks: int,
    rows: int | None,
    tokens_per_row: int | None,
    supervised_per_row: int | None,
) -> Workload:
    """The stages for rows of one length.

    Args:
        ranks: GPUs in all.
        rows: training rows; None: a million.
        tokens_per_row: explanation included; None: the longest row that the recipe takes.
        supervised_per_row: tokens of an explanation; None: the longest that the recipe takes.

    Raises:
        SettingsError: a row has no prompt, or does not fit the micro-batch.
    """
    data, train = settings.data, settings.train
    supervised = data.max_explanation_length if supervised_per_row is None else supervised_per_row
    length = tokens_per_row or data.max_prompt_length + supervised
    number = rows or _ROWS_UNKNOWN
    if not 0 <= supervised < length:
        raise SettingsError(
            f"--supervised_per_row is {supervised} of --tokens_per_row {length}, expected 0 or more, and fewer"
        )
    stages, lengths = [], []
    for planned in plan_stages(
        settings.curriculum.stages,
        rows=number,
        batch_size=train.batch_size,
        epochs=train.epochs,
        max_steps=train.max_steps,
    ):
        cut = length
        if planned.stage.max_prompt_length is not None:
            cut = min(length, planned.stage.max_prompt_length + supervised)
        budget = planned.stage.token_budget(train.micro_batch_tokens)
        if cut > budget:
            raise SettingsError(
                f"micro_batch_tokens is {budget}, but a row has {cut} tokens; raise it, or state --tokens_per_row"
            )
        steps = planned.steps_before(train.max_steps or planned.end)
        load = _fullest_of_equal_rows(train.batch_size, cut, budget=budget, ranks=ranks)
        lengths.append(cut)
        stages.append(_stage(planned, steps, train.batch_size, cut, [load]))
    note = f"{number:,} rows of {length} tokens, {supervised} of them supervised"
    assumed = rows is None or tokens_per_row is None
    if assumed:
        note = f"assumed: {note} (state --rows, --tokens_per_row, --supervised_per_row)"
    retention = settings.objectives.retention
    share = retention.share / (1 + retention.share) if retention.weight else 0.0  # texts as long as rows
    own = supervised / length * (1 - share)
    return Workload(stages, length, max(lengths), own, _budget(settings), note, assumed, share, length, number)


def _budget(settings: Settings) -> int:
    of_run = settings.train.micro_batch_tokens
    return max((stage.token_budget(of_run) for stage in settings.curriculum.stages), default=of_run)


def _fullest(bins: Bins, length_B: np.ndarray) -> list[int]:
    """Tokens of the fullest rank in each micro-step."""
    return [max(int(length_B[rows].sum()) for rows in step) for step in bins]


def _fullest_of_equal_rows(rows: int, length: int, *, budget: int, ranks: int) -> list[int]:
    """:func:`_fullest` of rows of one length, which packing spreads evenly, without packing them."""
    micro_steps = -(-rows // (budget // length * ranks))
    each, over = divmod(rows, micro_steps * ranks)
    return [length * (each + (step * ranks < over)) for step in range(micro_steps)]


def _stage(planned: PlannedStage, steps: int, batch_size: int, row_tokens: float, loads: list[list[int]]) -> StageLoad:
    rows = min(planned.positions, steps * batch_size)
    micro_steps = float(np.mean([len(load) for load in loads]))
    fullest = sum(map(sum, loads)) / sum(map(len, loads))
    return StageLoad(planned.stage.name, steps, rows, rows * row_tokens, micro_steps, fullest)


def stored_logits(settings: Settings, work: Workload, config: Any, element_size: int, head_ranks: int = 0) -> int:
    """Bytes of memory of their own that logits of a full micro-batch take between forward and backward, on an H100.

    As :func:`clsgen_kernels.stored_logits.choose_storage` decides; in the LM weight's gradient they take none. With an
    LM head in shards over ``head_ranks``, a rank has the tokens of all and its own rows of the vocabulary.
    """
    objectives, model = settings.objectives, settings.model
    if objectives.impl not in ("auto", "triton") or model.finetune == "head":
        return 0
    _, rows, _ = work.full_micro_batch()
    text = config.get_text_config(decoder=True)
    rows, vocabulary = rows * max(1, head_ranks), -(-text.vocab_size // max(1, head_ranks))
    slab = BY_TARGET["sm_90"].slab(rows, vocabulary, element_size)
    storage = choose_storage(
        rows,
        vocabulary,
        text.hidden_size,
        slab,
        element_size=element_size,
        learns=model.finetune == "full" and model.top_layers is None,
        store_bytes=round(objectives.stored_logits_gib * 2**30),
    )
    calls = 1 + len(objectives.terms_that_run_more(model.decide))
    return 0 if storage is None or storage.in_gradient else calls * storage.slabs * rows * slab * element_size
