"""`clsgen plan`: text, JSON, plot and errors."""

from __future__ import annotations

import dataclasses
import json

import pytest
from plan_cases import STATED

from clsgen_dist.cli import main
from clsgen_dist.plan import report
from clsgen_dist.plan.plan import Planner


def test_the_plot_has_total_and_limit_and_distinct_lines(planner, recipe, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: figures.append(figure))
    plan = planner.plan(recipe(), nodes=2)
    report.draw(tmp_path / "plan.png", plan)
    memory, share = figures[0].axes
    assert f"{plan.memory.device_total / 2**30:.1f}" in [text.get_text() for text in memory.texts]
    assert "the GPU's 79.1 GiB" in [text.get_text() for text in memory.get_legend().get_texts()]
    assert "loss workspace" in [text.get_text() for text in memory.get_legend().get_texts()]
    colours = {line.get_color() for line in share.lines}
    assert len(colours) == len(share.lines) == 4
    # No label overlaps a line: legends are above the axes, a total near the limit is to the right of it.
    tight_plan = dataclasses.replace(
        plan, cluster=dataclasses.replace(plan.cluster, memory_gib=plan.memory.device_total / 2**30 + 0.5)
    )
    report.draw(tmp_path / "plan.png", tight_plan)
    for figure in figures:
        figure.canvas.draw()
        for axis in figure.axes:
            assert axis.get_legend().get_window_extent().y0 >= axis.get_window_extent().y1
        (limit,) = (line for line in figure.axes[0].lines if "the GPU's" in line.get_label())
        across = limit.get_window_extent()
        assert not any(text.get_window_extent().overlaps(across) for text in figure.axes[0].texts)


def test_a_run_whose_faults_outpace_restarts_never_finishes(recipe, h100, capsys):
    sick = dataclasses.replace(h100, failures_per_gpu_hour=1e6)
    plan = Planner(recipe(), sick, STATED).plan(recipe(), nodes=1)
    assert plan.hours_with_faults is None
    report.print_plan(plan, plan)
    assert "never: faults are too frequent" in capsys.readouterr().out


def test_an_interval_longer_than_the_run_means_one_save_at_its_end(planner, recipe, capsys):
    plan = planner.plan(recipe(train__max_steps=3, checkpoint__asynchronous="false"), nodes=1)
    assert plan.goodput.daly > plan.hours
    report.print_plan(plan, plan)
    assert "longer than the run: save only at the end" in capsys.readouterr().out


def test_the_command_prints_and_writes_the_plan(recipe, backbone, tmp_path, capsys):
    main(
        ["plan", "--config", "configs/recipe.yaml", f"--model.backbone={backbone}", "--model.finetune=full",
         "--cluster", "configs/clusters/a100.yaml", "--nodes", "2", "--json", str(tmp_path / "plan.json"),
         "--plot", str(tmp_path / "plan.png"), "--search", "true"]
    )  # fmt: skip
    captured = capsys.readouterr()
    printed = captured.out
    assert (
        "rows/train.jsonl is not available here" in captured.err and "assumed: 1,000,000 rows of 1024 tokens" in printed
    )
    assert (
        "fits:" in printed and "interval between saves, Daly" in printed and "plans fit, the cheapest first" in printed
    )
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["gpus"] == 16 and plan["fits"]
    assert plan["gpu_hours"] == pytest.approx(plan["hours"] * 16)
    slowest, fastest = plan["stages"][0]["tokens_per_second_range"]
    assert (
        slowest < plan["stages"][0]["tokens_per_second"] < fastest
        and f"expect {slowest:,.0f} to {fastest:,.0f}" in printed
    )
    assert plan["gpu_hours_range"] == pytest.approx([0.93 * plan["gpu_hours"], 1.42 * plan["gpu_hours"]])
    total = sum(plan["memory"]["device"].values())
    assert plan["spare_bytes"] == pytest.approx(plan["cluster"]["memory_gib"] * 2**30 - total, abs=1)
    assert plan["activations"]["with_checkpointing"] < plan["activations"]["without_checkpointing"]
    assert 0 < plan["activations"]["loss_workspace"] < plan["activations"]["without_checkpointing"]
    assert plan["backbone"] == str(backbone) and "1,000,000 rows" in plan["rows"] and plan["precision"] in printed
    assert plan["verdict_code"] == "fits" and plan["rows_assumed"] and plan["tokens_per_row"] == 1024
    assert plan["dtype"] == "bf16" and plan["peak_flops_per_second"] == 312e12
    assert plan["hours_with_faults"] == pytest.approx(plan["hours"] / plan["goodput"]["at_advised"])
    assert plan["checkpoint"]["stall_seconds"] > plan["checkpoint"]["bytes"] / 16 / 0.113e9
    assert (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--nodes", "0"], "--nodes is 0, expected more than 0"),
        (["--nodes", "x"], "--nodes is 'x', expected a whole number"),
        (["--search", "maybe"], "--search is 'maybe', expected true or false"),
        (["--nodez", "3"], "unknown option --nodez; did you mean --nodes?"),
        (["--json", "."], "cannot be written"),
        (["--plot", "/proc/none/plan.png"], "cannot be written"),
        (["--plot", "plan.xyz"], "plan.xyz cannot be written: .xyz is none of "),
        (["--cluster", "h900.yaml"], "'h900.yaml' is not a file"),
        (["--tokens_per_row", "100", "--supervised_per_row", "100"], "--supervised_per_row is 100 of"),
        (["--optim.name", "adamw_8bit", "--deepspeed", "ds_configs/zero3_offload.json"], "cannot be offloaded"),
    ],
)
def test_bad_input_is_a_one_line_error_with_status_2(flags, message, backbone, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["plan", "--config", "configs/recipe.yaml", f"--model.backbone={backbone}", *flags])
    assert refused.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1] and printed.err.count("error: ") == 1
