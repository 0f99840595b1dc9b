"""A plan as text, JSON and plots."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from clsgen_dist.io.plots import save_figure, stacked_axes
from clsgen_dist.io.tables import markdown_table
from clsgen_dist.plan.cluster import GIB
from clsgen_dist.plan.dry_run import DryRun
from clsgen_dist.plan.goodput import FLAT
from clsgen_dist.plan.kept_states import KeptStates
from clsgen_dist.plan.plan import Plan, StagePlan
from clsgen_dist.plan.step_time import PLANNED_OVER_PUBLISHED

TIGHT = 0.27
"""One in ten of the held-out published runs needed at least this much more memory than planned, logits included."""


def print_plan(plan: Plan, other: Plan) -> None:
    """Print memory, traffic, time and cost, checkpoints and faults, one table each.

    ``other``: the same plan with activation checkpointing toggled.
    """
    trace, cluster, memory = plan.trace, plan.cluster, plan.memory
    print(f"{plan.settings.model.backbone}: {trace.parameters:,} parameters, {trace.trainable:,} trained")
    print(f"{plan.nodes} x {plan.gpus_per_node} GPUs: {cluster.name}; {_precision(plan)}")
    print(f"rows: {plan.workload.note}")
    print(f"memory at a full micro-batch of {plan.workload.budget:,} tokens\n")
    head = ["GPU", "host", *(["NVMe"] if memory.disk else [])]
    places = (memory.device, memory.host, memory.disk)[: len(head)]
    rows = [[part, *[_gib(place.get(part, 0)) for place in places]] for part in _parts(plan)]
    total = [f"total, at the {memory.moment}", *[_gib(sum(place.values())) for place in places]]
    print(markdown_table([["memory of a rank, GiB", *head], *rows, total]))
    sizes = activations(plan, other)
    print(
        f"\nactivations: {_gib(sizes['with_checkpointing'])} GiB with checkpointing, "
        f"{_gib(sizes['without_checkpointing'])} without; the loss needs at most {_gib(sizes['loss_workspace'])}"
    )
    print(verdict(plan))
    print("".join(f"note: {note}\n" for note in plan.notes))
    print(
        markdown_table(
            [
                ["an optimizer step moves", "GB a rank", "calls", "s"],
                *[
                    [f.kind, f"{f.received_bytes / 1e9:.3f}", f"{f.calls:.0f}", f"{f.seconds(cluster):.3f}"]
                    for f in plan.flows
                ],
            ]
        )
    )
    print()
    titles = "stage,steps,tokens,micro-steps,compute s,exposed s,optimizer s,offload s,data wait s,step s,MFU,"
    titles += "tokens/s,tokens/s/GPU,hours,GPU-hours"
    print(markdown_table([titles.split(","), *[_stage_row(plan, stage) for stage in plan.stages]]))
    low, high = max(plan.stages, key=lambda stage: stage.hours).tokens_per_second_range
    least, most = (ratio * plan.gpu_hours for ratio in PLANNED_OVER_PUBLISHED)
    print(
        f"expect {low:,.0f} to {high:,.0f} tokens/s, and {least:,.0f} to {most:,.0f} GPU-hours for all stages: four of "
        "five published runs were within this range of their plans\n"
    )
    if plan.kept:
        print(markdown_table([["frozen layers computed once", ""], *_kept_rows(plan.kept)]) + "\n")
    print(markdown_table([["checkpoints and faults", ""], *_fault_rows(plan)]))


def _kept_rows(kept: KeptStates) -> list[list[str]]:
    """What is on the disk, and what a step takes and gathers with it and without."""
    faster = kept.computed_step_seconds / kept.step_seconds
    return [
        ["on the disk of output_dir", f"{kept.sequences.bytes / 1e9:,.3g} GB, {kept.sequences.number:,} sequences"],
        ["computed before the first step in", f"{kept.fill_seconds / 3600:,.3f} h"],
        ["a step takes", f"{kept.step_seconds:.3f} s instead of {kept.computed_step_seconds:.3f} ({faster:.2f} times)"],
        [
            "a rank gathers in a step",
            f"{kept.gathered_bytes / 1e9:.3f} GB instead of {kept.computed_gathered_bytes / 1e9:.3f}",
        ],
    ]


def _parts(plan: Plan) -> list[str]:
    """All parts of memory, on GPU, host and disk."""
    return list(dict.fromkeys([*plan.memory.device, *plan.memory.host, *plan.memory.disk]))


def _dtype(plan: Plan) -> str:
    return "bf16" if plan.trace.bytes_per_element == 2 else "fp32"


def _precision(plan: Plan) -> str:
    return f"{_dtype(plan)}, {plan.cluster.peak(plan.trace.bytes_per_element) / 1e12:,.1f} TFLOP/s peak"


def activations(plan: Plan, other: Plan) -> dict[str, int]:
    """Bytes of activations at the peak, with and without checkpointing, and the loss's own peak at any moment."""
    mine, theirs = (p.simulation.peak.activations for p in (plan, other))
    with_, without = (mine, theirs) if plan.settings.train.activation_checkpointing else (theirs, mine)
    return {
        "with_checkpointing": with_,
        "without_checkpointing": without,
        "loss_workspace": plan.trace.loss_workspace,
    }


def _fault_rows(plan: Plan) -> list[list[str]]:
    good, per_step = plan.goodput, max(plan.stages, key=lambda stage: stage.hours).time.total
    total = plan.hours_with_faults
    asynchronous = plan.settings.checkpoint.asynchronous
    return [
        ["a checkpoint", f"{plan.checkpoint_bytes / 1e9:,.1f} GB"],
        ["a save stops the steps for", f"{plan.stall_seconds:.3f} s"],
        ["its files are written in", f"{plan.write_seconds:.1f} s{', in the background' if asynchronous else ''}"],
        ["mean time between faults", f"{good.mean_hours:,.1f} h"],
        ["interval between saves, Daly", _interval(good.daly, plan.hours, per_step)],
        ["the same, Young", _interval(good.young, plan.hours, per_step)],
        ["recommended (no shorter than the write)", _interval(good.advised, plan.hours, per_step)],
        ["goodput there", f"{good.at_advised:.2%}"],
        [f"within {FLAT:.1%} of the best", f"{good.flat[0]:.3g} to {good.flat[1]:.3g} h"],
        ["all stages with saves and faults", "never: faults are too frequent" if total is None else f"{total:,.1f} h"],
        ["", "-" if total is None else f"{total * plan.ranks:,.0f} GPU-hours"],
    ]


def print_dry_run(found: DryRun) -> None:
    """Print leaf modules, what a rank holds, its collectives by phase, its checkpoint files."""
    print(f"rank 0 of {found.ranks:,}: {found.parameters:,} parameters, {found.trainable:,} trained")
    elements = sum(found.partitions.values())
    print(f"{len(found.partitions):,} partitioned parameters, {elements:,} elements a rank (padding included)")
    leaves = ", ".join(f"{count} x {name}" for name, count in found.units.items()) or "none"
    print(f"ZeRO-3 leaf modules: {leaves}\n")
    print(
        markdown_table(
            [["held between steps", "MB"], *[[part, f"{size / 1e6:,.1f}"] for part, size in found.held.items()]]
        )
    )
    print()
    kinds: dict[tuple[str, ...], list[int]] = {}
    for call in (*found.build, *found.step):
        kinds.setdefault((call.phase, call.op, call.dtype, str(call.ranks)), []).append(call.bytes)
    head = ["phase", "collective", "type", "ranks", "calls", "smallest MB", "largest MB", "total GB"]
    sizes = {kind: [min(b), max(b), sum(b)] for kind, b in kinds.items()}
    print(
        markdown_table(
            [
                head,
                *[
                    [*kind, f"{len(kinds[kind]):,}", f"{low / 1e6:.3f}", f"{high / 1e6:,.1f}", f"{total / 1e9:,.3f}"]
                    for kind, (low, high, total) in sizes.items()
                ],
            ]
        )
    )
    print()
    files = [[name, f"{size / 1e6:,.1f}"] for name, size in found.files.items()]
    print(markdown_table([["checkpoint, files of a rank", "MB"], *files]))
    total = found.ranks * sum(found.files.values())
    print(f"all ranks: {found.ranks * len(found.files):,} files, {total / 1e9:,.1f} GB")
    print(f"took {found.seconds:.0f} s")


class Verdict(StrEnum):
    """Whether a plan fits."""

    FITS = "fits"
    FITS_BARELY = "fits_barely"
    """One published run in ten needed more than is spare."""
    GPU_TOO_SMALL = "gpu_too_small"
    HOST_TOO_SMALL = "host_too_small"


def verdict_code(plan: Plan) -> Verdict:
    """Whether it fits, and what is too small."""
    if plan.fits:
        return Verdict.FITS_BARELY if plan.spare_bytes < TIGHT * plan.memory.device_total else Verdict.FITS
    return Verdict.GPU_TOO_SMALL if plan.spare_bytes < 0 else Verdict.HOST_TOO_SMALL


def verdict(plan: Plan) -> str:
    """One line: whether it fits, and by how much."""
    code = verdict_code(plan)
    if code is Verdict.FITS_BARELY:
        return (
            f"fits, barely: {plan.spare_bytes / GIB:.1f} GiB of {plan.cluster.memory_gib:.1f} are free on each GPU, "
            f"and one published run in ten needed {TIGHT:.0%} more than planned: test it before you buy"
        )
    if code is Verdict.FITS:
        return f"fits: {plan.spare_bytes / GIB:.1f} GiB of {plan.cluster.memory_gib:.1f} are free on each GPU"
    if code is Verdict.GPU_TOO_SMALL:
        return f"does not fit: {-plan.spare_bytes / GIB:.1f} GiB more than a GPU's {plan.cluster.memory_gib:.1f}"
    return f"does not fit: {-plan.spare_host_bytes / GIB:,.0f} GiB more than 90 % of a node's host memory"


def print_search(found: Sequence[Plan], most: int = 8) -> None:
    """Print the cheapest plans that fit, and the cheapest one on the fewest nodes."""
    if not found:
        print("search: nothing fits; use a larger GPU, LoRA or 4-bit weights")
        return
    table = [["nodes", "micro-batch tokens", "checkpointing", "offload", "GiB a GPU", "MFU", "hours", "GPU-hours"]]
    smallest = min(found, key=lambda plan: (plan.nodes, plan.gpu_hours))
    for plan in [*found[:most], smallest]:
        train = plan.settings.train
        mfu = max(plan.stages, key=lambda stage: stage.hours).mfu
        table.append(
            [
                str(plan.nodes),
                ", ".join([str(train.micro_batch_tokens), *_stage_budgets(plan)]),
                "yes" if train.activation_checkpointing else "no",
                plan.zero.offload_optimizer,
                f"{plan.memory.device_total / GIB:.1f}",
                f"{mfu:.1%}",
                f"{plan.hours:,.2f}",
                f"{plan.gpu_hours:,.1f}",
            ]
        )
    print(f"search: {len(found)} plans fit, the cheapest first; the last line is the cheapest on the fewest nodes")
    print(markdown_table(table))


def _stage_budgets(plan: Plan) -> list[str]:
    """Micro-batches of stages that have their own."""
    return [f"{s.name}: {s.micro_batch_tokens}" for s in plan.settings.curriculum.stages if s.micro_batch_tokens]


def as_json(plan: Plan, other: Plan, advice: Sequence[str], found: Sequence[Plan]) -> dict[str, Any]:
    """Everything that is printed, in bytes and seconds; hours of a run that never finishes are null."""
    total = plan.hours_with_faults
    return {
        "backbone": plan.settings.model.backbone,
        "precision": _precision(plan),
        "dtype": _dtype(plan),
        "peak_flops_per_second": plan.cluster.peak(plan.trace.bytes_per_element),
        "rows": plan.workload.note,
        "rows_assumed": plan.workload.assumed,
        "tokens_per_row": plan.workload.row_tokens,
        "supervised_share": plan.workload.supervised_share,
        "full_micro_batch_tokens": plan.workload.budget,
        "verdict": verdict(plan),
        "verdict_code": verdict_code(plan),
        "notes": plan.notes,
        "activations": activations(plan, other),
        "cluster": dataclasses.asdict(plan.cluster),
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus_per_node,
        "gpus": plan.ranks,
        "parameters": plan.trace.parameters,
        "trained_parameters": plan.trace.trainable,
        "fits": plan.fits,
        "spare_bytes": plan.spare_bytes,
        "spare_host_bytes": plan.spare_host_bytes,
        "memory": dataclasses.asdict(plan.memory),
        "micro_batch_tokens": plan.settings.train.micro_batch_tokens,
        "activation_checkpointing": plan.settings.train.activation_checkpointing,
        "flows": [
            {**dataclasses.asdict(f), "received_bytes": f.received_bytes, "seconds": f.seconds(plan.cluster)}
            for f in plan.flows
        ],
        "stages": [
            {
                **dataclasses.asdict(s),
                "step_seconds": s.time.total,
                "tokens_per_second_range": list(s.tokens_per_second_range),
            }
            for s in plan.stages
        ],
        "gpu_hours_range": [ratio * plan.gpu_hours for ratio in PLANNED_OVER_PUBLISHED],
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
        "hours_with_faults": total,
        "gpu_hours_with_faults": None if total is None else total * plan.ranks,
        "checkpoint": {
            "bytes": plan.checkpoint_bytes,
            "asynchronous": plan.settings.checkpoint.asynchronous,
            "stall_seconds": plan.stall_seconds,
            "write_seconds": plan.write_seconds,
        },
        "goodput": dataclasses.asdict(plan.goodput),
        "kept_states": dataclasses.asdict(plan.kept) if plan.kept else None,
        "advice": list(advice),
        "search": [
            {
                "nodes": p.nodes,
                "micro_batch_tokens": p.settings.train.micro_batch_tokens,
                "stages": {s.name: s.micro_batch_tokens for s in p.settings.curriculum.stages if s.micro_batch_tokens},
                "activation_checkpointing": p.settings.train.activation_checkpointing,
                "deepspeed": p.settings.deepspeed,
                "optimizer": p.settings.optim.name,
                "device_bytes": p.memory.device_total,
                "mfu": max(p.stages, key=lambda stage: stage.hours).mfu,
                "hours": p.hours,
                "gpu_hours": p.gpu_hours,
            }
            for p in found
        ],
    }


def draw(path: Path, plan: Plan) -> None:
    """Plot memory by part, one bar each for GPU and host, and goodput against the interval between checkpoints."""
    figure, axes = stacked_axes(2, 3.6)
    _draw_memory(axes[0], plan)
    good = plan.goodput
    axes[1].semilogx(good.intervals, good.goodput, color="black")
    lines = (
        (good.young, "Young", "tab:blue"),
        (good.daly, "Daly", "tab:orange"),
        (good.advised, "recommended", "tab:green"),
    )
    for (hours, name, colour), style in zip(lines, ("--", "-.", ":"), strict=True):
        axes[1].axvline(hours, linestyle=style, label=f"{name} {hours:.3g} h", color=colour)
    axes[1].axvspan(*good.flat, color="tab:green", alpha=0.1, label=f"within {FLAT:.1%} of the best")
    axes[1].set_xlabel("hours of work between saves")
    axes[1].set_ylabel("goodput")
    axes[1].legend(frameon=False, fontsize=7, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))  # above the axes
    save_figure(figure, path)


def _draw_memory(axis: Any, plan: Plan) -> None:
    parts = _parts(plan)
    colours = dict(zip(parts, _colours(len(parts)), strict=True))
    limit = plan.cluster.memory_gib
    longest = max(limit, *(sum(sizes.values()) / GIB for sizes in (plan.memory.device, plan.memory.host)))
    for place, sizes in enumerate((plan.memory.device, plan.memory.host)):
        left = 0.0
        for part, size in sizes.items():
            axis.barh(place, size / GIB, left=left, color=colours[part], label=part)
            left += size / GIB
        # To the right of the limit's line where it would overlap it.
        end = limit if left < limit < left + longest / 12 else left
        axis.annotate(f"{left:.1f}", (end, place), xytext=(4, 0), textcoords="offset points", va="center")
    axis.axvline(limit, color="red", linestyle="--", label=f"the GPU's {limit:.1f} GiB")
    axis.margins(x=0.1)
    axis.set_yticks([0, 1], ["GPU", "host"])
    axis.set_xlabel(f"GiB of a rank at the {plan.memory.moment}")
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), frameon=False, fontsize=7, ncols=5, loc="lower left",
                bbox_to_anchor=(0, 1))  # fmt: skip


def _colours(number: int) -> Any:
    import matplotlib

    return [matplotlib.colormaps["tab20"](index) for index in range(number)]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def _interval(hours: float, run_hours: float, step_seconds: float) -> str:
    if hours >= run_hours:
        return f"{hours:.3g} h, longer than the run: save only at the end"
    return f"{hours:.3g} h: checkpoint.every {max(1, math.ceil(hours * 3600 / step_seconds))}"


def _stage_row(plan: Plan, stage: StagePlan) -> list[str]:
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
