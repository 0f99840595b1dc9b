"""From raw rows with planted faults to a trained model, by the commands that a user has; what each step caught.

    python benchmarks/data_construction.py                     # SmolLM2: trains twice, half an hour on two cores

300 rows of the demo's set (scikit-learn's breast cancer in words) get faults whose place is known: wrong labels,
explanations of another class, leaks, boilerplate, invented numbers, copied texts, missing explanations. Then

    clsgen data check ─▶ data gate ─▶ data review (a browser, by keyboard) ─▶ data explain (teacher: the model trained
    on the raw rows, behind clsgen serve) ─▶ train ─▶ evaluate, on held-out rows without faults

The reviewer is a script that knows the rows as they were: it stands for a person who makes no mistakes. It decides only
on what the gate sends to it. ``before`` is trained on the raw rows, ``after`` on what came of them, by one recipe.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from planted_rows import CODES, Fault, Planted, Row, plant

from clsgen_dist.data.demos import breast_cancer
from clsgen_dist.evaluation.interval import share_interval
from clsgen_dist.inference.evaluate import evaluate
from clsgen_dist.inference.evaluation import Evaluation
from clsgen_dist.inference.measures import ExplanationMeasures
from clsgen_dist.io.tables import markdown_table

ROWS = 300
_COMMAND = [sys.executable, "-m", "clsgen_dist"]


@dataclass(frozen=True)
class Tools:
    """How the steps are run; the tests put faster ways here."""

    clsgen: Callable[..., None]
    """``clsgen(words, check=True)`` runs a command; unless ``check`` is false, a status other than 0 is an error."""
    train: Callable[[Sequence[str]], None]
    """Trains with these flags."""
    browser: Any
    """A selenium driver."""


@dataclass(frozen=True)
class Outcome:
    """What became of the planted faults, and of the models."""

    planted: list[Planted]
    findings: set[str]
    """Codes of what the check of the file found."""
    issues: dict[str, set[str]]
    """By row id, what the gate found."""
    decisions: Counter[str]
    """Of the reviewer."""
    final: dict[str, Row]
    """By id, the rows that were trained on in the end."""
    before: Evaluation
    after: Evaluation
    """Compared with ``before`` on the same rows."""


def construct(folder: Path, tools: Tools, flags: Sequence[str], *, test_rows: int | None = None) -> Outcome:
    """All steps, in ``folder``; ``flags`` are given to both trainings."""
    splits = breast_cancer.load_splits(0)
    dev = splits["dev"].rows
    extra = ROWS - len(splits["train"].rows)
    planted = plant([*splits["train"].rows, *dev[:extra]])
    raw = write(folder / "raw.jsonl", [one.raw for one in planted])
    write(folder / "dev.jsonl", dev[extra:])
    test = write(folder / "test.jsonl", splits["test"].rows[:test_rows])

    before = _model(folder / "before", raw, folder, tools, flags)
    page, findings = folder / "check.html", folder / "check.json"
    tools.clsgen(["data", "check", str(raw), "--report", str(page), "--json", str(findings)], check=False)
    gated = folder / "gated"
    tools.clsgen(["data", "gate", str(raw), "--output", str(gated), "--curation.severity.label_in_text", "reject"])
    issues = {row["id"]: {issue["code"] for issue in row["issues"]} for row in read(gated / "reasons.jsonl")}
    decisions = review(gated / "review.jsonl", folder, tools.browser, {one.good["id"]: one for one in planted})
    tools.clsgen(
        ["data", "review", "--store", str(folder / "review.sqlite"), "--export", str(folder / "reviewed.jsonl")]
    )
    merged = write(folder / "merged.jsonl", [*read(gated / "kept.jsonl"), *read(folder / "reviewed.jsonl")])
    explained = folder / "explained.jsonl"
    with serving(["serve", "--model", str(before)], folder / "serve.log") as address:
        tools.clsgen(
            ["data", "explain", str(merged), "--output", str(explained), "--url", f"{address}/v1", "--teacher", "self",
             "--max_tokens", "48", "--temperature", "0"]
        )  # fmt: skip
    after = _model(folder / "after", explained, folder, tools, flags)
    return Outcome(
        planted,
        {one["finding"] for one in json.loads(findings.read_text())["findings"]},
        issues,
        decisions,
        {row["id"]: row for row in read(explained)},
        evaluate(before, str(test), output=folder / "report-before"),
        evaluate(after, str(test), compare=before, output=folder / "report-after"),
    )


def _model(run: Path, rows: Path, folder: Path, tools: Tools, flags: Sequence[str]) -> Path:
    """Train on rows, export and calibrate; the exported folder."""
    data = ["--data.train", str(rows), "--data.dev", str(folder / "dev.jsonl"), "--output_dir", str(run)]
    tools.train([*data, *flags])
    model = folder / f"model-{run.name}"
    tools.clsgen(["export", "--checkpoint", str(run), "--output", str(model)])
    tools.clsgen(["calibrate", "--model", str(model), "--data", str(folder / "dev.jsonl")])
    return model


def review(rows: Path, folder: Path, browser: Any, truth: dict[str, Planted]) -> Counter[str]:
    """Decide on every row of a file by keyboard, as a person who knows how they were; returns the decisions."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    select_all = "Ctrl+A"

    def press(keys: Sequence[str]) -> None:
        chain = ActionChains(browser, duration=0)
        for key in keys:
            if key == select_all:
                chain.key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL)
            else:
                chain.send_keys(key)
        chain.perform()

    def shown() -> str:
        """The row's id, `done`, or nothing while the page changes."""
        if browser.execute_script("return document.readyState") != "complete":
            return ""
        if browser.find_elements("id", "done-title"):
            return "done"
        found = browser.find_elements("id", "row-id")
        return str(found[0].text) if found else ""

    waiting = WebDriverWait(None, 20, poll_frequency=0.02, ignored_exceptions=[WebDriverException])
    made: Counter[str] = Counter()
    words = ["data", "review", str(rows), "--store", str(folder / "review.sqlite"), "--reviewer", "Ada"]
    with serving(words, folder / "review.log") as address:
        browser.get(address)
        here = waiting.until(lambda _: shown())
        while here != "done":
            row = truth[here]
            labels = [of.text for of in browser.find_elements("css selector", "#labels bdi")]
            if row.raw["label"] != row.good["label"]:
                made["relabel"] += 1
                press([str(labels.index(row.good["label"]) + 1), "a"])
            elif row.raw["explanation"] == row.good["explanation"] or row.raw["explanation"] is None:
                made["accept"] += 1
                press("a")
            elif row.fault == Fault.OTHER_CLASS:
                made["mend"] += 1
                press(["e", select_all, row.good["explanation"], Keys.ESCAPE, "a"])
            else:
                made["reject"] += 1
                press("r")
            here = waiting.until(lambda _, last=here: (now := shown()) != last and now)
        browser.get("about:blank")
    return made


@contextlib.contextmanager
def serving(words: Sequence[str], log: Path) -> Iterator[str]:
    """The address of a command that serves, once it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with log.open("wb") as file:
        command = [*_COMMAND, *words, "--port", address.rsplit(":", 1)[1]]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{' '.join(words[:2])} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def faults_table(outcome: Outcome) -> str:
    """For each planted fault: how many rows, caught under its own name, caught at all, and what is left at the end."""
    rows = []
    for fault in Fault:
        ids = [one.good["id"] for one in outcome.planted if one.fault == fault]
        found = [outcome.issues[i] for i in ids]
        own = "-" if fault == Fault.MISSING else f"{sum(CODES[fault] in codes for codes in found)}"
        anything = "-" if fault == Fault.MISSING else f"{sum(bool(codes) for codes in found)}"
        rows.append([str(fault), str(len(ids)), own, anything, str(len(remaining(outcome, fault)))])
    good = [one.good["id"] for one in outcome.planted if one.fault is None]
    alarms = sum(bool(outcome.issues[i]) for i in good)
    rows.append(["no fault (false alarms)", str(len(good)), "-", str(alarms), "-"])
    return markdown_table([["planted", "rows", "found as such", "found", "left in the end"], *rows])


def remaining(outcome: Outcome, fault: Fault) -> list[str]:
    """Ids of rows that were trained on in the end and still have their planted fault."""
    left = []
    for one in outcome.planted:
        row = outcome.final.get(one.good["id"])
        if one.fault != fault or row is None:
            continue
        texts = [text for text in (row.get("explanation"), *(row.get("explanations") or ())) if text]
        is_left = {
            Fault.WRONG_LABEL: row["label"] != one.good["label"],
            Fault.LEAK: row["text"] != one.good["text"],
            Fault.MISSING: not texts,
        }.get(fault, one.raw["explanation"] in texts)
        if is_left:
            left.append(one.good["id"])
    return left


def models_table(outcome: Outcome) -> str:
    """The two models on the held-out rows, with 95 % intervals."""
    columns = [_scores(outcome.before), _scores(outcome.after)]
    rows = [[name, columns[0][name], columns[1][name]] for name in columns[0]]
    rows.insert(0, ["rows trained on", str(len(outcome.planted)), str(len(outcome.final))])
    given = [sum(one.raw["explanation"] is not None for one in outcome.planted)]
    given.append(sum(bool(row.get("explanation") or row.get("explanations")) for row in outcome.final.values()))
    rows.insert(1, ["of these with an explanation", *map(str, given)])
    return markdown_table([["held-out", "before", "after"], *rows])


def _scores(found: Evaluation) -> dict[str, str]:
    calibrated = next(scores for scores in found.report.scores if scores.name.endswith("recalibrated"))
    texts = [prediction.explanation or "" for prediction in found.predictions]
    stated = [breast_cancer.evidence_is_true(row.text, text) for row, text in zip(found.examples, texts, strict=True)]
    digits = [any(character.isdigit() for character in text) for text in texts]
    no_finding = [not breast_cancer.stated_findings(text) for text in texts]
    return {
        **{name: _with_interval(calibrated, name.lower()) for name in ("AUROC", "F1", "NLL", "ECE")},
        **_agreement(found.explanations),
        "states findings, all of them in the text": _share(stated),
        "states no finding": _share(no_finding),
        "has a number (no text has one)": _share(digits),
    }


def _agreement(measures: ExplanationMeasures | None) -> dict[str, str]:
    """Whether explanations state what the head decided."""
    if measures is None:
        return {}
    kappa, contradicts = measures.kappa, measures.contradictions
    low, high = contradicts.interval.low, contradicts.interval.high
    return {
        "class stated and class decided, κ": f"{kappa.value:.3f} [{kappa.interval.low:.3f}, {kappa.interval.high:.3f}]",
        "contradicts the decision": f"{contradicts.mean:.3f} [{low:.3f}, {high:.3f}]",
    }


def _with_interval(scores: Any, name: str) -> str:
    interval = scores.intervals.get(name)
    return f"{scores.metrics[name]:.3f}" + (f" [{interval.low:.3f}, {interval.high:.3f}]" if interval else "")


def _share(is_N: Sequence[bool]) -> str:
    interval = share_interval(np.array(is_N, dtype=bool))
    return f"{sum(is_N) / len(is_N):.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[Row]:
    """Rows of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _chromium(folder: Path) -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder / 'chromium'}")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def _run(command: Sequence[str], check: bool = True) -> None:
    print("--", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=check)


def _train(flags: Sequence[str]) -> None:
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "1", "--master_port", "29611"]
    _run([*launcher, "--module", "clsgen_dist", "train", "--config", "configs/demo.yaml", *flags])


def main() -> None:
    """Run all steps and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/data_construction"), help="must not exist")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True)
    browser = _chromium(arguments.output)
    try:
        tools = Tools(lambda words, check=True: _run([*_COMMAND, *words], check), _train, browser)
        outcome = construct(arguments.output.resolve(), tools, ["--seed", str(arguments.seed)])
    finally:
        browser.quit()
    print(f"\n{platform.machine()}, {os.cpu_count()} cores; seed {arguments.seed}\n")
    print(faults_table(outcome), models_table(outcome), sep="\n\n")
    print("\nreviewer:", ", ".join(f"{count} {name}" for name, count in outcome.decisions.most_common()))
    print("\nafter less before:")
    differences = outcome.after.comparison.differences if outcome.after.comparison else {}
    for name, one in differences.items():
        low, high = one.interval.low, one.interval.high
        print(f"  {name} {one.value:+.3f} [{low:+.3f}, {high:+.3f}], p = {one.p_value:.3f}")


if __name__ == "__main__":
    main()
