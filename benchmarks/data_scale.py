"""Speed and memory for growing data sets: from a file to packed batches, against plain ``datasets``; gate and split.

    python benchmarks/data_scale.py                          # 10k, 100k, 1M rows; about six minutes on two cores
    python benchmarks/data_scale.py --rows 10000             # seconds
    python benchmarks/data_scale.py --of curation            # gate and split; 0.7, 3 and 20 CPU minutes

Synthetic rows of realistic lengths: a text of 10 to 60 words drawn from comve-like sentences, a label, an explanation.
Ours: ``open_table`` (read, check, tokenise, on all cores), the same again (warm start), then the training stream's
packed steps. Peer: ``load_dataset("json")``, ``map`` with the same tokenizer on as many processes, and Hugging Face's
padding collator with a shuffling DataLoader. Each runs in a fresh process. Memory is the peak Private_Dirty of that
process and its children, sampled every 50 ms; it excludes pages of mapped files, which the kernel may drop at any time.

``--of curation``: ``clsgen data gate`` and ``clsgen data split`` on texts of 20 to 90 words with numbers, three classes
that words speak for, explanations that quote their texts, and a fault in one row of seven: wrong labels, boilerplate,
invented numbers, copies, another language, labels in texts; one text in twenty is nearly that of the row before. Start
is a first run on 200 rows, which imports what is needed; CPU seconds are those of all processes without it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEXT = """the a of to and in is was it for on are with they be at one have this from had by word but what some we can
out other were all there when up use your how said each she which do their time if will way about many then them write
would like so these her long make thing see him two has look more day could go come did number sound most people
elephant refrigerator statement sense against common cereal statistics photograph mountain yesterday"""
WORDS = TEXT.split()
BATCHES = 200


def write_rows(path: Path, count: int) -> None:
    """Write a JSONL file of ``count`` rows."""
    import numpy as np

    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for start in range(0, count, 10_000):
            lengths = rng.integers(10, 60, 10_000)
            words = rng.integers(len(WORDS), size=(10_000, 60))
            for n in range(min(10_000, count - start)):
                row = {
                    "id": str(start + n),
                    "text": " ".join(WORDS[w] for w in words[n, : lengths[n]]),
                    "label": "AB"[n % 2],
                    "explanation": " ".join(WORDS[w] for w in words[n, -12:]),
                }
                file.write(json.dumps(row) + "\n")


FUNCTION_TEXT = """the a of to and in is was it for on are with they be at one have this from had by but some can out
other were all there when up use how each she which do their if will about then them would so these her him has more
than been who its now did my over only after most also before through much where under"""
FUNCTION_WORDS = FUNCTION_TEXT.split()
LABELS = ("complaint", "inquiry", "praise")


def curation_rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows with something to find for each check."""
    import numpy as np

    rng = np.random.default_rng(0)
    syllables = [a + b + c for a in "bdfgklmnprstv" for b in "aeiou" for c in "nrslt"]
    names = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(20_000)]
    share = (1 / np.arange(10, len(names) + 10)).cumsum()
    previous = ""
    for n in range(count):
        words = [names[at] for at in np.searchsorted(share / share[-1], rng.random(rng.integers(20, 90)))]
        for at in np.flatnonzero(rng.random(len(words)) < 0.45):
            words[at] = FUNCTION_WORDS[rng.integers(len(FUNCTION_WORDS))]
        label = int(rng.integers(3))
        for at in rng.integers(len(words), size=4):
            words[at] = names[100 + 40 * label + rng.integers(40)]
        words[rng.integers(len(words))] = number = str(rng.integers(1, 5000))
        words[9::13] = [f"{word}." for word in words[9::13]]
        text, lot, at = " ".join(words), rng.random(), int(rng.integers(len(words) - 6))
        if lot < 0.05 and previous:  # nearly, or quite, the row before
            text = previous.replace(number, "", 1) if lot < 0.01 else f"{previous} {number}"
        previous, words = text, text.split()
        quote, detail, name = " ".join(words[at : at + 4]), " ".join(words[at + 2 : at + 5]).strip("."), LABELS[label]
        explanations = [
            f'It says "{quote}" and speaks of {detail}, which suggests {name}.',
            f"The mention of {detail} beside {number} is typical of {name}, as {words[3]} comes with {words[5]}.",
            f"With {words[1]} {words[2]} and {detail} this is {name} rather than {LABELS[(label + 1) % 3]}.",
            f"Since {detail}, after {words[0]} {words[4]}, it is {name}.",
        ]
        row = {"id": f"r{n}", "text": text, "label": name, "explanation": explanations[rng.integers(4)]}
        if rng.random() < 0.5:
            row["evidence"] = [quote]
        yield row | _fault(row, int(rng.integers(50)), LABELS[(label + 1) % 3])


def _fault(row: dict[str, Any], lot: int, other: str) -> dict[str, Any]:
    """The cells of a row's fault; most rows have none."""
    faults = [
        {"label": other},
        {"explanation": row["text"]},
        {"explanation": f"The overall picture suggests {row['label']}, as experience teaches."},
        {"explanation": f"{row['explanation']} There were {99_000 + lot} of them."},
        {"explanation": row["label"]},
        {"text": f"{row['text']} Label: {row['label']}"},
        {"explanation": f"Der Absender ist mit seiner Bestellung nicht zufrieden, deshalb gilt {row['label']}."},
    ]
    return faults[lot] if lot < len(faults) else {}


def write_curation_rows(path: Path, count: int) -> None:
    """Write a JSONL file of ``count`` rows."""
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in curation_rows(count))


class Memory:
    """Measures the peak private memory (MB) of this process and its children while it is entered."""

    def __enter__(self) -> Memory:
        import psutil

        self.peak, self._stop = 0.0, threading.Event()
        self._me = psutil.Process()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            total = 0
            for process in [self._me, *self._me.children(recursive=True)]:
                with contextlib.suppress(OSError):
                    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                    total += int(re.search(r"Private_Dirty:\s+(\d+) kB", rollup)[1])  # type: ignore[index]
            self.peak = max(self.peak, total / 1e3)


def ours(path: Path) -> dict[str, float]:
    """Build, warm start, and packed steps."""
    import numpy as np

    from clsgen_dist.data.curriculum.stages import RunOrder, plan_stages
    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.data.example import Columns
    from clsgen_dist.data.loader import TrainStream
    from clsgen_dist.data.tables.build import open_table
    from clsgen_dist.data.tables.dataset import RowDataset
    from clsgen_dist.data.tables.spec import TableSpec
    from clsgen_dist.model.backbone import backbone_path, load_tokenizer

    encoder = Encoder(
        load_tokenizer(backbone_path("demo:smollm2-135m")), system=None, question="Which?", max_prompt_length=256
    )
    spec = TableSpec(Columns(), None, 64, encoder.tokens_of, encoder.end_token, encoder.tokenizer_key)
    with Memory() as build:
        start = time.perf_counter()
        count = len(open_table(str(path), spec))
        build_s = time.perf_counter() - start
    with Memory() as steps:
        start = time.perf_counter()
        rows = RowDataset(open_table(str(path), spec), encoder)
        stages = plan_stages([], rows=len(rows), batch_size=64, epochs=1, max_steps=None)
        order = RunOrder(stages, np.zeros(len(rows)), 0)
        stream = TrainStream(rows, order, batch_size=64, micro_batch_tokens=4096, rank=0, world_size=1)
        stream.step(0)
        warm_s = time.perf_counter() - start
        start = time.perf_counter()
        for step in range(1, min(BATCHES, stream.steps - 1)):
            stream.step(step)
        step_s = (time.perf_counter() - start) / (min(BATCHES, stream.steps - 1) - 1)
    return {
        "rows/s": count / build_s, "build MB": build.peak, "warm s": warm_s,
        "batch rows/s": 64 / step_s, "batch MB": steps.peak,
    }  # fmt: skip


def theirs(path: Path) -> dict[str, float]:
    """Plain datasets and Hugging Face's collator."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader
    from transformers import DataCollatorForSeq2Seq

    from clsgen_dist.model.backbone import backbone_path, load_tokenizer

    tokenizer = load_tokenizer(backbone_path("demo:smollm2-135m"))

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        prompts = tokenizer([f"{text}\n\nWhich?\n" for text in batch["text"]])["input_ids"]
        reasons = tokenizer(batch["explanation"])["input_ids"]
        return {
            "input_ids": [p + r for p, r in zip(prompts, reasons, strict=True)],
            "labels": [[-100] * len(p) + r for p, r in zip(prompts, reasons, strict=True)],
        }

    def load() -> Any:
        data = load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "hf"))
        return data.map(encode, batched=True, num_proc=os.cpu_count(), remove_columns=data.column_names, desc=None)

    with Memory() as build:
        start = time.perf_counter()
        count = len(load())
        build_s = time.perf_counter() - start
    with Memory() as steps:
        start = time.perf_counter()
        loader = iter(DataLoader(load(), 64, shuffle=True, collate_fn=DataCollatorForSeq2Seq(tokenizer)))
        next(loader)
        warm_s = time.perf_counter() - start
        start = time.perf_counter()
        done = 0
        for _ in range(min(BATCHES, count // 64) - 1):
            next(loader)
            done += 1
        step_s = (time.perf_counter() - start) / done
    return {
        "rows/s": count / build_s, "build MB": build.peak, "warm s": warm_s,
        "batch rows/s": 64 / step_s, "batch MB": steps.peak,
    }  # fmt: skip


def gated(path: Path, folder: Path) -> None:
    """``clsgen data gate``."""
    from clsgen_dist.curation.gate import gate
    from clsgen_dist.curation.settings import CurationSettings
    from clsgen_dist.data.example import Columns

    gate(str(path), folder, columns=Columns(), labels=None, space="auto", settings=CurationSettings())


def split(path: Path, folder: Path) -> None:
    """``clsgen data split``."""
    from clsgen_dist.curation.splits import SplitSettings, split_file

    fractions = {"train": 0.8, "dev": 0.1, "calibration": 0.05, "test": 0.05}
    split_file(str(path), folder, SplitSettings(fractions=fractions))


def curated(path: Path, command: Callable[[Path, Path], None]) -> dict[str, float]:
    """A command on a few rows, then on all."""
    few = path.with_name("few.jsonl")
    write_curation_rows(few, 200)
    command(few, path.with_name(f"few-{command.__name__}"))
    start_s, begun, rows = sum(os.times()[:4]), time.perf_counter(), sum(1 for _ in path.open("rb"))
    with Memory() as memory:
        command(path, path.with_name(command.__name__))
    cpu_s = sum(os.times()[:4]) - start_s
    return {
        "start, CPU s": start_s, "CPU s": cpu_s, "CPU ms a row": cpu_s / rows * 1e3,
        "wall s": time.perf_counter() - begun, "MB": memory.peak,
    }  # fmt: skip


WORKERS: dict[str, Callable[[Path], dict[str, float]]] = {
    "clsgen": ours,
    "datasets.map + HF collator": theirs,
    "clsgen data gate": lambda path: curated(path, gated),
    "clsgen data split": lambda path: curated(path, split),
}
COMPARED = {
    "tables": (write_rows, "rows of 10 to 60 words, one explanation of 12", list(WORKERS)[:2]),
    "curation": (write_curation_rows, "texts of 20 to 90 words, one explanation of 14", list(WORKERS)[2:]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--of", choices=COMPARED, default="tables")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print("RESULT " + json.dumps(WORKERS[args.worker](args.file)))
        return
    write, described, names = COMPARED[args.of]
    print(f"{platform.machine()}, {os.cpu_count()} cores; {described}")
    columns: list[str] = []
    for count in args.rows:
        folder = Path(tempfile.mkdtemp(prefix="data-scale-"))
        try:
            write(folder / "rows.jsonl", count)
            for name in names:
                done = subprocess.run(
                    [sys.executable, __file__, "--worker", name, "--file", str(folder / "rows.jsonl")],
                    capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
                )  # fmt: skip
                lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
                if not lines:
                    sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
                answer = json.loads(lines[0].removeprefix("RESULT "))
                if not columns:
                    columns = list(answer)
                    print("| rows | by | " + " | ".join(columns) + " |\n|--:|---|" + "--:|" * len(columns))
                cells = [f"{answer[c]:,.2f}" if answer[c] < 100 else f"{answer[c]:,.0f}" for c in columns]
                print(f"| {count:,} | {name} | " + " | ".join(cells) + " |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
