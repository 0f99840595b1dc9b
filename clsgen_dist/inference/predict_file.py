"""Predictions for every row of a source, written in the source's order, whatever its length.

    rows ─windows of 4096─▶ texts ─ranks─▶ OUTPUT.parts ─all rows done─▶ OUTPUT (.jsonl, .csv, .parquet)

The source is read three times: to count rows and bad rows, to predict what is missing, to write. Predictions are kept
batch by batch in the folder ``OUTPUT.parts`` until the last row is predicted (``stored_predictions``): a command that
was killed goes on with the missing batches, and ranks share them. Memory: one window.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import TextRow, iter_texts
from clsgen_dist.data.reading.rejection import RejectedRow, require_few_bad_rows
from clsgen_dist.data.reading.sniff import BYTE_ORDER_MARK
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import DataError, ModelError
from clsgen_dist.inference.answer_files import Answer, InputColumns, require_answer_format, write_answers
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.raw_predictions import NOT_FINITE, RawPrediction, require_finite
from clsgen_dist.inference.stored_predictions import BatchPredictor, predicting_ranks, stored_predictions
from clsgen_dist.io.files import require_writable, writing
from clsgen_dist.track.progress import Progress

_WINDOW = 4096
"""Rows that are read, sorted by length and predicted together."""
_NAMED = 20
"""Rejected rows that are kept to be named."""


@dataclass(frozen=True)
class PredictedFile:
    """What was written."""

    rows: int
    truncated: int
    """Rows whose text was truncated in the middle to fit."""
    bad: int
    """Rows that have an error instead of a prediction: without a usable text, or with logits that are not finite."""
    rejected: list[RejectedRow]
    """The first of them."""
    contradict: int = 0
    """Explanations that state another class than was decided."""


def predict_file(
    model: str | Path,
    data: str,
    output: str | Path,
    columns: Columns | None = None,
    *,
    batch_size: int = 16,
    explain: bool = True,
    max_new_tokens: int | None = None,
    decoding: DecodingSettings | None = None,
    max_bad_fraction: float = 1.0,
    keep_columns: bool = True,
    predictor: BatchPredictor | None = None,
) -> PredictedFile:
    """Predict each row of a source: its id, its columns, and a prediction, or ``error`` and ``code``.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote.
        data: rows; labels and explanations in them are not looked at. ``-``: JSON lines or CSV from standard input.
        output: ``.jsonl``, ``.csv`` or ``.parquet``, replaced when all rows are predicted. ``-``: JSON lines to
            standard output.
        columns: how the columns are called.
        batch_size: rows decoded together.
        explain: decode explanations too.
        max_new_tokens: longest explanation in tokens; None: the longest that training allowed.
        decoding: how explanations are written; None: as the model's folder says.
        max_bad_fraction: more rows without a usable text than this share raise, before anything is predicted.
        keep_columns: write the row's own columns too; those called like one of the answer's get ``input_`` before.
        predictor: computes instead of the model in this process, such as
            :class:`clsgen_dist.clients.EnginePredictor`; ``model`` is its folder.

    Raises:
        ModelError: ``model`` is no exported folder, or no row has a prediction.
        DataError: the rows cannot be read, or too many are bad.
        SettingsError: ``output`` cannot be written, or ``max_new_tokens`` exceeds the context.
    """
    known = columns or Columns()
    with predicting_ranks() as ranks, _streams(data, Path(output), ranks.size) as (source, target, parts):
        total = _survey(source, known, max_bad_fraction, keep_columns=keep_columns)
        predictor = predictor or Predictor(model)
        options = {
            "batch_size": batch_size,
            "explain": explain,
            "max_new_tokens": max_new_tokens,
            "decoding": predictor.decoding(decoding),
        }
        job = _Job(predictor, Path(model), source, known, parts, options)
        with Progress(
            total, enabled=ranks.rank == 0 and total > batch_size, unit="row", label="predict", rate=True
        ) as shown:

            def on_rows(count: int, *, computed: bool) -> None:
                (shown.update if computed else shown.skip)(count)

            for number, rows in enumerate(job.windows()):
                end = shown.done + len(rows)
                job.raws(number, rows, ranks=ranks, on_rows=on_rows)
                shown.skip(end - shown.done)  # those without a text, and those of other ranks
        written = _Tally()
        if ranks.rank == 0:
            with writing(target):
                write_answers(target, lambda: job.answers(written, keep_columns=keep_columns))
            shutil.rmtree(parts)
        ranks.barrier()
    return PredictedFile(total, written.truncated, written.bad, written.rejected, written.contradict)


@dataclass
class _Tally:
    """Counts of the answers given so far."""

    truncated: int = 0
    bad: int = 0
    contradict: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)

    def clear(self) -> None:
        """Begin again."""
        self.truncated, self.bad, self.contradict, self.rejected = 0, 0, 0, []

    def reject(self, row: RejectedRow) -> None:
        """Count a row that has an error."""
        self.bad += 1
        if len(self.rejected) < _NAMED:
            self.rejected.append(row)


@dataclass(frozen=True)
class _Job:
    """The rows of a source through a model, window by window."""

    predictor: BatchPredictor
    model: Path
    source: str
    columns: Columns
    parts: Path
    options: dict[str, Any]

    def windows(self, *, every_column: bool = False) -> Iterator[list[TextRow]]:
        """The rows in order, some at a time."""
        left = iter_texts(self.source, self.columns, every_column=every_column)
        while rows := list(islice(left, _WINDOW)):
            yield rows

    def raws(self, number: int, rows: list[TextRow], **options: Any) -> list[RawPrediction]:
        """What the model computes for the texts of a window; what is kept is not computed again."""
        texts, name = [row.text for row in rows if row.rejected is None], f"rows-{number:06d}"
        return stored_predictions(self.predictor, self.model, texts, self.parts, name, **self.options, **options).rows

    def answers(self, tally: _Tally, *, keep_columns: bool) -> Iterator[Answer]:
        """The answers of all rows, once all are predicted; ModelError if none has a prediction."""
        tally.clear()
        failed: tuple[list[RawPrediction], list[str]] | None = None
        predicted, error = 0, None
        columns = InputColumns(self.predictor.card.labels, self.columns.id)
        for number, rows in enumerate(self.windows(every_column=keep_columns)):
            raws = self.raws(number, rows)
            predicted += sum(raw.is_finite and raw.error is None for raw in raws)
            error = error or next((raw.error for raw in raws if raw.error is not None), None)
            if raws and failed is None:
                failed = raws, [row.id for row in rows if row.rejected is None]
            unread = iter(raws)
            for row in rows:
                yield Answer(row.id, columns.renamed(row.columns), self._answer(row, unread, tally))
        if failed and not predicted:
            if error is not None:
                raise ModelError(f"no row could be explained; the first that failed: {error}")
            require_finite(*failed)

    def _answer(self, row: TextRow, unread: Iterator[RawPrediction], tally: _Tally) -> dict[str, Any]:
        fault = row.rejected
        if fault is None:
            raw = next(unread)
            tally.truncated += raw.truncated
            if raw.error is not None:
                fault = RejectedRow(source=self.source, line=row.line, code="not-explained", reason=raw.error)
            elif raw.is_finite:
                prediction = self.predictor.read(raw)
                tally.contradict += prediction.contradicts
                return prediction.to_json()
            else:
                fault = RejectedRow(source=self.source, line=row.line, code="logits-not-finite", reason=NOT_FINITE)
        tally.reject(fault)
        return {"error": fault.reason, "code": fault.code}


def _survey(source: str, columns: Columns, max_bad_fraction: float, *, keep_columns: bool) -> int:
    """Number of the rows; DataError if too many of them have no usable text, or all, or what is kept cannot be read."""
    rows, tally = 0, _Tally()
    for row in iter_texts(source, columns, every_column=keep_columns):
        rows += 1
        if row.rejected is not None:
            tally.reject(row.rejected)
    require_few_bad_rows(
        source, rows - tally.bad, tally.bad, tally.rejected, max_bad_fraction, None, "--max_bad_fraction"
    )
    return rows


@contextlib.contextmanager
def _streams(data: str, output: Path, ranks: int) -> Iterator[tuple[str, Path, Path]]:
    """The source to read, the file to write, and the folder of predictions; ``-`` stands for the standard streams."""
    for name, value in (("--input", data), ("--output", str(output))):
        if value == "-" and ranks > 1:
            raise DataError(f"{name} is - with {ranks} ranks, which share files alone; name a file")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if "-" in (data, str(output)) else None
        source, parts = data, output.with_name(f"{output.name}.parts")
        if folder is not None and data == "-":
            source = str(_spooled(folder))
        if folder is None or str(output) != "-":
            require_answer_format(output)
            require_writable(output)
            yield source, output, parts
            return
        yield source, folder / "answers.jsonl", folder / "parts"
        if (folder / "answers.jsonl").exists():  # rank 0
            with (folder / "answers.jsonl").open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()


def _spooled(folder: Path) -> Path:
    """Standard input as a file; its first character says whether it is JSON lines or CSV."""
    above, line = [], sys.stdin.buffer.readline()
    while line and not line.strip():
        above.append(line)
        line = sys.stdin.buffer.readline()
    is_csv = line.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] not in (b"{", b"[", b"")
    file = folder / ("stdin.csv" if is_csv else "stdin.jsonl")
    with file.open("wb") as out:
        out.writelines([*above, line] if not is_csv else [line])
        shutil.copyfileobj(sys.stdin.buffer, out)
    return file
