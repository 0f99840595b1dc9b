"""Fixtures that several stations share: tiny models on disk, the real sets, commands as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
    """The same with an LM head of its own."""
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
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command from the checkout as a user would; ``check=False`` to look at a failure."""

    def run(*args: str, check: bool = True, timeout: float = 300, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        bin_folder = Path(sys.executable).parent
        command = [str(bin_folder / args[0]) if (bin_folder / args[0]).exists() else args[0], *args[1:]]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(args)} exited with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        return done

    return run
