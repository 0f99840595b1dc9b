"""What to change about a plan: single settings that make it fit, two together, or a search for the cheapest.

Every suggestion is planned in full, by the planner that made the plan, so what is said to fit does.
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
_SHOWN = 8


class _Change(NamedTuple):
    """Settings and nodes that differ from the plan's."""

    about: int
    """Place of what is changed; two changes of the same are not joined."""
    text: str
    settings: Settings
    nodes: int


def other_checkpointing(planner: Planner, plan: Plan) -> Plan:
    """The same plan with activation checkpointing turned over, to see both beside each other."""
    other = _with(plan.settings, activation_checkpointing=not plan.settings.train.activation_checkpointing)
    return planner.plan(other, nodes=plan.nodes, gpus_per_node=plan.gpus_per_node)


def fewest_nodes(planner: Planner, settings: Settings, most: int, gpus_per_node: int, least: int = 1) -> int | None:
    """The fewest nodes from ``least`` to ``most`` on which the settings fit; None if even ``most`` do not suffice.

    More nodes never need more memory each, so the search halves the range.
    """

    def fits(nodes: int) -> bool:
        try:
            return planner.plan(settings, nodes=nodes, gpus_per_node=gpus_per_node).fits
        except SettingsError:  # training would refuse it
            return False

    if least > most or not fits(most):
        return None
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if fits(middle) else (middle + 1, most)
    return most


def advice(planner: Planner, plan: Plan) -> list[str]:
    """What to change if it does not fit: single changes that fix it; else two together; else what comes nearest."""

    def try_out(changes: Iterable[_Change]) -> list[tuple[str, Plan]]:
        tried = []
        for change in changes:
            try:
                made = planner.plan(change.settings, nodes=change.nodes, gpus_per_node=plan.gpus_per_node)
            except SettingsError:  # not a way to go: training would refuse it
                continue
            tried.append((change.text, made))
        return tried

    singles = list(_changes(planner, plan, plan.settings, plan.nodes))
    one = try_out(singles)
    if good := _that_fit(one):
        return good
    two = try_out(
        second._replace(text=f"{first.text} and {second.text}")
        for first in singles
        for second in _changes(planner, plan, first.settings, first.nodes)
        if first.about < second.about
    )
    if good := _that_fit(two):
        return ["no single change suffices; two together do:", *good[:_SHOWN]]
    nearest = sorted([*one, *two], key=lambda item: item[1].worst_shortfall)[:_SHOWN]
    return ["no single change suffices, nor do two; the nearest:", *(f"{text}: {_lacking(p)}" for text, p in nearest)]


def _that_fit(tried: list[tuple[str, Plan]]) -> list[str]:
    good = sorted((p.gpu_hours, text) for text, p in tried if p.fits)
    return [f"{text}: fits, {hours:,.1f} GPU-hours" for hours, text in good]


def _lacking(plan: Plan) -> str:
    lacks = [f"{-plan.spare_bytes / GIB:,.1f} GiB too much for a GPU"] if plan.spare_bytes < 0 else []
    lacks += [f"{-plan.spare_host_bytes / GIB:,.0f} GiB too much for a host"] if plan.spare_host_bytes < 0 else []
    return ", ".join(lacks) + " still"


def _changes(planner: Planner, plan: Plan, settings: Settings, nodes: int) -> Iterator[_Change]:
    """One change each to ``settings`` on ``nodes``, the mildest first."""
    if not settings.train.activation_checkpointing:
        checkpointing = _with(settings, activation_checkpointing=True)
        yield _Change(0, "train.activation_checkpointing true", checkpointing, nodes)
    budget = plan.workload.budget
    while (budget := budget // 2) >= plan.workload.longest:
        smaller, names = _capped(settings, budget)
        yield _Change(1, f"{names} {budget}", smaller, nodes)
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
        waiting = copy.deepcopy(settings)
        waiting.checkpoint.asynchronous = False
        yield _Change(4, "checkpoint.asynchronous false (no copy on the host)", waiting, nodes)
    if settings.optim.name == "adamw" and plan.zero.offload_optimizer == "none":
        smaller = copy.deepcopy(settings)
        smaller.optim.name = "adamw_8bit"
        yield _Change(5, "optim.name adamw_8bit", smaller, nodes)
    if settings.model.finetune == "lora" and not settings.model.load_in_4bit:
        quantised = copy.deepcopy(settings)
        quantised.model.load_in_4bit = True
        yield _Change(6, "model.load_in_4bit true", quantised, nodes)
    if settings.model.finetune == "full":
        lora = copy.deepcopy(settings)
        lora.model.finetune = "lora"
        yield _Change(7, "model.finetune lora", lora, nodes)


def search(planner: Planner, plan: Plan) -> list[Plan]:
    """Micro-batch, checkpointing, offloading and nodes tried together; those that fit, the fewest GPU-hours first.

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
                    made = planner.plan(other, nodes=number, gpus_per_node=plan.gpus_per_node)
                except SettingsError:  # training would refuse it
                    continue
                found += [made] if made.fits else []
    return sorted(found, key=lambda p: (p.gpu_hours, p.nodes))


def _capped(settings: Settings, budget: int) -> tuple[Settings, str]:
    """No micro-batch above ``budget``, in no stage; and the names of what that changes."""
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
