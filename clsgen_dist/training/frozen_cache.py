"""``train.cache_frozen``: what the frozen layers give for each sequence, computed once before the first step.

    sampling plan ──▶ the sequences that the run will visit, each once ──frozen layers──▶ frozen_states/ in output_dir
    every step: its sequences' states ──▶ the layers that learn

A sequence is a row's prompt with one of its explanations. The ranks share the sequences that are not there yet: a run
that is killed meanwhile goes on where it was, and a resumed run, on any number of ranks, computes nothing again. Which
steps start from kept states is agreed by all ranks, in the all-reduce that begins a step: where the bytes of a sequence
are not whole, the step is computed from its tokens.

Kept states are those of other packings. Of a sequence that shares its micro-batch with others, matrix products round
differently in the last bit with the number of their rows, so that losses agree within rounding; where the packings are
equal, they are equal bit by bit.

Cost: one forward pass of the frozen layers over every sequence that the run visits; their states on the disk, ``T D``
numbers a sequence of T tokens, or ``2 D`` and 5 bytes a supervised token where no layer learns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import time
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clsgen_dist.checkpoint.saver import checkpoints_to_come
from clsgen_dist.config import Settings
from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.pack import Batch, Sample, collate, dummy_batch, pack
from clsgen_dist.data.tables.dataset import RowDataset
from clsgen_dist.data.tables.state_cache import FOLDER, StateCache
from clsgen_dist.engine.world import World
from clsgen_dist.errors import SettingsError, first_line
from clsgen_dist.model import frozen_layers
from clsgen_dist.model.backbone import Backbone, layer_stack
from clsgen_dist.model.frozen_layers import FrozenLayers, KnownStates
from clsgen_dist.model.self_test import FAULTS, ROUNDING_SAME_SHAPES, relative_difference
from clsgen_dist.training.sampling_plan import total_steps
from clsgen_dist.training.settings import TrainSettings
from clsgen_dist.training.visited_sequences import Visited, visited_sequences

logger = logging.getLogger(__name__)

_BLOCK = 4096
"""Sequences that are packed at once."""
_FILLS = 2
"""Times that a sequence is written before the disk is taken to be at fault."""
_SLACK = 64 * 2**20
"""Bytes for logs and the like that stay free on the disk, beside checkpoints."""
_READS_LAST_STATES = ("generation", "classification", "classification_after")
"""Terms that read no more than is kept where no layer learns."""


class Unusable(Exception):
    """Why frozen layers cannot be computed once, or need not be."""


def attach_frozen_states(
    engine: Any,
    stream: TrainStream,
    backbone: Backbone,
    settings: Settings,
    sample: Sample,
    world: World,
    *,
    steps: int,
    evaluates: bool,
) -> None:
    """Make the stream's steps carry what the frozen layers gave, computing what is not there yet; collective.

    Args:
        engine: the ZeRO-3 engine, tested; left in training mode.
        stream: of the run.
        backbone: as opened; its files are part of the key.
        settings: of the run.
        sample: plain text, on which the start from kept states is tried.
        world: this rank among the others.
        steps: that are left; with 0, nothing is computed.
        evaluates: whether there are dev rows.

    Raises:
        SettingsError: ``train.cache_frozen`` is ``on`` and something forbids it.
    """
    mode = settings.train.cache_frozen
    if mode == "off" or not steps:
        return
    saves = settings.checkpoint
    checkpoint_size, checkpoints = checkpoints_to_come(
        engine, world, Path(settings.output_dir) / "checkpoints", steps,
        every=saves.every, eval_every=settings.train.eval_every if evaluates else None, keep_last=saves.keep_last,
    )  # fmt: skip
    reserve = int(checkpoint_size * checkpoints * 1.02) + _SLACK
    try:
        _attach(engine, stream, backbone, settings, sample, world, reserve)
    except Unusable as why:
        engine.module.frozen_layers = None
        if mode == "on":
            raise SettingsError(f"train.cache_frozen is on, but {why}") from None
        if world.is_main:
            with contextlib.suppress(OSError):
                StateCache.delete(Path(settings.output_dir) / FOLDER)
        logger.info("train.cache_frozen: the frozen layers are computed in every step, as %s", why)


def _attach(
    engine: Any, stream: TrainStream, backbone: Backbone, settings: Settings, sample: Sample, world: World, reserve: int
) -> None:
    model = engine.module
    _, layers = layer_stack(model.lm)
    frozen = FrozenLayers(layers, frozen_layers.first_that_learns(layers))
    require_possible(settings, layers=len(layers), first=frozen.first)
    assert isinstance(stream.rows, RowDataset)
    if model.layout == "padded":
        raise Unusable("this backbone needs padded rows, whose states depend on the padding; use another backbone")
    if found := frozen_layers.active_dropout(model.lm, frozen):
        raise Unusable(
            f"the frozen part drops out in training ({found}), so that each epoch sees other states; set it to 0"
        )
    visited = visited_sequences(stream, stream.rows, total_steps(stream, settings))
    model.frozen_layers = frozen
    form = _Form(_width(engine, frozen, sample), model.lm.dtype, all_frozen=frozen.first == len(layers))
    bytes_E = form.bytes(visited.length_E, visited.answer_E)
    require_worthwhile(settings.train, visits=visited.visits, sequences=len(bytes_E), size=int(bytes_E.sum()))
    key = _key(model, stream.rows, backbone, visited)
    cache = _open(Path(settings.output_dir) / FOLDER, world, key, bytes_E, reserve)
    _fill(engine, world, stream.rows, cache, visited, form, settings.train.micro_batch_tokens)

    def known_of(row_p: np.ndarray, visit_p: np.ndarray, limit: int | None) -> KnownStates | None:
        if not len(row_p):
            return form.of_dummy()
        entries = np.searchsorted(visited.key_E, rows.sequence_keys(row_p, visit_p, limit))
        content = cache.read_all(entries)
        if content is None:
            logger.warning(
                "%s: bytes of one of the sequences %s are not whole: the step is computed from tokens; to compute them "
                "again, delete the folder and resume",
                cache.folder,
                entries.tolist(),
            )
            return None
        return form.read(content, visited.answer_E[entries])

    rows = stream.rows
    stream.known_of = known_of


def require_possible(settings: Settings, *, layers: int, first: int) -> None:
    """Unusable if the settings forbid it, with ``first`` of so many layers the first that learns."""
    objectives = settings.objectives
    if first == 0:
        raise Unusable(
            f"every layer learns (model.finetune={settings.model.finetune}, model.top_layers "
            f"{settings.model.top_layers or 'not set'}); set model.top_layers, or finetune=head"
        )
    if settings.data.stream_window is not None:
        raise Unusable("rows are streamed (data.stream_window is set); leave it out")
    beside = [name for name in ("preference", "retention") if getattr(objectives, name).weight]
    if beside:
        raise Unusable(
            f"objectives.{beside[0]} puts other sequences beside the rows, which are not kept; set its weight to 0"
        )
    terms = objectives.terms(settings.model.decide)
    if first == layers and (others := [term.name for term in terms if term.name not in _READS_LAST_STATES]):
        raise Unusable(
            f"objectives.{others[0]} reads more of the last states than is kept with model.finetune=head; set its "
            "weight to 0"
        )
    asked = [layer for term in terms for layer in term.attention_layers]
    if low := [layer for layer in asked if layer % layers < first]:
        raise Unusable(
            f"objectives.evidence.layers has the layer {low[0]}, which is frozen: its attention is read in every step; "
            f"name layers from {first} on"
        )


def require_worthwhile(train: TrainSettings, *, visits: int, sequences: int, size: int) -> None:
    """Unusable if no sequence comes twice (unless the setting is on), or if their bytes are more than is allowed."""
    if train.cache_frozen == "auto" and visits <= sequences:
        raise Unusable(f"no sequence comes twice: {visits:,} visits of {sequences:,} sequences; raise train.epochs")
    if size > train.cache_frozen_gb * 1e9:
        raise Unusable(
            f"the states of {sequences:,} sequences have {size / 1e9:.3g} GB, more than train.cache_frozen_gb "
            f"{train.cache_frozen_gb:g}; raise it to {size / 1e9 * 1.01:.3g}, or set train.cache_frozen to off"
        )


def _width(engine: Any, frozen: FrozenLayers, sample: Sample) -> int:
    """Width of the states that are kept; Unusable if a start from them, or training mode, gives something else."""
    model = engine.module
    name = type(model.lm).__name__
    limit = ROUNDING_SAME_SHAPES[model.lm.dtype]
    batch = collate([sample, sample]).inputs(next(model.parameters()).device)
    engine.eval()
    try:
        with torch.no_grad():
            if frozen.first < len(frozen.layers):
                found = engine(inside=lambda model: frozen_layers.starts_equal(model, batch))
                if (difference := relative_difference(found["whole"], found["started"])) > limit:
                    raise Unusable(_cannot_start(name, f"its last states then differ by {difference:.1e}"))
            found = engine(inside=lambda model: frozen_layers.training_passes(model, batch))
    except FAULTS as error:
        # A pass that was broken off leaves weights gathered.
        engine.optimizer.parameter_offload.partition_all_parameters()
        raise Unusable(_cannot_start(name, first_line(error))) from None
    finally:
        engine.train()
    for passes, difference in (
        ("two passes over the same tokens", relative_difference(found["first"], found["second"])),
        ("training and evaluation", relative_difference(found["evaluated"], found["first"])),
    ):
        if not difference <= limit:
            raise Unusable(
                f"the frozen part of {name} gives other states in each training pass ({passes} differ by "
                f"{difference:.1e}); set what is random in its configuration to 0, such as router_jitter_noise"
            )
    return int(found["evaluated"].shape[1])


def _cannot_start(name: str, fault: str) -> str:
    return f"{name} cannot start from the states of a layer ({fault}); use another backbone"


def _open(folder: Path, world: World, key: str, bytes_E: np.ndarray, reserve: int) -> StateCache:
    """The files of this key on every rank, made if need be; Unusable if they cannot be. Collective.

    Args:
        reserve: bytes that must stay free on their disk.
    """
    fault = None
    if world.is_main:
        try:
            if StateCache.create(folder, key, bytes_E, reserve=reserve):
                logger.info("%s was of other rows, prompts or weights: it is computed again", folder)
        except OSError as error:
            room = f"needs {bytes_E.sum() / 1e9:.3g} GB, and checkpoints {reserve / 1e9:.3g} GB beside it"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            fault = (
                f"{folder} {room} ({error.strerror}); make room, or name another output_dir"
                if full
                else f"{folder} cannot be written ({error.strerror}); make it a folder, or name another output_dir"
            )
    if fault := world.broadcast(fault):
        raise Unusable(fault)
    return StateCache(folder, bytes_E)


def _key(model: Any, rows: RowDataset, backbone: Backbone, visited: Visited) -> str:
    """A digest of all that the kept states depend on."""
    import transformers

    folder = Path(backbone.path)
    files = sorted(p for p in folder.glob("*") if p.is_file()) if folder.is_dir() else []
    sequences = b"".join(column.tobytes() for column in (visited.key_E, visited.length_E, visited.answer_E))
    spec, frozen = model.loss_spec, model.frozen_layers
    depends_on = {
        "rows and prompt": rows.fingerprint,
        "prompt before the text": len(rows.encoder.rendered.prefix_ids),
        "sequences": hashlib.sha256(sequences).hexdigest(),
        "backbone": [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files],
        "layers": [frozen.first, len(frozen.layers)],
        "computed by": [
            str(model.lm.dtype),
            bool(getattr(model.lm, "is_quantized", False)),
            next(model.parameters()).device.type,
            model.lm.config._attn_implementation,
            transformers.__version__,
        ],
        "losses of tokens": [spec.impl, dataclasses.asdict(spec.generation)],
    }
    return hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()


@dataclass(frozen=True)
class _Form:
    """How a sequence's bytes are read and written."""

    width: int
    dtype: torch.dtype
    _: KW_ONLY
    all_frozen: bool

    def bytes(self, length_E: np.ndarray, answer_E: np.ndarray) -> np.ndarray:
        return frozen_layers.content_bytes(
            length_E, answer_E, self.width, self.dtype.itemsize, all_frozen=self.all_frozen
        )

    def read(self, content: np.ndarray, answer_S: np.ndarray) -> KnownStates:
        return frozen_layers.known_states(content, answer_S, self.width, self.dtype, all_frozen=self.all_frozen)

    def of_dummy(self) -> KnownStates:
        return frozen_layers.stand_in_states(self.all_frozen, self.width, self.dtype)

    def computed(self, model: Any, batch: dict[str, Any]) -> KnownStates:
        if self.all_frozen:
            return frozen_layers.final_states(model, batch)
        return KnownStates(frozen_layers.entering_states(model, batch))


def _fill(
    engine: Any, world: World, rows: RowDataset, cache: StateCache, visited: Visited, form: _Form, budget: int
) -> None:
    """Compute the sequences that are not there, or not whole; collective. The engine is left in training mode."""
    missing_E = _missing(cache, world)
    if not len(missing_E):
        return
    done = len(visited.key_E) - len(missing_E)
    logger.info("frozen layers: computing the states of %d sequences (%d are there)", len(missing_E), done)
    start = time.perf_counter()
    for _ in range(_FILLS):
        engine.eval()
        with torch.no_grad():
            _compute(engine, world, rows, cache, visited, form, budget, missing_E)
        engine.train()
        cache.flush()
        world.barrier()
        cache.reopen()
        missing_E = _missing(cache, world)
        if not len(missing_E):
            break
    else:
        raise Unusable(
            f"{len(missing_E)} of the sequences in {cache.folder} are not whole after {_FILLS} writes; "
            "check its disk, or name another output_dir"
        )
    seconds = time.perf_counter() - start
    logger.info("frozen layers: %.3g GB in %s, in %.1f s", cache.size / 1e9, cache.folder, seconds)


def _missing(cache: StateCache, world: World) -> np.ndarray:
    """The entries that are not there, or not whole, ascending; each rank reads its share. Collective."""
    return np.sort(np.concatenate(world.gather(cache.missing(world.rank, world.size))))


def _compute(
    engine: Any,
    world: World,
    rows: RowDataset,
    cache: StateCache,
    visited: Visited,
    form: _Form,
    budget: int,
    missing_E: np.ndarray,
) -> None:
    budget = max(budget, int(visited.length_E.max()))
    for first in range(0, len(missing_E), _BLOCK):
        block = missing_E[first : first + _BLOCK]
        for ranks in pack(visited.length_E[block], budget=budget, ranks=world.size):
            mine = block[ranks[world.rank]]
            batch = _batch(rows, visited, mine).inputs(world.device)
            # DeepSpeed walks what a module returns, and knows dictionaries.
            known = KnownStates(**engine(inside=lambda model, batch=batch: vars(form.computed(model, batch))))
            contents = frozen_layers.contents(known, visited.length_E[mine], visited.answer_E[mine])
            for entry, content in zip(mine, contents, strict=False):  # a dummy batch has no entry
                cache.write(int(entry), content)


def _batch(rows: RowDataset, visited: Visited, entries: np.ndarray) -> Batch:
    samples = [
        rows.sample(int(visited.row_E[e]), int(visited.visit_E[e]), int(visited.limit_E[e]) or None) for e in entries
    ]
    return collate(samples) if samples else dummy_batch(rows.encoder.end_token)
