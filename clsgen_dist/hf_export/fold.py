"""The classification head folded into the LM head: a stock engine then gives both answers from one call.

The head's rows become rows of the vocabulary, for tokens that nothing else uses, and one more row of zeros. At the
prompt's last token the engine's log-probabilities of these tokens differ by the head's logits without their bias:

    logit_k = logprob(row_k) - logprob(row of zeros) + bias_k

If the LM scales its logits, the rows are divided by the scale; if it has a bias, that of the rows is 0; if it caps its
logits, the differences are the capped class logits, and the cap is inverted by whoever reads them (``Folded.logits``).

Bias, calibration and thresholds stay in ``clsgen.json`` and the head's file. The rows are taken from those that the
vocabulary has beyond the tokenizer's tokens, else it grows; a tied LM head is untied, so that inputs stay as they are.
Such tokens must never be written: engines get a logit bias of -100 for them.

Cost: each weight file is read and written once; the check holds the model in memory.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clsgen_dist.errors import ModelError
from clsgen_dist.hf_export.artifact import HEAD_FILE, Folded, ModelCard, encoder_of, read_head, require_replaceable
from clsgen_dist.model.backbone import Backbone, open_backbone
from clsgen_dist.model.lm_head import LogitTransform

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.03}
"""Largest difference of class logits from rounding the head's rows and the LM's logits to that dtype."""


def fold(folder: str | Path, output: str | Path) -> Path:
    """Write an exported model anew, with its classification head in the LM head.

    Args:
        folder: that :func:`clsgen_dist.export` wrote.
        output: folder to write, which may exist if it is empty or an earlier export: that is replaced.

    Returns:
        ``output``: as the export, with ``folded`` in its ``clsgen.json``.

    Raises:
        ModelError: no export, or one of adapters; it decides after the explanation, which a single call cannot; the
            output exists and is none; or the class logits differ by more than rounding.
    """
    folder, output = Path(folder), Path(output)
    card = ModelCard.read(folder)
    if card.base_fingerprint is not None:
        raise ModelError(
            f"{folder} has LoRA adapters, and the folded head is rows of merged weights; export the run anew, with "
            "--fold true"
        )
    backbone = open_backbone(str(folder))
    require_foldable(folder, card.decide)
    require_replaceable(output)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(folder, partial, card, backbone)
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def require_foldable(source: Path, decide: str) -> None:
    """ModelError if the head of a model cannot be in its LM head."""
    if decide == "after":
        raise ModelError(
            f"{source} decides after its explanation, so its head is read at a place that one call does not tell; "
            "train with model.decide before or both"
        )


def _write(folder: Path, partial: Path, card: ModelCard, backbone: Backbone) -> None:
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    weight_KD, bias_K = read_head(folder, card)
    ignored = ("*.safetensors", "*.bin", "*.index.json", ".*")
    shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(*ignored))
    (partial / HEAD_FILE).parent.mkdir(exist_ok=True)
    save_file({"weight": weight_KD, "bias": bias_K}, partial / HEAD_FILE, metadata={"format": "pt"})
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    names = [f"<|decision_{k}|>" for k in range(len(weight_KD))] + ["<|decision_none|>"]
    tokenizer.add_tokens(names, special_tokens=True)
    rows: list[int] = tokenizer.convert_tokens_to_ids(names)
    tokenizer.save_pretrained(partial)
    transform = LogitTransform.of(backbone.config)
    rows_RD = torch.cat([weight_KD / transform.scale, torch.zeros_like(weight_KD[:1])])
    size = _write_weights(partial, backbone, rows, rows_RD)
    _write_config(partial, size)
    folded = Folded(rows=rows[:-1], reference=rows[-1], largest_difference=0.0, softcap=transform.softcap)
    difference, dtype = _difference(folder, partial, card, folded, tokenizer)
    tolerance = _TOLERANCE.get(dtype, 0.25)
    if not difference <= tolerance:
        raise ModelError(
            f"the folded class logits differ by {difference:.2e}, expected at most {tolerance:.0e} in {dtype}: the "
            "architecture may change its logits; use the export as it is"
        )
    replace(card, folded=replace(folded, largest_difference=difference)).write(partial)
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    logger.info("folded %d rows into the LM head (largest difference of a class logit %.1e)", len(rows), difference)


def _write_weights(partial: Path, backbone: Backbone, rows: list[int], weight_RD: Tensor) -> int:
    """The weight files with a larger, untied LM head; its number of rows."""
    from safetensors.torch import save_file

    assert backbone.weights is not None
    lm, files = backbone.meta, backbone.weights.files
    stored = {group.target: group.names[0] for group in backbone.weights.groups if len(group.names) == 1}
    input_layer, output_layer = lm.get_input_embeddings(), lm.get_output_embeddings()
    inputs, outputs = stored[_name_of(lm, input_layer)], _name_of(lm, output_layer)
    is_tied = outputs not in stored
    bias = stored.get(_name_of(lm, output_layer, "bias"))
    size = max(len(output_layer.weight), max(rows) + 1)
    weight_map: dict[str, str] = {}
    total = 0
    for path in sorted({files.path_of(name) for name in files.shapes}):
        shard = files.read(name for name in files.shapes if files.path_of(name) == path)
        if not is_tied and stored[outputs] in shard:
            shard[stored[outputs]] = _with_rows(shard[stored[outputs]], size, rows, weight_RD)
        if bias in shard:
            shard[bias] = _with_rows(shard[bias], size, rows, torch.zeros(len(rows)))
        if inputs in shard:
            if is_tied:
                shard[outputs] = _with_rows(shard[inputs], size, rows, weight_RD)
            shard[inputs] = _with_rows(shard[inputs], size)
        save_file({name: t.contiguous() for name, t in shard.items()}, partial / path.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, path.name)
        total += sum(t.numel() * t.element_size() for t in shard.values())
    if len(set(weight_map.values())) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return size


def _write_config(partial: Path, size: int) -> None:
    config = json.loads((partial / "config.json").read_text())
    nested = [value for value in config.values() if isinstance(value, dict) and "vocab_size" in value]
    for section in (config, *nested):
        section |= dict.fromkeys({"vocab_size", "unpadded_vocab_size"} & section.keys(), size)
        section["tie_word_embeddings"] = False
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _name_of(lm: Any, layer: Any, parameter: str = "weight") -> str:
    return next(f"{name}.{parameter}" for name, module in lm.named_modules() if module is layer)


def _with_rows(weight_VD: Tensor, size: int, rows: list[int] | None = None, weight_RD: Tensor | None = None) -> Tensor:
    """The weight (or bias) with ``size`` rows, new ones 0, and some of them replaced."""
    larger = torch.cat([weight_VD, weight_VD.new_zeros(size - len(weight_VD), *weight_VD.shape[1:])])
    if rows is not None and weight_RD is not None:
        larger[rows] = weight_RD.to(larger.dtype)
    return larger


@torch.inference_mode()
def _difference(
    folder: Path, partial: Path, card: ModelCard, where: Folded, tokenizer: Any
) -> tuple[float, torch.dtype]:
    """Largest difference of the class logits of a text: the head's of ``folder``, and those that ``partial`` gives."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    ids_1T = torch.from_numpy(encoder_of(card, tokenizer).prompt("a text")[0]).long()[None]
    weight_KD, bias_K = read_head(folder, card)
    options = {"generation_config": GenerationConfig()}
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options).eval()
    expected_K = F.linear(plain.base_model(ids_1T).last_hidden_state[0, -1].float(), weight_KD, bias_K)
    dtype = plain.dtype
    del plain
    folded: Any = AutoModelForCausalLM.from_pretrained(partial, trust_remote_code=False, **options).eval()
    log_p_V = folded(ids_1T).logits[0, -1].float().log_softmax(dim=0)
    logits_K = where.logits({row: float(log_p_V[row]) for row in where.all_rows}, bias_K)
    return float((logits_K - expected_K).abs().max()), dtype
