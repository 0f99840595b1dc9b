"""One rank of many, at full size, without memory: ``clsgen dryrun``.

The trainer's own code runs: ``build_engine`` builds and partitions the model, ``deepspeed.initialize`` makes the
ZeRO-3 engine, the trainer's ``TrainStep`` takes optimizer steps, ``save_checkpoint`` hands over its files. Tensors are
torch's fake tensors, which have shapes and no data; the other ranks are torch's fake process group, whose collectives
are recorded and return at once. So wrapping, partitions, the order and size of every collective, and the checkpoint's
layout are those of the code that will run, of any number of ranks.

Two things differ:

- A number read from a tensor (a norm, an overflow flag, a loss) is 1, or False: every step counts as a good one.
- Weights are not read: the backbone is built from its configuration, and the head starts at zero. So the collectives
  of the phase ``build`` are those of initializing weights, not of loading them.

:mod:`clsgen_dist.plan.fake_tensors` lists what replaces operations that fail or take too long on fake tensors.

Streams and overlap are the CPU's: the order is that in which collectives are issued. Not shown: bitsandbytes' 4 bits.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as torch_dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clsgen_dist.config import Settings
from clsgen_dist.data.curriculum.stages import PlannedStage, Stage
from clsgen_dist.data.loader import Step
from clsgen_dist.data.pack import PackingStats, Sample, collate
from clsgen_dist.engine.world import World
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.log import quiet_libraries
from clsgen_dist.model.backbone import backbone_path, open_backbone
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.context_length import require_context
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.objectives.normalization import StepCounts
from clsgen_dist.plan.fake_tensors import operations_for_fake_tensors
from clsgen_dist.plan.meta_model import open_config
from clsgen_dist.training.build_engine import build_engine, loss_spec, zero_config

WARM_UP = 2
"""Optimizer steps before the one that is recorded: DeepSpeed records the order of modules, then follows it."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective, as this rank issues it."""

    phase: str
    """``build``, ``forward``, ``backward`` (recomputation included) or ``step``."""
    op: str
    """c10d's name, like ``_allgather_base_``."""
    elements: int
    """Of the whole tensor."""
    dtype: str
    bytes: int
    """Of the whole tensor."""
    ranks: int
    """Of its group."""


@dataclass
class DryRun:
    """What one rank does and holds."""

    ranks: int
    parameters: int
    trainable: int
    units: dict[str, int] = field(default_factory=dict)
    """Modules that ZeRO-3 gathers as one, by class, and how many."""
    partitions: dict[str, int] = field(default_factory=dict)
    """Elements of this rank's share of each parameter, by name."""
    held: dict[str, int] = field(default_factory=dict)
    """Bytes that live between steps, by part."""
    build: list[Collective] = field(default_factory=list)
    """While model and engine are made."""
    step: list[Collective] = field(default_factory=list)
    """One optimizer step in the steady state, in order."""
    files: dict[str, int] = field(default_factory=dict)
    """Bytes of tensors in each file that this rank writes at a checkpoint."""
    seconds: float = 0.0


@contextlib.contextmanager
def fake_ranks(ranks: int) -> Iterator[World]:
    """Be rank 0 of so many; the others answer at once, with nothing."""
    import deepspeed
    import torch.distributed._tools.fake_collectives
    from torch.testing._internal.distributed.fake_pg import FakeStore

    quiet_libraries()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks))
    torch_dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    try:
        yield World(0, ranks, torch.device("cpu"), "dry run")
    finally:
        torch_dist.destroy_process_group()


def dry_run(
    settings: Settings, world: World, *, lengths: list[int], supervised: int, micro_steps: int = 2, classes: int = 2
) -> DryRun:
    """Build, train some steps, save, inside :func:`fake_ranks`; nothing is written.

    Cost: for 70B half a minute and less than 1 GB, whatever the number of ranks.

    Args:
        lengths: tokens of each sequence in a micro-batch.
        supervised: how many tokens of a micro-batch carry generation loss.
        micro_steps: of an optimizer step.

    Raises:
        SettingsError, ModelError: what training would refuse too; ``model.load_in_4bit``.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    start = time.monotonic()
    settings = copy.deepcopy(settings)
    if settings.model.load_in_4bit:
        raise SettingsError(
            "model.load_in_4bit quantises weights as they are read, and a dry run reads none; set it to false"
        )
    backbone = backbone_path(settings.model.backbone)
    data = settings.data
    require_context(open_config(backbone), data.max_prompt_length, data.max_explanation_length)
    opened = open_backbone(backbone, weights=False)
    config = zero_config(settings, world.size)
    kind = settings.data.label_space
    labels = LabelSpace.of([f"class {n}" for n in range(classes)], "class 0", "single" if kind == "auto" else kind)
    share = _share(lengths, supervised, micro_steps)
    recorder = CollectiveRecorder(world.size)
    with operations_for_fake_tensors(), FakeTensorMode(allow_non_fake_inputs=True), recorder:
        head = HeadSpec(len(labels), labels.kind, settings.model.head_dropout)
        engine = build_engine(settings, config, opened, head, _losses(settings, labels))
        named = dict(engine.module.named_parameters())
        found = DryRun(
            world.size,
            sum(p.ds_numel for p in named.values()),
            sum(p.ds_numel for p in named.values() if p.requires_grad),
            _units(engine.module),
            {name: p.ds_tensor.numel() for name, p in named.items()},
            build=recorder.drain(),
        )
        found.step = _train(settings, world, engine, share, recorder)
        found.held = held_by_part(engine)
        found.files = _files(engine, world)
        engine.destroy()
    found.seconds = time.monotonic() - start
    return found


def _losses(settings: Settings, labels: LabelSpace) -> LossSpec:
    """How the losses are computed, without class weights: the rows' classes are not known here."""
    section = dataclasses.replace(settings.objectives.classification, class_weights=None)
    objectives = dataclasses.replace(settings.objectives, classification=section)
    stand_ins = range(len(labels))
    return loss_spec(objectives, labels, None, decide=settings.model.decide, name_tokens=stand_ins)


def held_by_part(engine: Any) -> dict[str, int]:
    """Bytes of what an engine holds between steps, from the tensors themselves."""

    def size(tensors: Any) -> int:
        return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())

    zero = engine.optimizer
    states = [
        v for s in zero.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.numel() > 1
    ]
    return {
        "weights": size([p.ds_tensor for p in engine.module.parameters()]),
        "master weights": size(zero.fp32_partitioned_groups_flat),
        "gradients": size([zero.grad_partitions_flat_buffer]),
        "optimizer": size(states),
        "reduce bucket": size([b.buffer for b in zero.ipg_buckets.values()]),
    }


def _share(lengths: list[int], supervised: int, micro_steps: int) -> Step:
    """A rank's share of an optimizer step: packed sequences of zeros."""
    samples = []
    for length in lengths:
        explained = min(length - 1, supervised // len(lengths))
        samples.append(Sample(np.zeros(length - explained, np.int32), np.zeros(explained, np.int32), 0))
    stage = PlannedStage(Stage(name="all", epochs=1), 0, 0, 9, 9)
    return Step([collate(samples) for _ in range(micro_steps)], [], stage, 0.0, PackingStats(1.0, 1.0, micro_steps))


def _train(
    settings: Settings, world: World, engine: Any, share: Step, recorder: CollectiveRecorder
) -> list[Collective]:
    from clsgen_dist.training.step import TrainStep

    train_step = TrainStep(
        engine, world, objectives=settings.objectives, optim=settings.optim, total_steps=WARM_UP + 1, seed=settings.seed
    )
    counts = StepCounts(
        {t.name: float(world.size * sum(t.count(b) for b in share.batches)) for t in train_step.terms},
        tokens=float(world.size * sum(b.tokens for b in share.batches)),
    )
    for name, phase in (("backward", "backward"), ("step", "step")):
        setattr(engine, name, _in_phase(recorder, phase, getattr(engine, name)))
    recorder.phase = "forward"
    for number in range(WARM_UP + 1):
        recorder.drain()
        taken = share if number == WARM_UP else dataclasses.replace(share, batches=share.batches[:1])
        train_step.agree(taken)  # for its collective: the other ranks' counts are unknown
        train_step(number, taken, counts)
    return recorder.drain()


def _in_phase(recorder: CollectiveRecorder, phase: str, call: Any) -> Any:
    """``call``, during which collectives are of that phase; the last gradients leave after autograd is through."""

    def called(*args: Any, **kwargs: Any) -> Any:
        before, recorder.phase = recorder.phase, phase
        result = call(*args, **kwargs)
        recorder.phase = before
        return result

    return called


def _units(model: nn.Module) -> dict[str, int]:
    from deepspeed.utils import z3_leaf_module

    return dict(Counter(type(module).__name__ for module in model.modules() if z3_leaf_module(module)))


class CollectiveRecorder(TorchDispatchMode):
    """Records collectives, answers for numbers that are read, and lets real tensors (positions, labels) stay real."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.phase = "build"
        self._ranks = ranks
        self._recorded: list[Collective] = []

    def drain(self) -> list[Collective]:
        """What was recorded since the last call."""
        recorded, self._recorded = self._recorded, []
        return recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor
        from torch.utils._mode_utils import no_dispatch

        name = func._overloadpacket.__name__
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if func.namespace == "c10d" and name != "barrier":
            self._record(name, max(tensors, key=lambda t: t.numel()), args)
        if tensors and not any(isinstance(t, FakeTensor) for t in tensors):
            with no_dispatch():
                return func(*args, **(kwargs or {}))
        if name == "_local_scalar_dense":
            return False if tensors[0].dtype == torch.bool else 1.0 if tensors[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))

    def _record(self, op: str, whole: torch.Tensor, args: Any) -> None:
        group = next((a for a in args if isinstance(a, torch.ScriptObject)), None)
        ranks = torch_dist.ProcessGroup.unbox(group).size() if group is not None else self._ranks
        phase = "backward" if torch._C._current_graph_task_id() != -1 else self.phase
        kind = str(whole.dtype).removeprefix("torch.")
        self._recorded.append(
            Collective(phase, op, whole.numel(), kind, whole.numel() * whole.element_size(), ranks),
        )


class _FileSizes(CheckpointEngine):
    """Adds up the tensors of each file instead of writing it."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, int] = {}

    def create(self, info: Any) -> None:
        pass

    def save(self, state_dict: Any, path: str) -> None:
        tensors = [t for t in torch.utils._pytree.tree_leaves(state_dict) if isinstance(t, torch.Tensor)]
        self.files[Path(path).name] = sum(t.numel() * t.element_size() for t in tensors)

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("a dry run writes nothing that could be loaded")

    def commit(self, info: Any) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False


def _files(engine: Any, world: World) -> dict[str, int]:
    import tempfile

    engine.checkpoint_engine = sizes = _FileSizes()
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag="dry-run", save_latest=False, exclude_frozen_parameters=True)
    return sizes.files
