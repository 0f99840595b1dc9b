"""Difficulty as the backbone sees it, before it is trained.

    loss_explanation   mean loss of the explanations' tokens after the prompt, nats per token
    loss_label         -log of the share of the row's class in softmax over the classes' names, each name's likelihood
                       after the prompt, over the complete name, nats
    confidence         minus the mean probability of the row's class over a short probing run
    variability        standard deviation of that probability over its epochs (data maps, Swayamdipta et al. 2020,
                       arXiv 2009.10795, eq. 1 and 2)

The probing run trains a classification head alone on the frozen backbone's states, for ten epochs, each row's
probability taken before the update on it: the training dynamics of a head, at the cost of one forward pass.

Rows are scored in blocks. Each block is a file next to the row table, written atomically: a killed run resumes, and
several processes or nodes that score the same rows share the blocks among themselves.

Cost: one forward pass over the rows (loss_explanation: over each explanation; loss_label: over each class). The
states of confidence and variability, 4 D bytes a row, stay on the disk; 16 blocks of them are in memory at a time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clsgen_dist.checkpoint.canary import canary_sample
from clsgen_dist.data.curriculum import difficulty
from clsgen_dist.data.pack import Batch, Sample, collate, pack
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.errors import DataError
from clsgen_dist.model.attention import choose_attention
from clsgen_dist.model.backbone import build_model, load_backbone, open_backbone
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.self_test import self_test

# N rows, R rows of a block, C classes, D hidden

_BLOCK = 1024
_PROBE_EPOCHS, _PROBE_BATCH, _PROBE_LR = 10, 64, 0.5
_PROBE_BLOCKS = 16
"""Blocks whose rows are shuffled together in an epoch of the probing run."""
BACKBONE_SCORERS = ("loss_explanation", "loss_label", "confidence", "variability")
"""Scorers that ask the backbone."""
SCORERS = (*difficulty.ROW_SCORERS, *BACKBONE_SCORERS)


def difficulty_scores(
    rows: RowDataset, weights: Mapping[str, float], *, backbone: str, compute: bool
) -> dict[str, np.ndarray]:
    """``[N]`` scores by name, each computed once and cached next to the rows.

    Args:
        rows: the rows.
        weights: the scorers wanted, by name.
        backbone: folder or hub id of the model that is asked.
        compute: whether scores of the backbone may be computed here; else they must be there already.

    Raises:
        DataError: no such scorer, one without a value for any row, or scores that must be there and are not.
    """
    unknown = [name for name in weights if name not in SCORERS]
    if unknown:
        raise DataError(f"curriculum.difficulty names {unknown[0]!r}, expected scorers among {', '.join(SCORERS)}")
    cache_key = _cache_key(rows, backbone)
    requested = [name for name in weights if name in BACKBONE_SCORERS]
    files = {name: difficulty.score_file(rows, name, cache_key) for name in requested}
    missing = [name for name in requested if difficulty.load(files[name]) is None]
    if missing and not compute:
        raise DataError(
            f"the scores {', '.join(missing)} of {rows.table.card.source} by {backbone} do not exist yet; compute "
            f"them once, before training: clsgen data score {rows.table.card.source} --config YOUR_RECIPE"
        )
    if missing:
        _Backbone(rows, backbone).score({name: files[name] for name in missing})
    scores = {
        name: np.asarray(np.load(files[name])) if name in files else difficulty.cached(rows, name) for name in weights
    }
    empty = [name for name, score_N in scores.items() if np.isnan(score_N).all()]
    if empty:
        raise DataError(
            f"scorer {empty[0]!r} has no value for any row of {rows.table.card.source} (no such column, label or "
            "explanation); drop it from curriculum.difficulty"
        )
    return scores


def _cache_key(rows: RowDataset, backbone: str) -> list[object]:
    files = sorted(p for p in Path(backbone).glob("*") if p.is_file()) if Path(backbone).is_dir() else []
    return [rows.fingerprint, backbone, [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]]


class _Backbone:
    """The frozen backbone, asked in blocks of rows."""

    def __init__(self, rows: RowDataset, backbone: str) -> None:
        self.rows, self.backbone = rows, backbone
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.type == "cuda"
        opened = open_backbone(backbone)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        lm: Any = load_backbone(
            opened,
            dtype=dtype,
            attention=choose_attention("auto", on_gpu=on_gpu, dtype=dtype, packed=True, lm=opened.meta),
        )
        self.model = build_model(
            lm.to(self.device),
            head=HeadSpec(2),
            finetune="head",
        ).to(self.device)
        self.model.eval()
        with torch.no_grad():
            found = self_test(self.model, canary_sample(rows.encoder))
        found.require_trainable(backbone)
        self.model.layout = found.layout
        self.budget = max(4096, rows.longest() + max(map(len, self._names()), default=0))

    def score(self, files: Mapping[str, Path]) -> None:
        """Write the files of the scorers named."""
        for file in files.values():
            file.parent.mkdir(parents=True, exist_ok=True)
        for name, of_block in (("loss_explanation", self._loss_explanation), ("loss_label", self._loss_label)):
            if name in files:
                blocks = self._blocks(name, files[name], of_block)
                difficulty.save(files[name], np.concatenate(blocks)[:, 0])
        if maps := {name: file for name, file in files.items() if name in ("confidence", "variability")}:
            states = self._blocks("states", next(iter(maps.values())).with_name(f"states-{self._key()}"), self._states)
            mean_N, std_N = probing_run(states, self.rows.label_N)
            values = {"confidence": -mean_N, "variability": std_N}
            for name, file in maps.items():
                difficulty.save(file, values[name])

    def _key(self) -> str:
        return hashlib.sha256(repr(_cache_key(self.rows, self.backbone)).encode()).hexdigest()[:12]

    def _blocks(self, what: str, target: Path, of_block: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
        """All blocks of a quantity in order, memory-mapped, whoever computes them."""
        from filelock import FileLock, Timeout
        from tqdm import tqdm

        folder = target.with_name(f"{target.stem}.blocks")
        folder.mkdir(exist_ok=True)
        starts = range(0, len(self.rows), _BLOCK)
        files = {start: folder / f"{start:012d}.npy" for start in starts}
        with tqdm(total=len(files), desc=what, unit="block", disable=None, leave=False) as bar:
            blocks = {start: difficulty.load(file) for start, file in files.items()}
            while missing := [start for start, block in blocks.items() if block is None]:
                bar.update(len(files) - len(missing) - bar.n)
                for start in missing:
                    with suppress(Timeout), FileLock(f"{files[start]}.lock", timeout=0):
                        if difficulty.load(files[start]) is None:
                            stop = min(start + _BLOCK, len(self.rows))
                            with torch.no_grad():
                                difficulty.save(files[start], of_block(np.arange(start, stop)))
                            bar.update()
                blocks |= {start: difficulty.load(files[start]) for start in missing}
                if all(blocks[start] is None for start in missing):
                    time.sleep(0.5)  # every block left is in the hands of another process
        return [block for block in blocks.values() if block is not None]

    def _names(self) -> list[list[int]]:
        return self.rows.encoder.tokens_of(self.rows.group_names)

    def _token_losses(self, samples: list[Sample]) -> np.ndarray:
        """``[samples, 2]`` sum of the supervised tokens' losses, and their number."""
        lengths = np.array([len(s.prompt) + len(s.explanation) for s in samples])
        sums = np.zeros((len(samples), 2))
        for [packed] in pack(lengths, budget=self.budget, ranks=1, padded=self.model.layout == "padded"):
            batch = collate([samples[int(i)] for i in packed])
            losses = self.model(**batch.inputs(self.device)).generation_loss.double().cpu().numpy()
            counts = np.array([len(samples[int(i)].explanation) for i in packed])
            ends = np.cumsum(counts)
            total = np.concatenate([[0.0], np.cumsum(losses)])
            sums[packed] = np.stack([total[ends] - total[ends - counts], counts], axis=1)
        return sums

    def _loss_explanation(self, row_R: np.ndarray) -> np.ndarray:
        starts = self.rows.table.explanation_start_N1
        samples, owner = [], []
        for place, row in enumerate(row_R):
            prompt = self.rows.sample(int(row)).prompt
            for which in range(int(starts[row + 1] - starts[row])):
                samples.append(Sample(prompt, self.rows.table.explanation_ids(int(row), which), -1))
                owner.append(place)
        score_R = np.full((len(row_R), 1), np.nan)
        if samples:
            sums = self._token_losses(samples)
            total, count = (np.bincount(owner, weights=sums[:, k], minlength=len(row_R)) for k in (0, 1))
            score_R[count > 0, 0] = (total / np.maximum(count, 1))[count > 0]
        return score_R

    def _loss_label(self, row_R: np.ndarray) -> np.ndarray:
        names = [np.array(ids, dtype=np.int32) for ids in self._names()]
        prompts = (self.rows.sample(int(row)).prompt for row in row_R)
        samples = [Sample(prompt, name, -1) for prompt in prompts for name in names]
        logp_RC = -self._token_losses(samples)[:, 0].reshape(len(row_R), len(names))
        label_R = self.rows.label_N[row_R]
        own_R = logp_RC[np.arange(len(row_R)), label_R]
        score_R = np.logaddexp.reduce(logp_RC, axis=1) - own_R
        return np.where(label_R >= 0, score_R, np.nan)[:, None]

    def _states(self, row_R: np.ndarray) -> np.ndarray:
        empty = np.zeros(0, dtype=np.int32)
        samples = [Sample(self.rows.sample(int(row)).prompt, empty, -1) for row in row_R]
        lengths = np.array([len(s.prompt) for s in samples])
        state_RD: np.ndarray | None = None
        for [packed] in pack(lengths, budget=self.budget, ranks=1, padded=self.model.layout == "padded"):
            batch: Batch = collate([samples[int(i)] for i in packed])
            inputs = batch.inputs(self.device)
            names = ("input_ids_N", "position_N", "sequence_start_S1", "longest")
            hidden_ND = self.model.hidden_states(*(inputs[name] for name in names))
            states = hidden_ND[inputs["class_index_S"]].float().cpu().numpy()
            state_RD = np.zeros((len(row_R), states.shape[1]), dtype=np.float32) if state_RD is None else state_RD
            state_RD[packed] = states
        assert state_RD is not None
        return state_RD


def probing_run(states: Sequence[np.ndarray], label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[N]`` mean and standard deviation over epochs of the probability of each row's class; NaN without label.

    A linear head on standardised states, AdamW at 0.5 / D (a step then moves a logit by a half at most), batches of 64.
    Each epoch draws a new order: blocks at random, the rows of 16 of them shuffled together. A row's probability is
    taken before the update on it.

    Args:
        states: blocks ``[R, D]`` of rows in order, fp32; may be memory-mapped.
        label_N: class index, or -1 without label.
    """
    start_B1 = np.concatenate([[0], np.cumsum([len(block) for block in states])])
    labelled = [np.flatnonzero(label_N[a:b] >= 0) for a, b in pairwise(start_B1)]
    sum_N, square_N = np.zeros(len(label_N)), np.zeros(len(label_N))
    if any(map(len, labelled)):
        hidden = states[0].shape[1]
        middle, scale = _moments(block[mine] for block, mine in zip(states, labelled, strict=True))
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        head = torch.nn.Linear(hidden, int(label_N.max()) + 1)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        optimizer = torch.optim.AdamW(head.parameters(), lr=_PROBE_LR / hidden)
        for _ in range(_PROBE_EPOCHS):
            order = rng.permutation(len(states))
            for window in np.split(order, range(_PROBE_BLOCKS, len(order), _PROBE_BLOCKS)):
                row = torch.from_numpy(np.concatenate([start_B1[b] + labelled[b] for b in window]))
                state = torch.from_numpy(np.concatenate([(states[b][labelled[b]] - middle) / scale for b in window]))
                label = torch.from_numpy(label_N[row].astype(np.int64))
                for batch in torch.randperm(len(row), generator=generator).split(_PROBE_BATCH):
                    logits = head(state[batch])
                    gold = logits.detach().softmax(1)[torch.arange(len(batch)), label[batch]].double().numpy()
                    sum_N[row[batch]] += gold
                    square_N[row[batch]] += gold**2
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(logits, label[batch]).backward()
                    optimizer.step()
    mean_N = np.where(label_N >= 0, sum_N / _PROBE_EPOCHS, np.nan)
    std_N: np.ndarray = np.sqrt(np.maximum(square_N / _PROBE_EPOCHS - mean_N**2, 0.0))
    return mean_N, std_N


def _moments(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """``[D]`` mean and standard deviation over all rows of the blocks, fp32."""
    count, total, square = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        count += len(block)
        total = total + block.sum(axis=0, dtype=np.float64)
        square = square + np.square(block, dtype=np.float64).sum(axis=0)
    middle = total / count
    scale = np.sqrt(np.maximum(square / count - middle**2, 0.0)) + 1e-6
    return middle.astype(np.float32), scale.astype(np.float32)
