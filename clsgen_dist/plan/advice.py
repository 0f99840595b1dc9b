"""What to change about a plan: one or two settings that make it fit, or a search for the cheapest plan.

Every suggestion is planned completely, by the planner that made the plan; so one that is reported to fit does.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from clsgen_dist.config import Settings
from clsgen_dist.errors import SettingsError
from clsgen_dist.plan.cluster import GIB
from clsgen_dist.plan.plan import Plan, Planner

_BUDGETS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_MOST_LINES = 8


class _Change(NamedTuple):
    """Settings or nodes that differ from the plan's."""

    topic: int
    """Two changes of one topic are not combined."""
    text: str
    settings: Settings
    nodes: int


def other_checkpointing(planner: Planner, plan: Plan) -> Plan:
    """The same plan with activation checkpointing toggled, to compare both."""
    other = _with(plan.settings, activation_checkpointing=not plan.settings.train.activation_checkpointing)
    return planner.plan(other, nodes=plan.nodes, gpus_per_node=plan.gpus_per_node)


def fewest_nodes(planner: Planner, settings: Settings, most: int, gpus_per_node: int, least: int = 1) -> int | None:
    """The fewest nodes from ``least`` to ``most`` on which the settings fit; None if even ``most`` do not suffice.

    More nodes never need more memory each, so the search halves the range.
    """

    def fits(nodes: int) -> bool:
        try:
            return planner.plan(settings, nodes=nodes, gpus_per_node=gpus_per_node).fits
        except SettingsError:  # training would refuse it too
            return False

    if least > most or not fits(most):
        return None
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(middle) else (middle + 1, most)
    return most


def advice(planner: Planner, plan: Plan) -> list[str]:
    """What to change if a plan does not fit: single changes that suffice; else pairs; else the nearest to fitting."""

    def plan_all(changes: Iterable[_Change]) -> list[tuple[str, Plan]]:
        planned = []
        for change in changes:
            try:
                changed = planner.plan(change.settings, nodes=change.nodes, gpus_per_node=plan.gpus_per_node)
            except SettingsError:  # training would refuse it too
                continue
            planned.append((change.text, changed))
        return planned

    singles = list(_changes(planner, plan, plan.settings, plan.nodes))
    one = plan_all(singles)
    if fitting := _fitting(one):
        return fitting
    two = plan_all(
        second._replace(text=f"{first.text} and {second.text}")
        for first in singles
        for second in _changes(planner, plan, first.settings, first.nodes)
        if first.topic < second.topic
    )
    if fitting := _fitting(two):
        return ["no single change suffices; these pairs do:", *fitting[:_MOST_LINES]]
    nearest = sorted([*one, *two], key=lambda item: item[1].worst_shortfall)[:_MOST_LINES]
    return ["no single change or pair suffices; the nearest:", *(f"{text}: {_excess(p)}" for text, p in nearest)]


def _fitting(planned: list[tuple[str, Plan]]) -> list[str]:
    fitting = sorted((p.gpu_hours, text) for text, p in planned if p.fits)
    return [f"{text}: fits, {hours:,.1f} GPU-hours" for hours, text in fitting]


def _excess(plan: Plan) -> str:
    excess = [f"{-plan.spare_bytes / GIB:,.1f} GiB more than a GPU has"] if plan.spare_bytes < 0 else []
    excess += [f"{-plan.spare_host_bytes / GIB:,.0f} GiB more than a host has"] if plan.spare_host_bytes < 0 else []
    return "still " + ", ".join(excess)


def _changes(planner: Planner, plan: Plan, settings: Settings, nodes: int) -> Iterator[_Change]:
    """Single changes to ``settings`` on ``nodes``, the least intrusive first."""
    if not settings.train.activation_checkpointing:
        checkpointing = _with(settings, activation_checkpointing=True)
        yield _Change(0, "train.activation_checkpointing true", checkpointing, nodes)
    budget = plan.workload.budget
    while (budget := budget // 2) >= plan.workload.longest:
        capped, names = _capped(settings, budget)
        yield _Change(1, f"{names} {budget}", capped, nodes)
    enough = fewest_nodes(planner, settings, 8 * nodes, plan.gpus_per_node, least=nodes + 1) or 8 * nodes
    yield _Change(2, f"{enough} nodes", settings, enough)
    if plan.zero.offload_optimizer == "none":
        text = "ds_configs/zero3_offload.json with cpu_adamw (weights and optimizer on the host)"
        yield _Change(3, text, _offloaded(settings), nodes)
    else:
        plain = _offloaded(settings, "zero3", "adamw")
        yield _Change(3, "ds_configs/zero3.json with adamw (nothing on the host)", plain, nodes)
        if plan.zero.offload_parameters != "nvme":
            text = "ds_configs/zero3_nvme.json with cpu_adamw (weights on NVMe)"
            yield _Change(3, text, _offloaded(settings, "zero3_nvme"), nodes)
    if settings.checkpoint.asynchronous and plan.spare_host_bytes < 0:
        blocking = copy.deepcopy(settings)
        blocking.checkpoint.asynchronous = False
        yield _Change(4, "checkpoint.asynchronous false (no copy on the host)", blocking, nodes)
    if settings.optim.name == "adamw" and plan.zero.offload_optimizer == "none":
        eight_bit = copy.deepcopy(settings)
        eight_bit.optim.name = "adamw_8bit"
        yield _Change(5, "optim.name adamw_8bit", eight_bit, nodes)
    if settings.model.finetune == "lora" and not settings.model.load_in_4bit:
        quantised = copy.deepcopy(settings)
        quantised.model.load_in_4bit = True
        yield _Change(6, "model.load_in_4bit true", quantised, nodes)
    if settings.model.finetune == "full":
        lora = copy.deepcopy(settings)
        lora.model.finetune = "lora"
        yield _Change(7, "model.finetune lora", lora, nodes)


def search(planner: Planner, plan: Plan) -> list[Plan]:
    """Plans of micro-batch, checkpointing, offloading and nodes combined that fit, the fewest GPU-hours first.

    The recipe itself is among them if it fits.
    """
    longest = plan.workload.longest
    doubled = [longest << times for times in range(17) if longest << times <= max(_BUDGETS[-1], plan.workload.budget)]
    budgets = sorted({b for b in (*_BUDGETS, *doubled) if b >= longest} | {plan.workload.budget})
    most = max(_NODES[-1], 2 * plan.nodes)
    found = [plan] if plan.fits else []
    for settings in (plan.settings, _offloaded(plan.settings)):
        if settings is not plan.settings and plan.zero.offload_optimizer != "none":
            continue
        for budget, checkpointing in itertools.product(budgets, (False, True)):
            capped, _ = _capped(settings, budget)
            other = _with(capped, micro_batch_tokens=budget, activation_checkpointing=checkpointing)
            fewest = fewest_nodes(planner, other, most, plan.gpus_per_node)
            if fewest is None:
                continue
            for number in sorted({fewest, plan.nodes - 1, plan.nodes, plan.nodes + 1, 2 * plan.nodes, *_NODES}):
                if number < fewest or (other == plan.settings and number == plan.nodes):
                    continue
                try:
                    candidate = planner.plan(other, nodes=number, gpus_per_node=plan.gpus_per_node)
                except SettingsError:  # training would refuse it too
                    continue
                found += [candidate] if candidate.fits else []
    return sorted(found, key=lambda p: (p.gpu_hours, p.nodes))


def _capped(settings: Settings, budget: int) -> tuple[Settings, str]:
    """Settings with every micro-batch at most ``budget``, in every stage; and the names of what that changes."""
    other = copy.deepcopy(settings)
    changed = []
    if other.train.micro_batch_tokens > budget:
        other.train.micro_batch_tokens = budget
        changed.append("train.micro_batch_tokens")
    for stage in other.curriculum.stages:
        if (stage.micro_batch_tokens or 0) > budget:
            stage.micro_batch_tokens = budget
            changed.append(f"micro_batch_tokens of stage {stage.name!r}")
    return other, " and ".join(changed)


def _with(settings: Settings, **train: Any) -> Settings:
    other = copy.deepcopy(settings)
    for name, value in train.items():
        setattr(other.train, name, value)
    return other


def _offloaded(settings: Settings, file: str = "zero3_offload", optimizer: Any = "cpu_adamw") -> Settings:
    other = copy.deepcopy(settings)
    other.deepspeed = f"ds_configs/{file}.json"
    other.optim.name = optimizer
    return other
