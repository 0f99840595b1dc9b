"""How much of its language the trained model has kept: compared with its backbone on general text and instructions.

Both models read the same windows of a text that has nothing to do with the task; at each token:

    perplexity      exp of the mean negative log-probability of the text; the drop is exp(Δ) - 1 in per cent
    agreement       share of tokens at which both think the same next token most likely
    KL              Σ_v p(v) log p(v)/q(v), p the backbone's distribution, q the trained one's, nats a token

and both answer short instructions whose answers can be checked (:mod:`clsgen_dist.inference.instruction_probes`).
Intervals are bootstrapped over windows, since tokens of a window are alike; both models on the same windows, so that
hard text cancels. 25,000 tokens resolve about 1 %. A window begins with the tokenizer's own start token, or a line
break: a chat template's opening would tell the trained model that its task begins, and flatter or spoil the figure.

The default text is Python's own language reference, as ``pydoc`` carries it (PSF licence): prose of some 100 kB that
is on every machine. It is technical English; give your own text for other languages and fields.

Cost: two forward passes over the text and a few hundred decoded tokens; memory for both models.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clsgen_dist.data.encode import Ids
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.evaluation.bootstrap import bootstrap_intervals
from clsgen_dist.evaluation.interval import Estimate
from clsgen_dist.inference.instruction_probes import PROBES
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.prefill import left_padded
from clsgen_dist.model.backbone import backbone_path
from clsgen_dist.track.progress import Progress

# W windows, T tokens of a window, V vocabulary

WINDOW = 256
"""Tokens of a window, the start token included."""
_MIN_WINDOWS = 8
_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Capability:
    """The trained model against its backbone."""

    tokens: int
    """Tokens of text that both predicted."""
    text_sha256: str
    perplexity_backbone: float
    perplexity: float
    drop_percent: Estimate
    """How much higher the perplexity is than the backbone's, per cent; below 0: lower."""
    agreement: Estimate
    """Share of tokens with the same most likely next token."""
    kl: Estimate
    """KL divergence from the backbone, nats a token."""
    instructions: int
    instructions_backbone: int
    """Instructions that the backbone answers right, of those asked."""
    instructions_trained: int
    """Instructions that the trained model answers right."""


def backbone_of(predictor: Predictor) -> Any:
    """The model that an exported one was trained from, on the same device.

    Raises:
        SettingsError: the export does not name it.
    """
    from transformers import AutoModelForCausalLM

    name = predictor.card.trained.get("backbone")
    if name is None:
        raise SettingsError("clsgen.json names no backbone, so the model cannot be compared with it; export again")
    backbone: Any = AutoModelForCausalLM.from_pretrained(
        backbone_path(str(name)), trust_remote_code=False, dtype=predictor.lm.dtype
    )
    return backbone.to(predictor.device).eval()


def general_text(path: str | Path | None = None) -> list[str]:
    """Paragraphs of a UTF-8 text file; of Python's language reference without one.

    Raises:
        DataError: the file cannot be read.
    """
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text ({error}); give another --general_text") from None
        return [joined for part in re.split(r"\n\s*\n", text) if (joined := " ".join(part.split()))]
    from pydoc_data.topics import topics

    parts = [part for name in sorted(topics) for part in re.split(r"\n\s*\n", topics[name])]
    # Code and tables are indented or framed, grammar has "::=".
    prose = [" ".join(part.split()) for part in parts if part[:1].isalpha() and "::=" not in part]
    return [part for part in dict.fromkeys(prose) if len(part) >= 200]


def text_windows(tokenizer: Any, paragraphs: Sequence[str], tokens: int) -> np.ndarray:
    """``[W, T]`` windows of the text, each after a start token; at most ``tokens`` tokens of text.

    Raises:
        DataError: the text is shorter than eight windows.
    """
    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    ids = tokenizer("\n\n".join(paragraphs), add_special_tokens=False, verbose=False)["input_ids"][:tokens]
    windows = len(ids) // (WINDOW - 1)
    if windows < _MIN_WINDOWS:
        raise DataError(
            f"the general text has {len(ids)} tokens, expected {_MIN_WINDOWS * (WINDOW - 1)} or more to compare two "
            "models; give a longer --general_text"
        )
    text_WT = np.array(ids[: windows * (WINDOW - 1)]).reshape(windows, WINDOW - 1)
    return np.concatenate([np.full((windows, 1), start), text_WT], axis=1)


def measure_capability(
    trained: Any, backbone: Any, tokenizer: Any, paragraphs: Sequence[str], *, tokens: int = 25_000
) -> Capability:
    """Compare two causal language models of one tokenizer.

    Args:
        trained: the trained model, in evaluation mode.
        backbone: the model it was trained from, on the same device.
        tokenizer: of both.
        paragraphs: general text.
        tokens: tokens of text to read at most.

    Raises:
        DataError: the text is too short.
    """
    windows_WT = text_windows(tokenizer, paragraphs, tokens)
    rows = []
    with Progress(len(windows_WT), enabled=True, unit="window", label="capability") as shown:
        for window_T in windows_WT:
            rows.append(_compare(trained, backbone, window_T))
            shown.update()
    means_W4 = np.array(rows)

    def figures(index: np.ndarray) -> dict[str, float]:
        loss, backbone_loss, agreement, kl = means_W4[index].mean(axis=0)
        return {"drop": float(100 * np.expm1(loss - backbone_loss)), "agreement": float(agreement), "kl": float(kl)}

    found, intervals = figures(np.arange(len(rows))), bootstrap_intervals(figures, len(rows))
    estimates = {name: Estimate(found[name], intervals[name]) for name in found}
    prompts = [_instruction_ids(tokenizer, probe.instruction) for probe in PROBES]
    right = [_right_answers(lm, tokenizer, prompts) for lm in (backbone, trained)]
    loss, backbone_loss = means_W4[:, :2].mean(axis=0)
    return Capability(
        tokens=windows_WT.shape[0] * (WINDOW - 1),
        text_sha256=hashlib.sha256(windows_WT.astype("<i8").tobytes()).hexdigest(),
        perplexity_backbone=float(np.exp(backbone_loss)),
        perplexity=float(np.exp(loss)),
        drop_percent=estimates["drop"],
        agreement=estimates["agreement"],
        kl=estimates["kl"],
        instructions=len(PROBES),
        instructions_backbone=right[0],
        instructions_trained=right[1],
    )


@torch.inference_mode()
def _compare(trained: Any, backbone: Any, window_T: np.ndarray) -> tuple[float, float, float, float]:
    """Means over a window: loss of the trained model and of the backbone in nats, agreement, KL in nats."""
    ids_1T = torch.from_numpy(window_T)[None].to(trained.device)
    log_q_TV, log_p_TV = (
        F.log_softmax(lm(input_ids=ids_1T, use_cache=False).logits[0, :-1].float(), dim=-1)
        for lm in (trained, backbone)
    )
    target_T1 = ids_1T[0, 1:, None]
    loss, backbone_loss = (-log_TV.gather(1, target_T1).mean().item() for log_TV in (log_q_TV, log_p_TV))
    agreement = (log_q_TV.argmax(dim=-1) == log_p_TV.argmax(dim=-1)).float().mean().item()
    kl = F.kl_div(log_q_TV, log_p_TV, log_target=True, reduction="batchmean").item()
    return loss, backbone_loss, agreement, kl


@torch.inference_mode()
def _right_answers(lm: Any, tokenizer: Any, prompts: Sequence[Ids]) -> int:
    """How many instructions the model answers right, decoded greedily."""
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids_ST, mask_ST = left_padded(prompts, pad or 0, lm.device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=_ANSWER_TOKENS, eos_token_id=tokenizer.eos_token_id, pad_token_id=pad or 0
    )
    # Passed, not set on the model, whose own config may have penalties or beams.
    written = lm.generate(input_ids=ids_ST, attention_mask=mask_ST, generation_config=config)[:, ids_ST.shape[1] :]
    answers = tokenizer.batch_decode(written, skip_special_tokens=True)
    return sum(probe.is_right(answer) for probe, answer in zip(PROBES, answers, strict=True))


def _instruction_ids(tokenizer: Any, instruction: str) -> Ids:
    """The instruction in the tokenizer's chat template, if it has one."""
    if tokenizer.chat_template is None:
        return np.array(tokenizer(f"{instruction}\n")["input_ids"])
    messages = [{"role": "user", "content": instruction}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
