"""No rank ever holds the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def wide_backbone(tmp_path_factory):
    """49 M parameters (187 MB) in many layers of equal size: large compared with the rest of the process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=14,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("ranks", [pytest.param(count, marks=pytest.mark.long) for count in (2, 4)])
def test_loading_holds_at_most_a_shard_and_one_module(ranks, wide_backbone, run_command, free_port, tmp_path, monkeypatch):
    # Freed memory is returned at once, so that memory kept by the allocator is not measured.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    zero = json.loads((Path(__file__).resolve().parents[2] / "ds_configs/zero3.json").read_text())
    zero["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (tmp_path / "zero3.json").write_text(json.dumps(zero))
    run_command(
        "deepspeed",
        "--num_gpus",
        str(ranks),
        "--master_port",
        free_port(),
        str(Path(__file__).with_name("load_under_zero3.py")),
        str(wide_backbone),
        str(tmp_path / "zero3.json"),
        str(tmp_path / "report"),
    )
    largest_module = 512 * 1536
    for rank in range(ranks):
        report = json.loads((tmp_path / f"report.{rank}").read_text())
        share = report["elements"] / ranks
        assert report["elements"] > 40e6
        assert report["held_elements"] <= 1.01 * share
        # Until the LM head is tied to the embedding, a share of each is held.
        assert report["peak_elements"] <= share + largest_module + 1000 * 512 / ranks
        # In memory: the share, and room for a few modules in flight and for what loading itself allocates.
        whole_mb = report["elements"] * 4 / 2**20
        assert report["grown_mb"] < whole_mb * (1 / ranks + 0.25)
