"""Real runs of ``deepspeed train.py`` on a tiny backbone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def recipe(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """``recipe(output, **overrides)``: flags of a small run; everything is partitioned, nothing stays whole."""
    zero = json.loads((ROOT / "ds_configs/zero3.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    file = tmp_path_factory.mktemp("zero") / "zero3.json"
    file.write_text(json.dumps(zero))

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
            "model.lora_rank": 4,
            "optim.lr": 1e-3,
            "train.batch_size": 10,
            "train.micro_batch_size": 3,
            "train.epochs": 1,
            "train.eval_every": "null",
            "train.collective_timeout_s": 60,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        return [f"--{key}={value}" for key, value in settings.items()]

    return flags


@pytest.fixture(scope="session")
def train(run_command: Callable[..., Any], recipe: Callable[..., list[str]]) -> Callable[..., Any]:
    """``train(output, ranks=2, check=True, **overrides)``: the command a user would type."""

    def run(output: Path, ranks: int = 2, check: bool = True, **overrides: Any) -> Any:
        launcher = ["deepspeed", "--num_gpus", str(ranks), "--master_port", _free_port()]
        return run_command(*launcher, "train.py", *recipe(output, **overrides), check=check)

    return run


def _free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
