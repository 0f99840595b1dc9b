"""A plan as text, JSON and pictures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clsgen_dist.data_verbs.common import axes_of, print_table, save_figure
from clsgen_dist.plan.cluster import GIB
from clsgen_dist.plan.dry_run import DryRun
from clsgen_dist.plan.plan import Plan


def print_plan(plan: Plan) -> None:
    """Memory, traffic, time and cost, checkpoints and faults, one table each."""
    made, cluster, memory = plan.rehearsal, plan.cluster, plan.memory
    print(f"{plan.settings.model.backbone}: {made.parameters:,} parameters, {made.trainable:,} trained")
    print(f"{plan.nodes} x {plan.gpus_per_node} GPUs: {cluster.name}")
    print(f"rows: {plan.workload.note}")
    print(f"memory at a full micro-batch of {plan.workload.budget:,} tokens\n")
    rows = [[part, _gib(size), _gib(memory.host.get(part, 0))] for part, size in memory.device.items()]
    rows += [[part, _gib(0), _gib(size)] for part, size in memory.host.items() if part not in memory.device]
    total = ["all, at the " + memory.moment, _gib(memory.device_total), _gib(memory.host_total)]
    print_table([["memory of a rank, GiB", "GPU", "host"], *rows, total])
    print(f"\n{verdict(plan)}\n")
    print_table(
        [
            ["an optimizer step moves", "GB a rank", "calls", "s"],
            *[
                [f.kind, f"{f.received_bytes / 1e9:.3f}", f"{f.calls:.0f}", f"{f.seconds(cluster):.3f}"]
                for f in plan.flows
            ],
        ]
    )
    print()
    head = "stage,steps,tokens,micro-steps,compute s,exposed s,optimizer s,offload s,data wait s,step s,MFU,"
    head += "tokens/s,tokens/s/GPU,hours,GPU-hours"
    print_table([head.split(","), *[_stage_row(plan, stage) for stage in plan.stages]])
    print()
    good = plan.goodput
    per_step = plan.stages[0].time.total
    print_table(
        [
            ["checkpoints and faults", ""],
            ["a checkpoint", f"{plan.checkpoint_bytes / 1e9:,.1f} GB, {plan.save_seconds:.1f} s"],
            ["mean time between faults", f"{good.mean_hours:,.1f} h"],
            ["best interval, simulated", _interval(good.best_interval, per_step)],
            ["best interval, Young", _interval(good.young, per_step)],
            ["best interval, Daly", _interval(good.daly, per_step)],
            ["goodput over a month, at best", f"{good.best:.2%}"],
            ["all stages with saves and faults", f"{plan.hours / max(good.best, 1e-9):,.1f} h"],
            ["", f"{plan.gpu_hours / max(good.best, 1e-9):,.0f} GPU-hours"],
        ]
    )


def print_dry_run(found: DryRun) -> None:
    """Wrapping, what a rank holds, its collectives by phase, its checkpoint files."""
    print(f"rank 0 of {found.ranks:,}: {found.parameters:,} parameters, {found.trainable:,} trained")
    share = sum(found.partitions.values())
    print(f"{len(found.partitions):,} parameters cut, {share:,} elements a rank (padding included)")
    wrapped = ", ".join(f"{count} x {name}" for name, count in found.units.items()) or "none"
    print(f"gathered as one: {wrapped}\n")
    print_table([["held between steps", "MB"], *[[part, f"{size / 1e6:,.1f}"] for part, size in found.held.items()]])
    print()
    kinds: dict[tuple[str, ...], list[int]] = {}
    for call in (*found.build, *found.step):
        kinds.setdefault((call.phase, call.op, call.dtype, str(call.ranks)), []).append(call.bytes)
    head = ["phase", "collective", "type", "ranks", "calls", "smallest MB", "largest MB", "whole GB"]
    sizes = {kind: [min(b), max(b), sum(b)] for kind, b in kinds.items()}
    print_table(
        [
            head,
            *[
                [*kind, f"{len(kinds[kind]):,}", f"{low / 1e6:.3f}", f"{high / 1e6:,.1f}", f"{whole / 1e9:,.3f}"]
                for kind, (low, high, whole) in sizes.items()
            ],
        ]
    )
    print()
    files = [[name, f"{size / 1e6:,.1f}"] for name, size in found.files.items()]
    print_table([["checkpoint, files of a rank", "MB"], *files])
    total = found.ranks * sum(found.files.values())
    print(f"all ranks: {found.ranks * len(found.files):,} files, {total / 1e9:,.1f} GB")
    print(f"took {found.seconds:.0f} s")


def verdict(plan: Plan) -> str:
    """One line: whether it fits, and by how much."""
    if plan.fits:
        return f"fits: {plan.spare_bytes / GIB:.1f} GiB of {plan.cluster.memory_gib:.1f} are left on each GPU"
    if plan.spare_bytes < 0:
        return f"does not fit: {-plan.spare_bytes / GIB:.1f} GiB more than a GPU's {plan.cluster.memory_gib:.1f}"
    return f"does not fit: {-plan.spare_host_bytes / GIB:,.0f} GiB more than 90 % of a node's host memory"


def print_search(found: Sequence[Plan], shown: int = 8) -> None:
    """The cheapest that fit."""
    if not found:
        print("search: nothing fits; a larger GPU, LoRA or 4-bit weights are what is left")
        return
    table = [["nodes", "micro-batch tokens", "checkpointing", "offload", "GiB a GPU", "MFU", "hours", "GPU-hours"]]
    for plan in found[:shown]:
        train = plan.settings.train
        mfu = max(plan.stages, key=lambda stage: stage.hours).mfu
        table.append(
            [
                str(plan.nodes),
                str(train.micro_batch_tokens),
                "yes" if train.activation_checkpointing else "no",
                plan.zero.offload_optimizer,
                f"{plan.memory.device_total / GIB:.1f}",
                f"{mfu:.1%}",
                f"{plan.hours:,.2f}",
                f"{plan.gpu_hours:,.1f}",
            ]
        )
    print(f"search: {len(found)} that fit, the cheapest first")
    print_table(table)


def as_json(plan: Plan, advice: Sequence[str], found: Sequence[Plan]) -> dict[str, Any]:
    """Everything that is printed, in bytes and seconds."""
    return {
        "cluster": dataclasses.asdict(plan.cluster),
        "nodes": plan.nodes,
        "gpus": plan.ranks,
        "parameters": plan.rehearsal.parameters,
        "trained_parameters": plan.rehearsal.trainable,
        "fits": plan.fits,
        "spare_bytes": plan.spare_bytes,
        "memory": dataclasses.asdict(plan.memory),
        "micro_batch_tokens": plan.settings.train.micro_batch_tokens,
        "activation_checkpointing": plan.settings.train.activation_checkpointing,
        "flows": [
            {**dataclasses.asdict(f), "received_bytes": f.received_bytes, "seconds": f.seconds(plan.cluster)}
            for f in plan.flows
        ],
        "stages": [{**dataclasses.asdict(s), "step_seconds": s.time.total} for s in plan.stages],
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
        "checkpoint": {"bytes": plan.checkpoint_bytes, "save_seconds": plan.save_seconds},
        "goodput": dataclasses.asdict(plan.goodput),
        "advice": list(advice),
        "search": [
            {
                "nodes": p.nodes,
                "micro_batch_tokens": p.settings.train.micro_batch_tokens,
                "activation_checkpointing": p.settings.train.activation_checkpointing,
                "deepspeed": p.settings.deepspeed,
                "optimizer": p.settings.optim.name,
                "device_bytes": p.memory.device_total,
                "hours": p.hours,
                "gpu_hours": p.gpu_hours,
            }
            for p in found
        ],
    }


def write_json(path: Path, plan: Plan, advice: Sequence[str], found: Sequence[Plan]) -> None:
    """:func:`as_json` into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(plan, advice, found), indent=1) + "\n")


def draw(path: Path, plan: Plan) -> None:
    """Memory by part as one bar for GPU and host, and goodput against the interval between checkpoints."""
    figure, axes = axes_of(2, 3.2)
    parts = list(dict.fromkeys([*plan.memory.device, *plan.memory.host]))
    colours = _colours(len(parts))
    for place, sizes in enumerate((plan.memory.device, plan.memory.host)):
        left = 0.0
        for part, colour in zip(parts, colours, strict=True):
            width = sizes.get(part, 0) / GIB
            axes[0].barh(place, width, left=left, color=colour, label=part if place == 0 or left == 0 else None)
            left += width
    axes[0].axvline(plan.cluster.memory_gib, color="red", linestyle="--")
    axes[0].set_yticks([0, 1], ["GPU", "host"])
    axes[0].set_xlabel(f"GiB of a rank at the {plan.memory.moment}; dashed: the GPU's memory")
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes[0].legend(unique.values(), unique.keys(), frameon=False, fontsize=7, ncols=3)
    good = plan.goodput
    axes[1].semilogx(good.intervals, good.goodput)
    for hours, name in ((good.young, "Young"), (good.daly, "Daly"), (good.best_interval, "simulated best")):
        axes[1].axvline(hours, linestyle=":", label=f"{name} {hours:.2f} h", color=_colours(3)[len(name) % 3])
    axes[1].set_xlabel("hours of work between checkpoints")
    axes[1].set_ylabel("goodput")
    axes[1].legend(frameon=False)
    save_figure(figure, path)


def _colours(number: int) -> Any:
    import matplotlib

    return [matplotlib.colormaps["tab20"](index) for index in range(number)]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def _interval(hours: float, step_seconds: float) -> str:
    return f"{hours:.2f} h: checkpoint.every {max(1, round(hours * 3600 / step_seconds))}"


def _stage_row(plan: Plan, stage: Any) -> list[str]:
    time = stage.time
    seconds = (time.compute, time.exposed_links, time.optimizer, time.offload, time.data_wait, time.total)
    return [
        stage.name,
        f"{stage.steps:,}",
        f"{stage.tokens:,.0f}",
        f"{stage.micro_steps:.1f}",
        *[f"{value:.3f}" for value in seconds],
        f"{stage.mfu:.1%}",
        f"{stage.tokens_per_second:,.0f}",
        f"{stage.tokens_per_second / plan.ranks:,.0f}",
        f"{stage.hours:,.2f}",
        f"{stage.gpu_hours:,.1f}",
    ]
