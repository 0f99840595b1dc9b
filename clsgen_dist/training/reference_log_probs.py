"""The log-probabilities of a table's explanations by the model as it is now: the reference of a run that begins.

Cost: one forward pass over every explanation with its prompt, shared by the ranks.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clsgen_dist.config import Settings
from clsgen_dist.data.encode import Ids
from clsgen_dist.data.pack import Sample, collate, dummy_batch, pack
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.reference import ReferenceLogProbs
from clsgen_dist.engine.world import World
from clsgen_dist.model.attention import rows_of_tokens
from clsgen_dist.training.datasets import Datasets
from clsgen_dist.training.dev_evaluation import without_terms

logger = logging.getLogger(__name__)


def attach_references(engine: Any, rows: Datasets, settings: Settings, world: World) -> None:
    """Give the rows the log-probabilities before training, if the preference term compares with these; collective.

    Call it before a checkpoint is loaded: then the model is that of the run's start.
    """
    preference = settings.objectives.preference
    if not preference.weight or preference.reference != "start":
        return
    for name in ("train", "dev"):
        of = getattr(rows, name)
        if not isinstance(of, RowDataset):
            continue
        path = Path(settings.output_dir) / f"reference-{name}.npz"
        key = f"{of.fingerprint}/{of.compared}/{settings.model.backbone}"
        found = ReferenceLogProbs.load(path, key) if world.is_main else None
        found = world.broadcast(found)
        if found is None:
            logger.info("computing the log-probabilities of the %s rows' explanations before training", name)
            padded = engine.module.layout == "padded"
            found = reference_log_probs(engine, of, world, budget=settings.train.micro_batch_tokens, padded=padded)
            if world.is_main:
                found.save(path, key)
        of.reference = found


def reference_log_probs(engine: Any, rows: RowDataset, world: World, *, budget: int, padded: bool) -> ReferenceLogProbs:
    """Of all explanations of the rows; collective. The engine is left in training mode."""
    table = rows.table
    of_E = np.repeat(np.arange(len(table)), np.diff(table.explanation_start_N1))
    of_R = np.repeat(np.arange(len(table)), np.diff(table.rejected_start_N1))
    of_N = np.arange(len(table)) if rows.compared == "mismatched" else np.zeros(0, dtype=np.int64)
    row_A = np.concatenate([of_E, of_R, of_N])
    which_E = np.arange(len(of_E)) - np.asarray(table.explanation_start_N1)[of_E]
    which_R = np.arange(len(of_R)) - np.asarray(table.rejected_start_N1)[of_R]

    def answer(at: int) -> Ids:
        if at < len(of_E):
            return table.explanation_ids(int(of_E[at]), int(which_E[at]))
        if (at := at - len(of_E)) < len(of_R):
            return table.rejected_ids(int(of_R[at]), int(which_R[at]))
        return rows.mismatched(at - len(of_R))

    answer_A = np.concatenate([table.explanation_length_E, table.rejected_length_R, rows.mismatched_lengths()[of_N]])
    length_A = rows.encoder.prompt_lengths(np.asarray(table.text_length_N)[row_A]) + answer_A
    found_A = np.zeros(len(row_A))
    with without_terms(engine):
        for ranks in pack(length_A, budget=budget, ranks=world.size, padded=padded):
            mine = ranks[world.rank]
            prompts = [rows.encoder.build_prompt(table.text_ids(int(row_A[at]))) for at in mine]
            samples = [Sample(prompt, answer(int(at)), -1) for prompt, at in zip(prompts, mine, strict=True)]
            batch = collate(samples) if samples else dummy_batch(rows.encoder.end_token)
            losses_n = engine(**batch.inputs(world.device)).generation_loss.cpu().double()
            row_n = rows_of_tokens(batch.sequence_start_S1, batch.tokens)[batch.supervised_index_n]
            sums_S = torch.zeros(len(batch.of_S), dtype=torch.float64).index_add(0, row_n, -losses_n)
            found_A[mine] = sums_S[: len(samples)].numpy()
    total = torch.from_numpy(found_A).to(world.device)
    world.all_reduce(total)
    found_A = total.cpu().numpy().astype(np.float32)
    parts = np.split(found_A, [len(of_E), len(of_E) + len(of_R)])
    return ReferenceLogProbs(*parts)
