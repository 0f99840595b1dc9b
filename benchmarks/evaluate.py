"""Rows per second of prediction: the library's, and a text-generation pipeline of transformers.

    python benchmarks/evaluate.py                            # SmolLM2-135M with a random head; minutes on two cores
    python benchmarks/evaluate.py --model runs/demo/model    # a trained model, whose explanations are shorter

The same different rows of the embedded demo, the same prompts, weights, precision and greedy decoding for all:

    bare forward            the backbone alone on the batches that ours makes: what probabilities cost at least
    ours, probabilities     Predictor.predict(explain=False), from text to probability
    ours, explanations      Predictor.predict(), probability and explanation
    pipeline, one at a time pipeline("text-generation")(prompts), as its documentation shows; it gives no probability
    pipeline, batches       the same with batch_size

Rounds are interleaved, and medians compared. Where other work runs beside, OMP_NUM_THREADS=1 and --cpu-time count the
seconds that the core worked for this process.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

QUESTION = "Benign or malignant? Name the class, and the two findings that speak for it."


def export_backbone(folder: Path) -> Path:
    """The embedded backbone as an export with a random head."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from clsgen_dist.data.prompt import render_prompt
    from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
    from clsgen_dist.model.smollm2 import smollm2_folder

    shutil.copytree(smollm2_folder(), folder)
    prompt = render_prompt(AutoTokenizer.from_pretrained(folder), system="Cytology.", question=QUESTION)
    torch.manual_seed(0)
    head = {"weight": torch.randn(2, 576) / 24, "bias": torch.zeros(2)}
    (folder / HEAD_FILE).parent.mkdir(exist_ok=True)
    save_file(head, folder / HEAD_FILE)
    ModelCard(
        labels=["benign", "malignant"],
        positive_label="malignant",
        system="Cytology.",
        question=QUESTION,
        prompt=prompt.to_json(),
        max_prompt_length=128,
        max_explanation_length=48,
        head_sha256=head_fingerprint(head["weight"], head["bias"]),
        trained={},
    ).write(folder)
    return folder


def demo_texts(rows: int) -> list[str]:
    """The first different texts of the demo's test rows."""
    from clsgen_dist.data.demos.breast_cancer import demo_file

    texts = [json.loads(line)["text"] for line in demo_file("test").open()]
    return list(dict.fromkeys(texts))[:rows]


def contenders(folder: Path, texts: list[str], batch_size: int, new_tokens: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    from transformers import GenerationConfig, pipeline

    from clsgen_dist.inference.predict import Predictor
    from clsgen_dist.inference.prefill import left_padded, prefill

    predictor = Predictor(folder)
    end = predictor.encoder.end_token
    batches = predictor.prompt_batches(texts, batch_size)
    padded = [left_padded([batches.prompts[i][0] for i in rows], end, predictor.device) for rows in batches.rows]
    prompts = [predictor.tokenizer.decode(predictor.encoder.prompt(text)[0]) for text in texts]
    greedy = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=end, pad_token_id=end)
    tokenizer = predictor.tokenizer
    tokenizer.padding_side, tokenizer.pad_token_id = "left", end
    generate = pipeline("text-generation", model=str(folder), tokenizer=tokenizer, device=predictor.device)
    options = {"generation_config": greedy, "return_full_text": False, "add_special_tokens": False}

    @torch.inference_mode()
    def forward() -> None:
        for ids_ST, mask_ST in padded:
            prefill(predictor.lm, ids_ST, mask_ST, use_cache=False)

    def ours(explain: bool) -> list[str | None]:
        found = predictor.predict(texts, batch_size=batch_size, explain=explain, max_new_tokens=new_tokens)
        return [prediction.explanation for prediction in found]

    def plain(size: int) -> list[str]:
        return [found[0]["generated_text"].strip() for found in generate(prompts, batch_size=size, **options)]

    return {
        "bare forward": forward,
        "ours, probabilities": lambda: ours(False),
        "ours, explanations": lambda: ours(True),
        "pipeline, one at a time": lambda: plain(1),
        f"pipeline, batches of {batch_size}": lambda: plain(batch_size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an export; default: the embedded backbone with a random head")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=40, help="longest explanation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of this process, for one thread")
    own = parser.parse_args()
    texts, clock = demo_texts(own.rows), time.process_time if own.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        model = own.model or export_backbone(Path(folder) / "model")
        timed = contenders(model, texts, own.batch_size, own.new_tokens)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        written: dict[str, Any] = {}
        for _ in range(own.rounds):
            for name, run in timed.items():
                start = clock()
                written[name] = run()
                seconds[name].append(clock() - start)
    ours, *pipelines = (written[name] for name in list(timed)[2:])
    unit = "CPU seconds" if own.cpu_time else "seconds"
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {unit}; {len(texts)} rows, {own.rounds} rounds")
    equal = " and ".join(str(sum(map(str.__eq__, ours, other))) for other in pipelines)
    print(f"explanations equal to the pipelines': {equal} of {len(texts)}")
    rate = {name: len(texts) / statistics.median(found) for name, found in seconds.items()}
    print("\n| | rows/s | over one at a time | over batches | slowest and fastest round |\n|---|--:|--:|--:|--:|")
    one, batched = list(rate)[3:]
    for name, value in rate.items():
        ends = f"{len(texts) / max(seconds[name]):.2f} to {len(texts) / min(seconds[name]):.2f}"
        print(f"| {name} | {value:.2f} | {value / rate[one]:.2f} | {value / rate[batched]:.2f} | {ends} |")


if __name__ == "__main__":
    main()
