"""`make gpu-check` with pretended devices: steps that pass, fail, hang, are skipped; what its steps name exists."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clsgen_dist.config import parse_settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import gpu_check
import limited_steps
from limited_steps import ROOT


@pytest.fixture
def check(monkeypatch):
    monkeypatch.setattr(limited_steps, "GRACE_S", 1)
    return gpu_check


def _python(text):
    return ("-c", text)


def test_steps_that_pass_fail_hang_and_are_skipped(check, tmp_path):
    """None stops the others, and a process that a hanging step started dies with it."""
    child = tmp_path / "child"
    hangs = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(child)!r}, 'w').write(str(p.pid)); print('started', flush=True); time.sleep(600)"
    )
    steps = [
        check.Step("fails", _python("print('broken'); raise SystemExit(7)"), 60),
        check.Step("hangs", _python(hangs), 3),
        check.Step("two GPUs", _python("1"), 60, ranks=2),
        check.Step("a package", _python("1"), 60, needs=("json", "no_such_module")),
        check.Step("no figures", _python("1"), 60, figures=check.loss_table),
        check.Step("says nothing", _python("1"), 60, says="resumed from"),
        check.Step(
            "passes",
            _python("import os; print('RANK' in os.environ, os.environ['X'])"),
            60,
            environment=(("X", "y"),),
            figures=lambda folder, log: {"ms": 20.0, "words": len(log.split())},
            aims=(check.Aim("passes: ms", "≤", 25.0), check.Aim("passes: ms", "≥", "passes: words", 20)),
        ),
    ]
    start = time.monotonic()
    assert check.check(steps, check.Devices(1, ("Pretended 9000",), "1.2"), tmp_path / "out") == check.FAILED_CODE
    assert time.monotonic() - start < 30
    found = {r["name"]: r for r in json.loads((tmp_path / "out/results.json").read_text())["results"]}
    assert {name: r["outcome"] for name, r in found.items()} == {
        "fails": "FAILED",
        "hangs": "TIMED OUT",
        "two GPUs": "skipped",
        "a package": "skipped",
        "no figures": "FAILED",
        "says nothing": "FAILED",
        "passes": "passed",
    }
    assert found["fails"]["reason"] == "exit codes [7], expected 0; last line: broken"
    assert found["hangs"]["reason"] == "still running after 3 s; last line: started"
    assert found["two GPUs"]["reason"] == "needs 2 GPUs, 1 found"
    assert found["a package"]["reason"] == "not installed: no_such_module"
    assert found["no figures"]["reason"] == "ValueError: the benchmark's table has no figures"
    assert found["passes"]["figures"] == {"passes: ms": 20.0, "passes: words": 2}
    assert (tmp_path / "out/passes.log").read_text() == "False y\n"
    pid = int(child.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    page = (tmp_path / "out/results.md").read_text()
    assert "1 passed, 3 FAILED, 1 TIMED OUT, 2 skipped." in page and "| GPUs | Pretended 9000 |" in page
    assert "- met: passes: ms ≤ 25.0: 20, bound 25" in page
    assert "- **missed**: passes: ms ≥ 20 × passes: words: 20, bound 40" in page


def test_ranks_do_not_wait_for_one_that_failed(check, tmp_path):
    one_fails = "import os, time; os.environ['RANK'] == '1' and exit(5); time.sleep(600)"
    step = check.Step("ranks", _python(one_fails), 60, ranks=2)
    start = time.monotonic()
    result = check.run(step, 2, tmp_path)
    assert result.outcome is check.Outcome.FAILED and "exit codes [0, 5]" in result.reason
    assert time.monotonic() - start < 20


def test_a_training_run_is_asked_to_save_and_must_say_so(check, tmp_path):
    saves = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(75)); print('ready'); time.sleep(600)"
    step = check.Step("saves", _python(saves), 60, is_rank=True, signal_after_s=2)
    assert check.run(step, 1, tmp_path).outcome is check.Outcome.PASSED
    early = dataclasses.replace(step, command=_python("1"))
    assert check.run(early, 1, tmp_path).reason.startswith("exit codes [0], expected 75")


def test_without_a_gpu_it_says_so_in_one_line(check, monkeypatch, capsys):
    monkeypatch.setattr(check, "probe", lambda: check.Devices(0, why_none="no driver"))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert check.main() == check.NO_GPU_CODE == 3
    assert capsys.readouterr().out == "no GPU found, nothing checked (no driver)\n"


def test_a_word_that_no_step_has_is_refused(check, monkeypatch, capsys):
    monkeypatch.setattr(check, "probe", lambda: check.Devices(1))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", "nosuch"])
    with pytest.raises(SystemExit) as ended:
        check.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "--only nosuch: no step has this" in said
    assert all(step.name in said for step in check.STEPS)


def test_sigterm_ends_the_step_that_runs(tmp_path):
    child = tmp_path / "child"
    step = f"import os, time; open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    text = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import gpu_check as g; from pathlib import Path; "
        f"g.probe = lambda: g.Devices(1); g.STEPS = (g.Step('hangs', ('-c', {step!r}), 600),); "
        f"sys.argv = ['gpu_check.py', '--output', {str(tmp_path / 'out')!r}]; sys.exit(g.main())"
    )
    checking = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (child.exists() and child.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    process = psutil.Process(int(child.read_text()))
    try:
        checking.terminate()
        assert checking.wait(60) == 128 + 15
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    finally:
        checking.kill()
        if process.is_running():
            process.kill()


def test_a_driver_that_hangs_is_no_gpu(check, monkeypatch):
    def hangs(*_, timeout, **__):
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(check.subprocess, "run", hangs)
    assert check.probe(5).why_none == "torch did not answer within 5 s whether there is one"


def test_what_the_steps_name_exists(check, tmp_path):
    """Scripts, settings, and the rows of the loss benchmark that aims compare."""
    check.prepare(tmp_path, check.Devices(2))
    names = [step.name for step in check.STEPS]
    assert len(set(names)) == len(names)
    for step in check.STEPS:
        first, *words = (word.format(folder=tmp_path) for word in step.command)
        assert first == "-m" or (ROOT / first).is_file()
        if first == "train.py":
            config = words.index("--config")
            settings = parse_settings(words, default_config="")
            assert (ROOT / words[config + 1]).is_file() and settings.output_dir.startswith(str(tmp_path))
        for aim in step.aims:
            for figure in filter(lambda bound: isinstance(bound, str), (aim.figure, aim.bound)):
                assert figure.split(": ")[0] in names
                if figure.startswith("loss benchmark: "):
                    method = re.fullmatch(r"\w+ n=\d+ (.*), (ms|extra MB)", figure.split(": ")[1])[1]
                    assert f'"{method}"' in (ROOT / "benchmarks/loss_gpu.py").read_text()


def test_figures_are_read_from_the_real_tools(check, tmp_path):
    found = check.loss_table(tmp_path, (ROOT / "benchmarks/results/loss-h100.txt").read_text())
    assert {"8b n=2048 naive, all tokens, ms", "70b n=2048 clsgen, recomputed, extra MB"} <= found.keys()
    assert check.tests_passed(tmp_path, "...\n12 passed, 3 skipped in 2.0s") == {"passed": 12, "skipped": 3}
    with pytest.raises(ValueError, match="no test ran"):
        check.tests_passed(tmp_path, "3 skipped, 9 deselected in 2.0s")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(10):
            for tag, value in {"loss/generation": 3 - step / 9, "loss/classification": 1, "memory/peak_gib": step,
                               "speed/tokens_per_second": 100 + step}.items():  # fmt: skip
                writer.add_scalar(tag, value, step)
    read = check.training("run")(tmp_path, "")
    assert (read["steps"], read["tokens/s"], read["peak GiB"]) == (10, 104.5, 9)
    assert (read["generation loss, first"], read["generation loss, last"]) == (3, 2)


@pytest.mark.long
def test_the_step_benchmark_runs_on_a_cpu(check):
    flags = ["--model", "tiny", "--device", "cpu", "--rows", "1x32", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "benchmarks/step_gpu.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = check.step_table(ROOT, done.stdout)
    for aim in next(step for step in check.STEPS if step.name == "step benchmark").aims:
        assert figures[aim.figure.split(": ")[1]] > 0 and figures[aim.bound.split(": ")[1]] > 0


def test_predictions_with_errors_fail_the_check(tmp_path):
    file = tmp_path / "predictions.jsonl"
    good = {"id": "1", "label": "a", "explanation": "because"}
    file.write_text(f"{json.dumps(good)}\n{json.dumps({**good, 'explanation': ''})}\n")
    assert gpu_check.predicted(tmp_path, "") == {"rows": 2, "with explanation": 1}
    file.write_text(f'{json.dumps(good)}\n{{"id": "2", "error": "no module"}}\n')
    with pytest.raises(ValueError, match=r"1 of 2 rows have no prediction: .*no module"):
        gpu_check.predicted(tmp_path, "")
    file.write_text("")
    with pytest.raises(ValueError, match="0 of 0"):
        gpu_check.predicted(tmp_path, "")
