"""What to change where a plan does not fit, and the search for the cheapest one."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from plan_cases import STATED

from clsgen_dist.config import SHIPPED, parse_settings
from clsgen_dist.plan import report
from clsgen_dist.plan.advice import advice, search
from clsgen_dist.plan.plan import Planner, RowAssumptions


def tight(h100, plan, *, gpu=0.0, host=0.0):
    """The cluster with ``gpu`` bytes less on a GPU, or ``host`` bytes less on a host, than the plan needs."""
    needed = plan.memory.host_total * plan.gpus_per_node / 0.9
    return dataclasses.replace(
        h100,
        memory_gib=(plan.memory.device_total - gpu) / 2**30 if gpu else h100.memory_gib,
        host_memory_gib=(needed - host) / 2**30 if host else h100.host_memory_gib,
    )


def advised(cluster, settings, nodes=1):
    planner = Planner(settings, cluster, STATED)
    plan = planner.plan(settings, nodes=nodes)
    assert not plan.fits
    return advice(planner, plan)


def test_advice_changes_one_thing_where_one_is_enough(recipe, h100):
    small = dataclasses.replace(h100, memory_gib=24)
    settings = recipe(train__micro_batch_tokens=32768)
    lines = advised(small, settings)
    assert lines and all("fits" in line for line in lines)
    assert any(line.startswith("train.activation_checkpointing true: fits") for line in lines)
    assert not any(" and train." in line for line in lines)
    assert not any("nodes" in line for line in lines)  # activations do not shrink with nodes


def test_advice_is_pairs_of_changes_where_one_is_not_enough(recipe, h100):
    long = dataclasses.replace(STATED, tokens_per_row=8000)  # no smaller micro-batch holds a row
    both = Planner(recipe(), h100, long).plan(recipe(train__activation_checkpointing="true"), nodes=8)
    planner = Planner(recipe(), tight(h100, both, gpu=-1e8), long)
    lines = advice(planner, planner.plan(recipe(), nodes=1))
    assert lines[0] == "no single change suffices; these pairs do:"
    nodes = next(line for line in lines if " and " in line and line.split(" and ")[1].split()[1].startswith("nodes"))
    assert nodes.startswith("train.activation_checkpointing true and ")
    fewest = int(nodes.split(" and ")[1].split()[0])
    settings = recipe(train__activation_checkpointing="true")
    assert planner.plan(settings, nodes=fewest).fits and not planner.plan(settings, nodes=fewest - 1).fits
    assert all(" and " in line for line in lines[1:])


def test_advice_names_the_fewest_nodes_not_a_power_of_two(recipe, h100):
    on_six = Planner(recipe(), h100, STATED).plan(recipe(), nodes=6)
    lines = advised(tight(h100, on_six, gpu=-1e6), recipe())
    assert any(line.startswith("6 nodes: fits") for line in lines)


def test_advice_names_smaller_optimizer_states_and_smaller_weights(recipe, h100):
    eight = recipe(optim__name="adamw_8bit")
    plan = Planner(eight, h100, STATED).plan(eight, nodes=1)
    assert any(
        line.startswith("optim.name adamw_8bit: fits") for line in advised(tight(h100, plan, gpu=-1e6), recipe())
    )
    four = recipe(model__finetune="lora", model__load_in_4bit="true")
    plan = Planner(four, h100, STATED).plan(four, nodes=1)
    lines = advised(tight(h100, plan, gpu=-1e6), recipe(model__finetune="lora"))
    assert any(line.startswith("model.load_in_4bit true: fits") for line in lines)


def test_advice_is_the_nearest_change_where_nothing_suffices(recipe, h100):
    lines = advised(dataclasses.replace(h100, memory_gib=3, reserved_gib=2.5), recipe())
    assert lines[0] == "no single change or pair suffices; the nearest:"
    assert all("GiB more than a GPU has" in line for line in lines[1:])


def test_advice_frees_the_host_where_the_host_is_short(recipe, h100):
    settings = recipe(deepspeed="ds_configs/zero3_offload.json", optim__name="cpu_adamw")
    plan = Planner(settings, h100, STATED).plan(settings, nodes=1)
    lines = advised(tight(h100, plan, host=1e9), settings)
    assert any(line.startswith("ds_configs/zero3.json with adamw (nothing on the host): fits") for line in lines)
    assert any(line.startswith("checkpoint.asynchronous false") for line in lines)
    assert any(line.startswith("2 nodes: fits") for line in lines)


@pytest.fixture(scope="module")
def staged(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("staged") / "recipe.yaml"
    text = (SHIPPED / "configs/recipe.yaml").read_text()
    stages = [{"name": "short", "epochs": 1, "micro_batch_tokens": 65536}, {"name": "all", "epochs": 1}]
    path.write_text(text + "\n" + yaml.safe_dump({"curriculum": {"stages": stages}}))
    flags = ["--data.train=nowhere.jsonl", f"--model.backbone={backbone}", "--model.finetune=full",
             "--train.micro_batch_tokens=16384", "--train.batch_size=64"]  # fmt: skip
    return parse_settings(["--config", str(path), *flags])


def test_advice_names_the_stage_with_its_own_micro_batch(staged, h100):
    long = dataclasses.replace(STATED, tokens_per_row=16384)
    planner = Planner(staged, h100, long)
    plan = planner.plan(staged, nodes=1)
    assert plan.workload.budget == 65536
    short = Planner(staged, tight(h100, plan, gpu=5e9), long)
    lines = advice(short, short.plan(staged, nodes=1))
    assert any(line.startswith("micro_batch_tokens of stage 'short' 32768: fits") for line in lines)
    found = search(planner, plan)
    assert found
    for other in found:
        budgets = {other.settings.train.micro_batch_tokens, other.settings.curriculum.stages[0].micro_batch_tokens}
        assert other.workload.budget == max(budgets)
    assert {other.workload.budget for other in found} == {16384, 32768, 65536}


@pytest.mark.long
def test_the_search_finds_only_plans_that_fit_cheapest_first(recipe, h100):
    small = dataclasses.replace(h100, memory_gib=40)
    settings = recipe(train__micro_batch_tokens=32768)
    planner = Planner(settings, small, STATED)
    found = search(planner, planner.plan(settings, nodes=1))
    assert found and all(plan.fits for plan in found)
    cost = [plan.gpu_hours for plan in found]
    assert cost == sorted(cost)
    assert {plan.settings.train.activation_checkpointing for plan in found} == {True, False}
    assert {plan.nodes for plan in found} >= {1, 2, 3, 4}


def test_the_search_includes_the_recipe_itself_if_it_fits(recipe, h100):
    long = RowAssumptions(rows=10_000, tokens_per_row=70_001, supervised_per_row=128)  # longer than any default budget
    settings = recipe(train__micro_batch_tokens=90_000, train__activation_checkpointing="true")
    planner = Planner(settings, h100, long)
    plan = planner.plan(settings, nodes=5)
    assert plan.fits
    found = search(planner, plan)
    assert [p.nodes for p in found if p.settings == settings and p.nodes == 5] == [5]
    assert {p.nodes for p in found} >= {4, 5, 6}


def test_the_verdict_warns_of_a_plan_that_barely_fits(planner, recipe, h100):
    plan = planner.plan(recipe(), nodes=2)
    assert report.verdict(plan).startswith("fits: ") and report.verdict_code(plan) is report.Verdict.FITS
    close = dataclasses.replace(plan, cluster=tight(h100, plan, gpu=-1e9))
    assert report.verdict(close).startswith("fits, barely: 0.9 GiB of ") and "27% more than planned" in report.verdict(
        close
    )
