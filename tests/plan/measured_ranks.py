"""Run by test_measured.py on each rank: what real engines allocate and move in real optimizer steps.

Bytes in use are those of the C library's allocator (``mallinfo2``), read at every operation: they include every library
and thread. Traffic is read from the collectives that reach c10d.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from clsgen_dist.config import settings_from_yaml
from clsgen_dist.data.curriculum.stages import PlannedStage, Stage
from clsgen_dist.data.loader import Step
from clsgen_dist.data.pack import PackingStats, Sample, collate
from clsgen_dist.engine.world import process_group
from clsgen_dist.model.backbone import open_backbone
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.plan.dry_run import held_by_part
from clsgen_dist.training.build_engine import build_engine, loss_spec, zero_config
from clsgen_dist.training.step import TrainStep

WARM_UP = 2  # DeepSpeed records its trace in the second micro-step, and follows it from the third


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "mapped",
            "usmblks",
            "fsmblks",
            "used",
            "fordblks",
            "keepcost",
        )
    ]


_libc = ctypes.CDLL("libc.so.6")
_libc.mallinfo2.restype = _Mallinfo


def allocated():
    """Bytes in use, in the heap and in mapped blocks."""
    info = _libc.mallinfo2()
    return info.mapped + info.used


class Watch(TorchDispatchMode):
    """The peak of bytes in use after any operation, and the bytes of each collective's complete tensor, by kind."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self.traffic = defaultdict(int)
        self.order = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if func.namespace == "c10d" and name != "barrier":
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
            size = max(t.numel() * t.element_size() for t in tensors)
            self.traffic[name] += size
            self.order.append([name, size])
        result = func(*args, **(kwargs or {}))
        self.peak = max(self.peak, allocated())
        return result


def steps_of(case, vocabulary):
    """Micro-batches of one optimizer step; every other token is of the vocabulary's second half."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(case["micro_steps"]):
        samples = []
        for length in case["lengths"]:
            explained = case["supervised"] // len(case["lengths"])
            ids = rng.integers(0, vocabulary // 2, length) + np.arange(length) % 2 * (vocabulary // 2)
            ids = ids.astype(np.int32)
            samples.append(Sample(ids[: length - explained], ids[length - explained :], int(rng.integers(2))))
        text = case.get("text", 0)
        batches.append(collate(samples, replayed=[rng.integers(0, 100, text).astype(np.int32)] if text else []))
    planned = PlannedStage(Stage(name="all", epochs=1), 0, 0, 9, 9)
    return Step(batches, [], planned, 0.0, PackingStats(1.0, 1.0, len(batches)))


def saved(engine, folder):
    """Bytes of tensors in each file of this rank's checkpoint, and elements of its share of each parameter."""
    engine.save_checkpoint(str(folder), tag="saved", save_latest=False, exclude_frozen_parameters=True)
    files = {}
    for path in sorted((folder / "saved").glob(f"zero_pp_rank_{engine.global_rank}_*")):
        leaves = torch.utils._pytree.tree_leaves(torch.load(path, weights_only=False))
        files[path.name] = sum(t.numel() * t.element_size() for t in leaves if isinstance(t, torch.Tensor))
    return files, {name: p.ds_tensor.numel() for name, p in engine.module.named_parameters()}


def measure(case, world):
    settings = settings_from_yaml(case["settings"])
    config = zero_config(settings, world.size)
    backbone = AutoConfig.from_pretrained(settings.model.backbone)
    step = steps_of(case, backbone.vocab_size)
    with torch.device("meta"):  # imports the family's code, which is not the model's memory
        AutoModelForCausalLM.from_config(backbone)
    gc.collect()
    before = allocated()
    labels = LabelSpace.of(["a", "b"], "b")
    losses = loss_spec(settings.objectives, labels, None)
    head = HeadSpec(len(labels), labels.kind, settings.model.head_dropout)
    engine = build_engine(settings, config, open_backbone(settings.model.backbone), head, losses)
    train_step = TrainStep(
        engine, world, objectives=settings.objectives, optim=settings.optim, total_steps=9, seed=settings.seed
    )
    for number in range(WARM_UP):
        train_step(number, step, train_step.agree(step).counts)
    gc.collect()
    at_rest = allocated() - before
    seconds = []
    for number in range(case["timed_steps"]):
        start = time.perf_counter()
        train_step(WARM_UP + number, step, train_step.agree(step).counts)
        seconds.append(time.perf_counter() - start)
    with Watch() as watch:
        train_step(WARM_UP, step, train_step.agree(step).counts)
    parts = held_by_part(engine)
    files, partitions = saved(engine, Path(tempfile.gettempdir()) / f"clsgen-measured-{os.environ['MASTER_PORT']}")
    engine.destroy()
    del engine, train_step
    gc.collect()
    return {
        "peak": watch.peak - before,
        "at_rest": at_rest,
        "parts": parts,
        "traffic": dict(watch.traffic),
        "order": watch.order,
        "seconds": statistics.median(seconds) if seconds else None,
        "files": files,
        "partitions": partitions,
    }


def main():
    cases, out = json.loads(Path(sys.argv[-2]).read_text()), sys.argv[-1]
    with process_group(120) as world:
        report = {case["name"]: measure(case, world) for case in cases}
        Path(f"{out}.{world.size}.{world.rank}").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
