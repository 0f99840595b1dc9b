"""Every family that transformers opens as a causal language model: does it train here, packed or padded, and export?

The table in docs/backbones.md is the expected result; ``python -m tests.model.test_families`` regenerates it.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from clsgen_dist.data.pack import Sample, collate
from clsgen_dist.hf_export.merge import Merge, write_shards
from clsgen_dist.model.attention import choose_attention
from clsgen_dist.model.backbone import build_model, load_backbone, open_backbone
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.self_test import self_test
from clsgen_dist.model.unsupported import UnsupportedBackboneError
from tests.model.tiny_families import MODEL_TYPES, NOT_DECODERS, tiny_config

TABLE = Path(__file__).resolve().parents[2] / "docs/backbones.md"
BEGIN, END = "<!-- families -->\n", "<!-- /families -->"
LARGEST = 3_000_000


def layout_of(kind: str, folder: Path) -> tuple[str, str]:
    """The layout of a family (``packed``, ``padded``, ``refused`` or ``not tried``), and the reason."""
    from transformers import AutoModelForCausalLM

    if kind in NOT_DECODERS:
        return "refused", f"not a text decoder: {NOT_DECODERS[kind]}"
    try:
        config = tiny_config(kind)
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        return "not tried", f"no tiny configuration ({type(error).__name__})"
    if sum(p.numel() for p in lm.parameters()) > LARGEST:
        return "not tried", "no tiny configuration"
    torch.manual_seed(0)
    base = folder / "base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    try:
        opened = open_backbone(str(base))
        opened.weights.require_reversible()
        attention = choose_attention("auto", on_gpu=False, packed=True, lm=opened.meta)
        model = build_model(
            load_backbone(opened, dtype=torch.float32, attention=attention),
            head=HeadSpec(2),
            losses=LossSpec("reference"),
            finetune="full",
        )
        opened.weights.require_exportable(name for name, _ in model.lm.named_parameters())
        tokens = np.random.default_rng(0).integers(3, 80, 30).astype(np.int32)
        with torch.no_grad():
            found = self_test(model.eval(), Sample(tokens[:20], tokens[20:], -1))
        found.require_trainable(kind)
    except UnsupportedBackboneError as error:
        return "refused", error.reason.words
    model.layout = found.layout
    _trains(model.train(), tokens)
    _exports(model.lm, opened, folder / "out")
    return found.layout, ""


def _trains(model, tokens) -> None:
    batch = collate([Sample(tokens[:9], tokens[9:15], 1), Sample(tokens[15:20], tokens[20:22], 0)])
    output = model(**batch.inputs())
    (output.generation_loss.sum() + output.class_loss.sum()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) > 5 and all(bool(torch.isfinite(g).all()) for g in gradients)


def _exports(lm, opened, folder: Path) -> None:
    """All weights changed, exported and reloaded: the folder has the changed weights."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    trained = {name: parameter.detach() for name, parameter in lm.named_parameters()}
    folder.mkdir()
    write_shards(folder, opened.weights, Merge(trained, opened.weights, scale=1.0), 10**9)
    opened.config.save_pretrained(folder)
    again = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert again.keys() == trained.keys()
    for name, parameter in again.items():
        assert torch.equal(parameter, trained[name]), name


def _table() -> dict[str, tuple[str, str]]:
    text = TABLE.read_text(encoding="utf-8")
    rows = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {kind.strip("`"): (found, why) for kind, found, why in cells}


def test_the_table_has_every_family():
    assert sorted(_table()) == MODEL_TYPES


KNOWN = [
    "llama",
    "qwen3",
    "gemma3_text",
    "gpt2",
    "mixtral",
    "qwen3_next",
    "lfm2",
    "falcon_h1",
    "opt",
    "gpt_oss",
    "bloom",
    "gemma2",
    "cohere",
    "phi",
]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in KNOWN else pytest.mark.long) for k in MODEL_TYPES])
def test_a_family_behaves_as_the_table_says(kind, tmp_path):
    assert layout_of(kind, tmp_path) == _table()[kind]


def main() -> None:
    """Write the table into docs/backbones.md."""
    warnings.filterwarnings("ignore")
    lines = ["| family | layout | reason |\n", "|---|---|---|\n"]
    for kind in MODEL_TYPES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found, why = layout_of(kind, Path(folder))
            except Exception as error:
                found, why = "FAULT", f"{type(error).__name__}: {str(error)[:100]}"
        print(kind, found, why, file=sys.stderr, flush=True)
        lines.append(f"| `{kind}` | {found} | {why} |\n")
    text = TABLE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    TABLE.write_text(before + "".join(lines) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
