"""Predictions for every row of a source, written as JSON lines in the source's order.

Until all rows are predicted they are kept batch by batch in the folder ``OUTPUT.parts`` (``stored_predictions``): a
command that was killed goes on with the missing batches, and ranks share them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.ingest import read_texts
from clsgen_dist.data.reading.rejection import RejectedRow, require_few_bad_rows
from clsgen_dist.inference.predict import Predictor
from clsgen_dist.inference.raw_predictions import NOT_FINITE, require_finite
from clsgen_dist.inference.stored_predictions import predicting_ranks, stored_predictions
from clsgen_dist.io.files import atomic_file, require_writable, writing


@dataclass(frozen=True)
class PredictedFile:
    """What was written."""

    rows: int
    truncated: int
    """Rows whose text was truncated in the middle to fit."""
    rejected: list[RejectedRow]
    """Rows that have an error instead of a prediction: without a usable text, or with logits that are not finite."""


def predict_file(
    model: str | Path,
    data: str,
    output: str | Path,
    columns: Columns | None = None,
    *,
    batch_size: int = 16,
    explain: bool = True,
    max_new_tokens: int | None = None,
    max_bad_fraction: float = 1.0,
) -> PredictedFile:
    """Predict each row of a source; one line of JSON each, with its id and a prediction or ``error`` and ``code``.

    Args:
        model: folder that :func:`clsgen_dist.export` wrote.
        data: rows; labels and explanations in them are not looked at.
        output: JSONL file to write, replaced when all rows are predicted.
        columns: how the columns are called.
        batch_size: rows decoded together.
        explain: decode explanations too.
        max_new_tokens: longest explanation in tokens; None: the longest that training allowed.
        max_bad_fraction: more rows without a usable text than this share raise, before anything is predicted.

    Raises:
        ModelError: ``model`` is no exported folder, or the logits of no row are finite.
        DataError: the rows cannot be read, or too many are bad.
        SettingsError: ``output`` cannot be written, or ``max_new_tokens`` exceeds the context.
    """
    output = Path(output)
    require_writable(output)
    rows = read_texts(data, columns or Columns())
    texts = [row.text for row in rows if row.rejected is None]
    rejected = [row.rejected for row in rows if row.rejected is not None]
    require_few_bad_rows(data, len(texts), len(rejected), rejected, max_bad_fraction, None, "--max_bad_fraction")
    with predicting_ranks() as ranks:
        predictor, parts = Predictor(model), output.with_name(f"{output.name}.parts")
        raws = stored_predictions(
            predictor,
            Path(model),
            texts,
            parts,
            "rows",
            ranks=ranks,
            batch_size=batch_size,
            explain=explain,
            max_new_tokens=max_new_tokens,
        ).rows
        if not any(raw.is_finite for raw in raws):
            require_finite(raws, [row.id for row in rows if row.rejected is None])
        unread, answers = iter(raws), []
        for row in rows:
            fault = row.rejected
            if fault is None and not (raw := next(unread)).is_finite:
                fault = RejectedRow(source=data, line=row.line, code="logits-not-finite", reason=NOT_FINITE)
                rejected.append(fault)
            answer = {"error": fault.reason, "code": fault.code} if fault else predictor.read(raw).to_json()
            answers.append({"id": row.id, **answer})
        if ranks.rank == 0:
            # An id may hold what UTF-8 cannot.
            with writing(output), atomic_file(output, errors="backslashreplace") as file:
                for answer in answers:
                    file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            shutil.rmtree(parts)
        ranks.barrier()
    return PredictedFile(len(rows), sum(raw.truncated for raw in raws), rejected)
