"""Predictions of many texts over ranks, kept batch by batch: a run that was killed goes on with the missing ones.

    FOLDER/NAME-KEY/part-0000-0.jsonl     one line a batch: {"batch": 17, "rows": {"3": {"first": [...], ...}, ...}}

Which texts share a batch does not depend on the ranks, and ranks take turns in the batches that are missing. So the
result is the same to the last bit for any number of ranks, and after any number of kills. A line that a kill tore is
computed again. KEY is a hash of the model's files, the texts and the options: another model or another text starts
another folder, a new calibration does not, unless explanations depend on the decision.

Cost: each rank holds all texts, tokens and predictions, 2 kB a row of 70 tokens; nothing is sent between ranks but
barriers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.hf_export.artifact import META_FILE, ModelCard
from clsgen_dist.inference.predict import PromptBatches
from clsgen_dist.inference.prediction import Prediction
from clsgen_dist.inference.raw_predictions import RawPrediction
from clsgen_dist.io.files import writing
from clsgen_dist.io.json_lines import read_json_lines
from clsgen_dist.track.progress import Progress

_BARRIER_SECONDS = 7 * 24 * 3600
"""A rank may wait for a slower one as long as a job may run; a dead one is noticed at once."""


class BatchPredictor(Protocol):
    """What computes: :class:`clsgen_dist.Predictor`, or an engine."""

    card: ModelCard

    def prompt_batches(self, texts: Sequence[str], batch_size: int) -> PromptBatches:
        """The prompts of the texts, and which of them are computed together."""

    def decoding(self, settings: DecodingSettings | None = None) -> DecodingSettings:
        """How explanations are written: as said, else as the model's folder says."""

    def compute(
        self,
        batches: PromptBatches,
        number: int,
        *,
        explain: bool,
        max_new_tokens: int | None = None,
        decoding: DecodingSettings | None = None,
    ) -> dict[int, RawPrediction]:
        """What is computed for each text of a batch, by the text's index."""

    def read(self, raw: RawPrediction) -> Prediction:
        """The prediction of logits that are finite."""


class RowsCounter(Protocol):
    """Is told of rows that are predicted."""

    def __call__(self, rows: int, /, *, computed: bool) -> None:
        """``computed``: now, and not read from what is kept."""


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions, and what it took to compute those that were missing."""

    rows: list[RawPrediction]
    """In the order of the texts."""
    computed: int
    """Batches that this rank computed."""
    seconds: float
    """Until all ranks had computed theirs."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that predict together."""

    rank: int = 0
    size: int = 1
    world: Any = None
    """The process group, of several ranks."""

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world is not None:
            self.world.barrier()


@contextmanager
def predicting_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun, deepspeed or srun started; without launcher one, and no process group is opened."""
    from clsgen_dist.engine.world import process_group, set_launch_variables

    if set_launch_variables().size == 1:
        yield Ranks()
        return
    with process_group(_BARRIER_SECONDS) as world:
        yield Ranks(world.rank, world.size, world)


def stored_predictions(
    predictor: BatchPredictor,
    model: Path,
    texts: Sequence[str],
    folder: Path,
    name: str,
    *,
    ranks: Ranks | None = None,
    batch_size: int = 32,
    explain: bool = True,
    max_new_tokens: int | None = None,
    decoding: DecodingSettings | None = None,
    on_rows: RowsCounter | None = None,
) -> StoredPredictions:
    """What the model computes for each text, from ``folder`` where it is there, else computed and kept there.

    Collective: all ranks call it with the same arguments, and all get all predictions.

    Args:
        predictor: the model.
        model: its folder.
        texts: texts to predict.
        folder: where predictions are kept; shared by the ranks.
        name: what the predictions are of, for the progress and the folder's name.
        ranks: this process among the others; None: alone.
        batch_size: texts decoded together.
        explain: decode explanations too.
        max_new_tokens: longest explanation in tokens; None: the longest that training allowed.
        decoding: how explanations are written; None: as the model's folder says.
        on_rows: told how many more rows this rank has, and whether it computed them; None: a progress is shown here.

    Raises:
        SettingsError: the folder cannot be written, or prompt and ``max_new_tokens`` exceed the context.
    """
    ranks, start = ranks or Ranks(), time.monotonic()
    options = [batch_size, explain, max_new_tokens]
    if explain or predictor.card.decide == "after":
        decoding = predictor.decoding(decoding)
        options += _written_with(predictor.card, decoding)
    parts = folder / f"{name}-{_key(predictor, model, texts, options)}"
    with writing(parts / "part"):
        ranks.barrier()  # no rank writes before the last has made its folder
        done = _read(parts)
        ranks.barrier()  # no rank writes before all have read the same
        if known := sum(map(len, done.values())):
            (on_rows or _nothing)(known, computed=False)
        if known == len(texts):
            return StoredPredictions(_in_order(done, len(texts)), 0, time.monotonic() - start)
        batches = predictor.prompt_batches(texts, batch_size)
        left = [number for number in range(len(batches.rows)) if number not in done]
        if mine := left[ranks.rank :: ranks.size]:
            file = parts / f"part-{ranks.rank:04d}-{len(list(parts.glob(f'part-{ranks.rank:04d}-*')))}.jsonl"
            with (
                Progress(
                    len(mine), enabled=not on_rows and ranks.rank == 0 and len(mine) > 1, unit="batch", label=name
                ) as shown,
                file.open("x") as out,
            ):
                for number in mine:
                    rows = predictor.compute(
                        batches, number, explain=explain, max_new_tokens=max_new_tokens, decoding=decoding
                    )
                    line = {"batch": number, "rows": {index: asdict(raw) for index, raw in rows.items()}}
                    out.write(json.dumps(line) + "\n")
                    out.flush()
                    shown.update()
                    (on_rows or _nothing)(len(rows), computed=True)
    ranks.barrier()
    return StoredPredictions(_in_order(_read(parts), len(texts)), len(mine), time.monotonic() - start)


def _nothing(rows: int, *, computed: bool) -> None:
    """Tell nobody."""


def _in_order(batches: dict[int, dict[int, RawPrediction]], count: int) -> list[RawPrediction]:
    found = {index: raw for rows in batches.values() for index, raw in rows.items()}
    return [found[index] for index in range(count)]


def _read(parts: Path) -> dict[int, dict[int, RawPrediction]]:
    """The finished batches by number; a torn line is passed over."""
    found: dict[int, dict[int, RawPrediction]] = {}
    for part in sorted(parts.glob("part-*.jsonl")):
        for line in read_json_lines(part):
            found[line["batch"]] = {int(index): _raw(fields) for index, fields in line["rows"].items()}
    return found


def _raw(fields: dict[str, Any]) -> RawPrediction:
    after = fields.pop("after")
    fields["others"] = tuple(fields.get("others", ()))
    return RawPrediction(first=tuple(fields.pop("first")), after=None if after is None else tuple(after), **fields)


def _written_with(card: ModelCard, decoding: DecodingSettings) -> list[Any]:
    """What explanations depend on beside the model: their settings, and where these need decisions, the calibration."""
    known = [asdict(decoding)] if decoding != DecodingSettings(redraws=0) else []
    return [*known, card.calibration, card.thresholds, card.decisions] if decoding.uses_decision else known


def _key(predictor: BatchPredictor, model: Path, texts: Sequence[str], options: list[Any]) -> str:
    """What the predictions depend on, in 16 hex digits; weights and tokenizer by name, size and time."""
    card = predictor.card
    fields = [card.head_sha256, card.prompt, card.decide, card.max_prompt_length, card.max_explanation_length]
    other = (META_FILE, "README.md")
    files = sorted(f for f in model.glob("[!.]*") if f.is_file() and f.name not in other)
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(json.dumps([*options, fields, stats]).encode())
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]
