"""Useful tokens per second of a training step on rows of mixed lengths: padded, grouped by length, packed.

    python benchmarks/packing.py                    # needs ../shared/data; about ten minutes on two cores
    python benchmarks/packing.py --model tiny       # a smoke test, seconds

400 rows of comve (about 75 tokens) and 400 of pubmedqa (about 400), shuffled together; an optimizer step takes 32 rows.
"HF Trainer, padded" takes them in that order, eight at a time, padded to the longest; "grouped" in the order of
transformers' length-grouped sampler. Both compute the logits of all tokens. "our loss, padded" is this project's loss
on the same padded batches, which separates the effects of packing and loss. "packed" is what training does: one or a
few micro-batches of at most ``--budget`` tokens. Same backbone, same LoRA on the upper half of the layers, same
optimizer, fp32, no engine; rounds are interleaved, and the table gives medians. Only tokens of rows are useful tokens:
padding takes time but does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS, STEP, MICRO = 400, 32, 8


def samples(shared: Path) -> list[Any]:
    """The rows of both sets as samples, shuffled."""
    import numpy as np

    from clsgen_dist.data.encode import Encoder
    from clsgen_dist.data.pack import Sample
    from clsgen_dist.model.backbone import backbone_path, load_tokenizer

    encoder = Encoder(
        load_tokenizer(backbone_path("demo:smollm2-135m")),
        system=None,
        question="Classify the text above and explain your decision in one sentence.",
        max_prompt_length=768,
    )
    found = []
    for name in ("comve", "pubmedqa"):
        with (shared / name / "train.jsonl").open() as file:
            rows = [json.loads(line) for _, line in zip(range(ROWS), file, strict=False)]
        labels = sorted({row["label"] for row in rows})
        for row in rows:
            prompt, _ = encoder.prompt(row["text"])
            explanation = np.array(encoder.explanations(row["explanations"])[0], dtype=np.int32)
            found.append(Sample(prompt, explanation, labels.index(row["label"])))
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]


def model(kind: str, attention: str) -> Any:
    """The dual-head model with LoRA on the upper half of its layers."""
    import torch

    from clsgen_dist.model.backbone import backbone_path, build_model, load_backbone, open_backbone
    from clsgen_dist.model.classification_head import HeadSpec

    if kind == "tiny":
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        lm: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
            )
        )
    else:
        lm = load_backbone(open_backbone(backbone_path("demo:smollm2-135m")), dtype=torch.float32, attention="sdpa")
    lm.set_attn_implementation(attention)
    dual = build_model(
        lm,
        head=HeadSpec(3),
        finetune="lora",
        top_layers=lm.config.num_hidden_layers // 2,
        lora_rank=16,
        lora_alpha=32,
    )
    return dual.train()


def our_step(dual: Any, forward: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    """Our optimizer step over several batches; ``forward`` computes the outputs of one batch."""
    import torch

    from clsgen_dist.engine.optim import build_optimizer, parameter_groups

    optimizer = build_optimizer(
        "adamw", parameter_groups(dual, lr=5e-5, head_lr=None, weight_decay=0.0), betas=(0.9, 0.999), eps=1e-8
    )
    parameters = [p for p in dual.parameters() if p.requires_grad]

    def step(batches: list[Any]) -> None:
        supervised, labelled = sum(b.supervised for b in batches), sum(b.labelled for b in batches)
        for batch in batches:
            output = forward(batch)
            (output.generation_loss.sum() / supervised + output.class_loss.sum() / labelled).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def padded_forward(dual: Any) -> Callable[[Any], Any]:
    """Our loss on padded batches: the model without packing."""
    from clsgen_kernels import dual_head_loss

    def forward(batch: Any) -> Any:
        inputs = batch.padded
        hidden = dual.lm.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        labels = inputs["labels"].flatten()
        index = (labels >= 0).nonzero()[:, 0]
        head = dual.classification_head
        return dual_head_loss(
            hidden.flatten(0, 1),
            dual.lm.get_output_embeddings().weight,
            head.weight,
            head.bias,
            supervised_index_n=index - 1,
            target_n=labels[index],
            class_index_S=inputs["class_index"],
            label_S=inputs["row_label"],
        )

    return forward


class PaddedBatch:
    """Eight samples, padded."""

    def __init__(self, rows: list[Any]) -> None:
        from peers import padded

        self.padded = padded(rows)
        self.supervised = int((self.padded["labels"] >= 0).sum())
        self.labelled = len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("smollm2", "tiny"), default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a packed micro-batch")
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    args = parser.parse_args()
    if not args.shared.is_dir():
        sys.exit(f"needs the real data sets in {args.shared}; choose another folder with --shared")
    import numpy as np
    import torch
    from peers import padded, trainer_step
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from clsgen_dist.data.pack import collate, pack
    from clsgen_dist.model.attention import register_per_sequence_attention

    rows = samples(args.shared)
    lengths = [len(s.prompt) + len(s.explanation) for s in rows]
    torch.manual_seed(0)
    grouped_order = get_length_grouped_indices(lengths, MICRO)
    packed_dual, padded_dual = model(args.model, register_per_sequence_attention()), model(args.model, "sdpa")
    hf_trainer = trainer_step(padded_dual)
    ours_padded = our_step(padded_dual, padded_forward(padded_dual))
    ours = our_step(packed_dual, lambda batch: packed_dual(**batch.inputs()))

    def micro(step: list[Any]) -> list[list[Any]]:
        return [step[i : i + MICRO] for i in range(0, len(step), MICRO)]

    def packed(step: list[Any]) -> None:
        length_R = np.array([len(s.prompt) + len(s.explanation) for s in step])
        ours([collate([step[int(i)] for i in bins]) for [bins] in pack(length_R, budget=args.budget, ranks=1)])

    methods = {
        "HF Trainer, padded": (rows, lambda step: hf_trainer([padded(part) for part in micro(step)])),
        "HF Trainer, grouped": (
            [rows[i] for i in grouped_order],
            lambda step: hf_trainer([padded(part) for part in micro(step)]),
        ),
        "our loss, padded": (rows, lambda step: ours_padded([PaddedBatch(part) for part in micro(step)])),
        "packed": (rows, packed),
    }
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    # Steps are spread over the epoch: in the grouped order, the first batch has the longest rows.
    starts = np.linspace(0, len(rows) - STEP, args.rounds + 1, dtype=int) // STEP * STEP
    for round_, start in enumerate(starts):
        for name, (order, run) in methods.items():
            step = order[start : start + STEP]
            began = time.perf_counter()
            run(step)
            if round_:
                tokens = sum(len(s.prompt) + len(s.explanation) for s in step)
                speeds[name].append(tokens / (time.perf_counter() - began))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32, {args.model}")
    print(f"{len(rows)} rows of {min(lengths)} to {max(lengths)} tokens, {STEP} a step, {args.rounds} rounds")
    waste = 1 - sum(lengths) / sum(MICRO * max(lengths[i : i + MICRO]) for i in range(0, len(lengths), MICRO))
    print(f"padding without grouping: {waste:.0%} of all positions")
    print("| a training step     | useful tokens/s | over padded | over grouped |")
    print("|---------------------|----------------:|------------:|-------------:|")
    median = {name: statistics.median(values) for name, values in speeds.items()}
    for name, value in median.items():
        over = [value / median[f"HF Trainer, {peer}"] for peer in ("padded", "grouped")]
        print(f"| {name:19} | {value:15.0f} | {over[0]:11.2f} | {over[1]:12.2f} |")


if __name__ == "__main__":
    main()
