"""Fixtures that several modules share: tiny models on disk, the real sets, commands as a user runs them."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Counts when Triton is imported, and something imports it early: its kernels run on the CPU, in Python.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# The same cases every time: a new one that fails is found by `make test-long`, not by whoever changes something else.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


FIRST = (
    "tests/faults/test_faults.py",
    "tests/slurm/test_jobs.py",
    "tests/dist/test_resume.py",
    "tests/dist/test_label_spaces.py",
    "tests/dist/test_terms.py",
    "tests/test_docs.py",
    "tests/inference/test_export_and_predict.py",
    "tests/curation/test_data_construction.py",
    "tests/dist/test_training.py",
    "tests/plan/test_plan.py",
    "tests/slurm/test_chains.py",
    "tests/data/checks/test_exact_duplicates.py",
    "tests/preflight/test_preflight.py",
    "tests/model/test_packed.py",
    "tests/slurm/test_nodes.py",
)
"""Files that take longest: with two workers, neither is left with one of them alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    place = {ROOT / file: number for number, file in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(FIRST)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real sets with human explanations."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data (real sets), which is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded backbone, converted."""
    from clsgen_dist.model.smollm2 import smollm2_folder

    return smollm2_folder()


@pytest.fixture(scope="session")
def tiny_backbone(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers and 64 wide with SmolLM2's tokenizer: seconds instead of minutes."""
    return _tiny(smollm2, tmp_path_factory.mktemp("tiny") / "llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_untied(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an untied LM head."""
    return _tiny(smollm2, tmp_path_factory.mktemp("tiny") / "llama-untied", tie_word_embeddings=False)


def _tiny(tokenizer_folder: Path, folder: Path, *, tie_word_embeddings: bool) -> Path:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """``server(request)``: real ranks and commands, forked from a process that has imported everything."""
    log = tmp_path_factory.mktemp("server") / "log"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ranks"],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        text=True,
    )

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, log.read_text()[-3000:]
        answer: dict[str, Any] = json.loads(line)
        return answer

    yield ask
    assert process.stdin
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture(scope="session")
def run_command(
    server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command from the checkout as a user would; ``check=False`` for commands that may fail.

    ``clsgen`` is forked from a process that has imported everything: seconds less for each.
    """
    folder = tmp_path_factory.mktemp("commands")

    def run(*args: str, check: bool = True, timeout: float = 300, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        if args[0] == "clsgen":
            words = [str(word) for word in args[1:]]
            request = {"command": words, "cwd": str(cwd), "env": environment, "log": str(folder / "log")}
            status = server({**request, "timeout": timeout})["status"]
            out, err = ((folder / f"log.{end}").read_text() for end in ("out", "err"))
            done = subprocess.CompletedProcess(args, status, out, err)
        else:
            bin_folder = Path(sys.executable).parent
            command = [str(bin_folder / args[0]) if (bin_folder / args[0]).exists() else args[0], *args[1:]]
            done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(args)} exited with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    return run


@pytest.fixture(scope="session")
def new_browser(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """``new_browser()``: headless Chromium that resolves no host names, so that it reaches this machine only."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian packages chromium and chromium-driver (apt-packages.txt)")
    from selenium import webdriver

    def start() -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--window-size=1400,1000",
            f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
        ):
            options.add_argument(argument)
        return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))

    return start


@pytest.fixture(scope="session")
def browser(new_browser: Callable[[], Any]) -> Iterator[Any]:
    """A browser that tests share."""
    chrome = new_browser()
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture(scope="session")
def encoder(smollm2: Path) -> Any:
    """The embedded backbone's tokenizer in a short prompt."""
    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.model.backbone import load_tokenizer

    return Encoder(load_tokenizer(str(smollm2)), system="Be brief.", question="Why?", max_prompt_length=96)


@pytest.fixture
def row_dataset(encoder: Any, tmp_path: Path) -> Callable[..., Any]:
    """``row_dataset(rows)``: rows given as dictionaries, read, checked and tokenised into a table on disk."""
    from clsgen_dist.data.example import Columns
    from clsgen_dist.data.tables.build import open_table
    from clsgen_dist.data.tables.dataset import RowDataset
    from clsgen_dist.data.tables.spec import TableSpec

    def make(rows: list[dict[str, Any]], labels: tuple[str, ...] | None = None) -> Any:
        path = tmp_path / f"rows-{len(list(tmp_path.glob('rows-*')))}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = TableSpec(
            columns=Columns(difficulty="difficulty"),
            labels=labels,
            max_explanation_length=64,
            tokens_of=encoder.tokens_of,
            end_token=encoder.end_token,
            tokenizer=encoder.tokenizer_key,
        )
        return RowDataset(open_table(str(path), spec), encoder)

    return make


@pytest.fixture(scope="session")
def mixed() -> list[dict[str, Any]]:
    """41 rows of every kind and many lengths: with and without label, with none to three explanations."""
    rows = []
    for i in range(41):
        row: dict[str, Any] = {"id": f"r{i}", "text": f"row {i} " + "word " * (i * 7 % 23)}
        if i % 7:
            row["label"] = ("no", "yes")[i % 3 == 0]
        if i % 5 or "label" not in row:
            row["explanations"] = [f"because {i} {k} " + "so " * (i % 4) for k in range(1 + i % 3)]
        rows.append(row)
    return rows


# --- real runs of `deepspeed train.py` on a tiny backbone


@pytest.fixture(scope="session")
def recipe(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """``recipe(output, **overrides)``: flags of a small run; all weights are partitioned, none is persistent."""
    from clsgen_dist.data.demos.breast_cancer import demo_file

    zero = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = tmp_path_factory.mktemp("zero") / "zero3.json"
    file.write_text(json.dumps(zero))
    few = tmp_path_factory.mktemp("dev") / "dev.jsonl"
    few.write_text("\n".join(demo_file("dev").read_text().splitlines()[:24]) + "\n")

    def flags(output: Path, **overrides: Any) -> list[str]:
        settings = {
            "output_dir": output,
            "deepspeed": file,
            "data.dev": "null",
            "data.max_prompt_length": 128,
            "model.backbone": tiny_backbone,
            "model.finetune": "full",
            "model.top_layers": "null",
            "model.head_dropout": 0.0,
            "model.head_init": "label_tokens",
            "objectives.generation.weight": 2.0,
            "objectives.classification.weight": 0.5,
            "model.lora_rank": 4,
            "optim.lr": 1e-3,
            "optim.head_lr": 2e-3,
            "optim.warmup_fraction": 0.1,
            "train.batch_size": 10,
            "train.micro_batch_tokens": 256,
            "train.epochs": 1,
            "train.eval_every": "null",
            "train.collective_timeout_s": 60,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        if settings["data.dev"] == "few":  # of the demo's
            settings["data.dev"] = few
        return [f"--{key}={value}" for key, value in settings.items()]

    return flags


@pytest.fixture(scope="session")
def launch(run_command: Callable[..., Any], recipe: Callable[..., list[str]]) -> Callable[..., Any]:
    """``launch(output, ranks=2, check=True, **overrides)``: the command a user would type; slow."""

    def run(output: Path, ranks: int = 2, check: bool = True, **overrides: Any) -> Any:
        launcher = ["deepspeed", "--num_gpus", str(ranks), "--master_port", _free_port()]
        return run_command(*launcher, "train.py", *recipe(output, **overrides), check=check)

    return run


@pytest.fixture(scope="session")
def train(ranks: Callable[..., Any], recipe: Callable[..., list[str]]) -> Callable[..., Any]:
    """``train(output, ranks=2, check=True, **overrides)``: the same ranks without the launcher."""
    start = ranks

    def run(output: Path, ranks: int = 2, check: bool = True, **overrides: Any) -> Any:
        done = start(recipe(output, **overrides), ranks=ranks, timeout=300)
        assert not check or set(done.status) == {0}, f"{done.status}\n{done.text[-6000:]}"
        return SimpleNamespace(returncode=max(done.status, key=abs), stdout=done.text, stderr=done.text)

    return run


@pytest.fixture(scope="session")
def free_port() -> Callable[[], str]:
    """A TCP port nobody listens on, at each call."""
    return _free_port


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ranks(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``ranks(argv, ranks=2, faults=[...])``: real ranks, forked from a process that has imported everything."""
    folder = tmp_path_factory.mktemp("ranks")
    count = itertools.count()

    def start(argv: list[str], ranks: int = 2, **request: Any) -> SimpleNamespace:
        log = folder / f"{next(count)}.log"
        answer = server({"argv": argv, "ranks": ranks, "log": str(log), **request})
        logs = [Path(f"{log}.{rank}").read_text() for rank in request.get("only", range(ranks))]
        return SimpleNamespace(**answer, logs=logs, text="\n".join(logs))

    return start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB, mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)
