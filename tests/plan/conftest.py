"""A backbone of 1.1 billion parameters as a configuration, a recipe for it, and a planner on H100s."""

from __future__ import annotations

import pytest
from plan_cases import STATED
from transformers import LlamaConfig

from clsgen_dist.config import SHIPPED, parse_settings
from clsgen_dist.plan.cluster import load_cluster
from clsgen_dist.plan.plan import Planner


@pytest.fixture(scope="session")
def h100():
    return load_cluster(SHIPPED / "configs/clusters/h100.yaml")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """About 1.1 billion parameters in few layers, as a configuration alone."""
    folder = tmp_path_factory.mktemp("billion")
    shape = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 4}
    LlamaConfig(**shape, num_attention_heads=32, num_key_value_heads=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(backbone):
    def settings(**overrides):
        flags = {
            "data.train": "nowhere.jsonl",
            "model.backbone": backbone,
            "model.finetune": "full",
            "train.micro_batch_tokens": 8192,
            "train.batch_size": 64,
            "train.activation_checkpointing": "false",
            **{k.replace("__", "."): v for k, v in overrides.items()},
        }
        return parse_settings(["--config", "configs/recipe.yaml", *[f"--{k}={v}" for k, v in flags.items()]])

    return settings


@pytest.fixture(scope="session")
def planner(recipe, h100):
    return Planner(recipe(), h100, STATED)
