"""Inference: what one prefill saves, rows per second, and what control of the explanation changes.

    python benchmarks/inference.py --part prefill                            # both answers at once, or in two calls
    python benchmarks/inference.py --part rows                               # beside a text-generation pipeline
    python benchmarks/inference.py --part rows --mixed                       # prompts of 60 to 500 tokens
    python benchmarks/inference.py --part control --model runs/demo/model --rows 114     # needs a trained model

Without ``--model``: SmolLM2-135M with a random head. The server: benchmarks/serve.py. The same rows of the embedded
demo, the same prompts, weights, precision and greedy decoding for all:

    bare forward            the backbone alone on the batches that ours makes: what probabilities cost at least
    ours, probabilities     Predictor.predict(explain=False), from text to probability
    ours, explanations      Predictor.predict(), probability and explanation
    two calls               probabilities, then the pipeline's explanations
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

import numpy as np
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
        max_prompt_length=1024,
        max_explanation_length=48,
        head_sha256=head_fingerprint(head["weight"], head["bias"]),
        trained={},
    ).write(folder)
    return folder


def demo_texts(rows: int, *, mixed: bool = False) -> list[str]:
    """The first different texts of the demo's test rows; mixed: one to eight of them joined, in a fixed disorder."""
    from clsgen_dist.data.demos.breast_cancer import demo_file

    texts = list(dict.fromkeys(json.loads(line)["text"] for line in demo_file("test").open()))
    if mixed:
        texts = [" ".join(texts[n : n + 1 + n * 5 % 8]) for n in range(len(texts) - 8)]
    return texts[:rows]


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


def timed(runs: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> tuple[Any, Any]:
    """Seconds of each round, and what was computed last, by name; interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    written: dict[str, Any] = {}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            written[name] = run()
            seconds[name].append(clock() - start)
    return seconds, written


def rows_part(own: argparse.Namespace, model: Path, clock: Callable[[], float]) -> None:
    """Rows per second beside the pipeline."""
    texts = demo_texts(own.rows, mixed=own.mixed)
    runs = contenders(model, texts, own.batch_size, own.new_tokens)
    seconds, written = timed(runs, own.rounds, clock)
    ours, *pipelines = (written[name] for name in list(runs)[2:])
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


def prefill_part(own: argparse.Namespace, model: Path, clock: Callable[[], float]) -> None:
    """One text at a time: seconds to the probability and to both answers, in one call and in two."""
    from clsgen_dist.decoding.settings import DecodingSettings
    from clsgen_dist.inference.predict import Predictor
    from clsgen_dist.inference.prefill import left_padded, prefill

    predictor = Predictor(model)
    predictor.encoder = _encoder_without_limit(predictor)
    decoding, texts = DecodingSettings(redraws=0), demo_texts(60)
    columns = ["prompt tokens", "explanation tokens", "forward", "to the probability", "over forward"]
    columns += ["both, one call", "two calls", "gain"]
    print("| " + " | ".join(columns) + " |\n|" + "--:|" * len(columns))

    def answer(text: str, new_tokens: int, explain: bool) -> float:
        """Seconds to the probability."""
        told: list[float] = []
        start, prompt = clock(), predictor.encoder.prompt(text)
        task = predictor.task(text, prompt, decoding=decoding, explain=explain, max_new_tokens=new_tokens)
        task.on_reading = lambda reading: told.append(clock() - start)
        predictor.decoder().answer([task])
        return told[0]

    def measure(text: str, new_tokens: int) -> str:
        ids = predictor.encoder.prompt(text)[0]
        batch = left_padded([ids], predictor.encoder.end_token, predictor.device)
        first: list[float] = []

        @torch.inference_mode()
        def forward() -> None:
            prefill(predictor.lm, *batch, use_cache=False)

        def both() -> None:
            first.append(answer(text, new_tokens, True))

        def two_calls() -> None:
            answer(text, new_tokens, False)
            answer(text, new_tokens, True)

        seconds, _ = timed({"forward": forward, "one": both, "two": two_calls}, own.rounds, clock)
        alone, one, two = (statistics.median(seconds[name]) for name in ("forward", "one", "two"))
        to_first = statistics.median(first)
        cells = [f"{alone:.3f} s", f"{to_first:.3f} s", f"{to_first / alone:.2f}", f"{one:.3f} s", f"{two:.3f} s"]
        return f"| {len(ids)} | {new_tokens} | {' | '.join(cells)} | {two / one:.2f} |"

    for words, new_tokens in ((1, own.new_tokens), (8, own.new_tokens), (30, own.new_tokens), (30, 8), (60, 8)):
        print(measure(" ".join(texts[:words]), new_tokens))


def _encoder_without_limit(predictor: Any) -> Any:
    """The model's encoder for prompts of any length."""
    from dataclasses import replace

    from clsgen_dist.hf_export.artifact import encoder_of

    return encoder_of(replace(predictor.card, max_prompt_length=4096), predictor.tokenizer)


def control_part(own: argparse.Namespace, model: Path) -> None:
    """How often explanations contradict the head, by what controls them; and whether schemas are followed."""
    from clsgen_dist.decoding.settings import DecodingSettings
    from clsgen_dist.evaluation.interval import share_interval
    from clsgen_dist.explanations.grounding import ground
    from clsgen_dist.explanations.text_units import quoted_spans
    from clsgen_dist.inference.predict import Predictor

    predictor, texts = Predictor(model), demo_texts(own.rows)
    labels = predictor.card.labels
    schema = {
        "type": "object",
        "properties": {"class": {"enum": labels}, "finding": {"type": "string", "maxLength": 40}},
        "required": ["class", "finding"],
        "additionalProperties": False,
    }
    arms = {
        "nothing": DecodingSettings(redraws=0),
        "redraws (the default)": DecodingSettings(),
        "told the decision": DecodingSettings(tell="decision", redraws=0),
        "told the probability": DecodingSettings(tell="probability", redraws=0),
        "states the decision": DecodingSettings(state_decision=True, redraws=0),
        "quotes the text": DecodingSettings(quote_evidence=True, redraws=0),
        "4 candidates": DecodingSettings(candidates=4, temperature=0.7, redraws=0),
        "short": DecodingSettings(length="short", redraws=0),
        "JSON schema": DecodingSettings(json_schema=json.dumps(schema), redraws=0),
    }
    columns = ["control", "states the decided class", "contradicts, 95 %", "of these not marked", "claims found"]
    columns += ["quotes", "valid JSON", "redrawn", "s"]
    print("| " + " | ".join(columns) + " |\n|---|" + "--:|" * (len(columns) - 1))
    for name, decoding in arms.items():
        start = time.perf_counter()
        found = predictor.predict(texts, batch_size=own.batch_size, decoding=decoding, max_new_tokens=own.new_tokens)
        seconds = time.perf_counter() - start
        names = predictor.reader.names
        wrong, agree, quotes, claims, valid = [], 0, 0, [], 0
        for text, answer in zip(texts, found, strict=True):
            written = answer.explanation or ""
            stated = names.stated(written)[:1]
            agree += stated == [labels.index(answer.label)]
            wrong.append(float(bool(stated) and stated != [labels.index(answer.label)]))
            spans = [written[slice(*span)] for span in quoted_spans(written)]
            quotes += any(span in text for span in spans)
            claims += [claim.is_found for claim in ground(text, written, names).claims]
            valid += _follows(written, labels)
        ends = share_interval(np.array(wrong))
        unmarked = sum(
            _first_named(answer.explanation or "", labels) not in (None, answer.label) and not answer.contradicts
            for answer in found
        )
        json_share = f"{valid} of {len(texts)}" if decoding.json_schema else ""
        cells = [f"{agree / len(texts):.1%}", f"{int(sum(wrong))} of {len(texts)} [{ends.low:.1%}, {ends.high:.1%}]"]
        cells += [
            str(int(unmarked)),
            f"{np.mean(claims) if claims else 0:.1%}",
            f"{quotes / len(texts):.1%}",
            json_share,
        ]
        redrawn = sum(answer.redraws > 0 for answer in found)
        print(f"| {name} | {' | '.join(cells)} | {redrawn} | {seconds:.0f} |")


def _first_named(written: str, labels: list[str]) -> str | None:
    """The class that a plain search finds first, whatever negates it."""
    places = {name: written.lower().find(name.lower()) for name in labels}
    return min((name for name in labels if places[name] >= 0), key=places.__getitem__, default=None)


def _follows(written: str, labels: list[str]) -> bool:
    """Whether a text is JSON of the schema."""
    try:
        found = json.loads(written)
    except ValueError:
        return False
    return set(found) == {"class", "finding"} and found["class"] in labels and len(found["finding"]) <= 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("rows", "prefill", "control"), default="rows")
    parser.add_argument("--model", type=Path, help="an export; default: the embedded backbone with a random head")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--mixed", action="store_true", help="rows of very different lengths")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=40, help="longest explanation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of this process, for one thread")
    own = parser.parse_args()
    clock = time.process_time if own.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        model = own.model or export_backbone(Path(folder) / "model")
        if own.part == "rows":
            rows_part(own, model, clock)
        elif own.part == "prefill":
            prefill_part(own, model, clock)
        else:
            control_part(own, model)


if __name__ == "__main__":
    main()
