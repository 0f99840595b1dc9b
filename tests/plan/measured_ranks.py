"""Run by test_measured.py on each rank: real engines, real optimizer steps; what they allocated and moved.

Bytes are those of the CPU allocator's own events, which torch.profiler records; traffic is read from the collectives
that reach c10d, whoever calls them.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from clsgen_dist.config import settings_from_yaml
from clsgen_dist.data.curriculum import PlannedStage, Stage
from clsgen_dist.data.loader import Step
from clsgen_dist.data.pack import Load, Sample, collate
from clsgen_dist.engine import trainer
from clsgen_dist.engine.dist import process_group
from clsgen_dist.model.label_space import LabelSpace

WARM_UP = 3  # the trace is recorded in the second micro-step, and in force from the third on


class Traffic(TorchDispatchMode):
    """Bytes of the whole tensor of each collective, by kind."""

    def __init__(self):
        super().__init__()
        self.bytes = defaultdict(int)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if func.namespace == "c10d" and name != "barrier":
            tensors = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, torch.Tensor)]
            self.bytes[name] += max(t.numel() * t.element_size() for t in tensors)
        return func(*args, **(kwargs or {}))


def steps_of(case):
    """Micro-batches of one optimizer step."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(case["micro_steps"]):
        samples = []
        for length in case["lengths"]:
            explained = case["supervised"] // len(case["lengths"])
            ids = rng.integers(0, 100, length).astype(np.int32)
            samples.append(Sample(ids[: length - explained], ids[length - explained :], int(rng.integers(2))))
        batches.append(collate(samples))
    planned = PlannedStage(Stage(name="all", epochs=1), 0, 0, 9, 9)
    return Step(batches, [], planned, 0.0, Load(1.0, 1.0, len(batches)))


def peak_of(profiler, first, last):
    """Most bytes allocated between two marks, counted from the start of the profile."""
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    start, stop = (next(e.start_ns() for e in events if e.name() == mark) for mark in (first, last))
    held = peak = 0
    at_start = None
    for event in events:
        if event.name() != "[memory]":
            continue
        if at_start is None and event.start_ns() >= start:
            at_start = peak = held
        held += event.nbytes()
        if start <= event.start_ns() < stop:
            peak = max(peak, held)
    return peak, at_start


def held_by_part(engine):
    """Bytes of what lives between steps, from the tensors themselves."""

    def size(tensors):
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    zero = engine.optimizer
    states = [v for s in zero.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.numel() > 1]
    return {
        "weights": size([p.ds_tensor for p in engine.module.parameters()]),
        "master weights": size(zero.fp32_partitioned_groups_flat),
        "gradients": size([zero.grad_partitions_flat_buffer]),
        "optimizer": size(states),
        "reduce bucket": size([b.buffer for b in zero.ipg_buckets.values()]),
    }


def measure(case, world):
    settings = settings_from_yaml(case["settings"])
    config = trainer._zero_config(settings, world.size)
    step = steps_of(case)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine = trainer._build_engine(settings, config, settings.model.backbone, None, LabelSpace.of(["a", "b"], "b"))
        stream = SimpleNamespace(steps=9, rows=[])
        run = trainer._Run(settings, world, engine, stream, None, None, None, Path(case["name"]), print)
        for number in range(WARM_UP):
            run._step(number, step)
        with record_function("first"):
            pass
        run._step(WARM_UP, step)
        with record_function("last"):
            pass
    peak, at_rest = peak_of(profiler, "first", "last")
    with Traffic() as traffic:
        run._step(WARM_UP + 1, step)
    parts = held_by_part(engine)
    engine.destroy()
    del engine, run, profiler
    gc.collect()
    return {"peak": peak, "at_rest": at_rest, "parts": parts, "traffic": dict(traffic.bytes)}


def main():
    cases, out = json.loads(Path(sys.argv[-2]).read_text()), sys.argv[-1]
    with process_group(120) as world:
        report = {case["name"]: measure(case, world) for case in cases if world.size in case["ranks"]}
        Path(f"{out}.{world.size}.{world.rank}").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
