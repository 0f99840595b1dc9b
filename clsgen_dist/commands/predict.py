"""``clsgen predict``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.inference.predict import Prediction
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, PositiveInt


def run(
    model: str,
    input: str | None = None,
    output: str | None = None,
    text: str | None = None,
    columns: Columns | None = None,
    batch_size: PositiveInt = 16,
    max_new_tokens: PositiveInt | None = None,
    explain: bool = True,
    max_bad_fraction: ClosedUnitInterval = 1.0,
) -> None:
    """Probability of each class and an explanation, for every row of a file or for a single text.

    Every row is answered, in the file's order: one without a usable text by its id and `error`.

    Args:
        model: Folder that `clsgen export` wrote.
        input: Rows (JSONL, CSV, Parquet, saved folder or hub id); labels and explanations in them are not looked at.
        output: JSONL to write, one line for each row of the input.
        text: A single text instead of a file, taken as it is; the answer is printed as JSON.
        columns: How the input's columns are called.
        batch_size: Rows decoded together.
        max_new_tokens: Longest explanation in tokens; none: as long as the longest that training allowed.
        explain: Decode explanations too; without them only the probabilities are computed, many times faster.
        max_bad_fraction: Stop with status 2, before predicting, when more than this share of the rows has no usable text.
    """  # noqa: E501
    from clsgen_dist.data.example import Columns
    from clsgen_dist.data.reading.cells import is_blank
    from clsgen_dist.data.reading.ingest import read_texts
    from clsgen_dist.data.reading.rejection import format_locations, require_few_bad_rows
    from clsgen_dist.errors import DataError
    from clsgen_dist.inference.predict import Predictor
    from clsgen_dist.inference.rows import predict_texts
    from clsgen_dist.io.files import atomic_file, require_writable, writing

    if (text is None) == (input is None) or (input is not None and output is None):
        raise DataError("give either --text TEXT, or both --input ROWS and --output FILE")
    if text is not None:
        if is_blank(text):
            raise DataError("--text is empty; give the text to classify")
        [prediction] = Predictor(Path(model)).predict([text], explain=explain, max_new_tokens=max_new_tokens)
        print(json.dumps(_as_json(prediction), ensure_ascii=False))
        return
    assert input is not None and output is not None
    require_writable(output)
    rows = read_texts(input, columns or Columns())
    good = [row for row in rows if row.rejected is None]
    bad = [row.rejected for row in rows if row.rejected is not None]
    require_few_bad_rows(input, len(good), len(bad), bad, max_bad_fraction, None, "--max_bad_fraction")
    predictor = Predictor(Path(model))
    predictions = predict_texts(predictor, [row.text for row in good], batch_size, explain, max_new_tokens)
    answers = iter(predictions)
    target = Path(output)
    # An id may hold what UTF-8 cannot.
    with writing(target), atomic_file(target, errors="backslashreplace") as file:
        for row in rows:
            if row.rejected is None:
                answer = _as_json(next(answers))
            else:
                answer = {"error": row.rejected.reason, "code": row.rejected.code}
            file.write(json.dumps({"id": row.id, **answer}, ensure_ascii=False) + "\n")
    shortened = sum(p.truncated for p in predictions)
    print(f"wrote {len(rows)} rows to {target}: {len(good)} predicted, {shortened} of them shortened in the middle")
    if bad:
        print(f"{len(bad)} of {len(rows)} rows have an error instead: {format_locations(bad)}", file=sys.stderr)


def _as_json(prediction: Prediction) -> dict[str, object]:
    fields: dict[str, object] = {
        "label": prediction.label,
        "probabilities": {name: round(p, 6) for name, p in prediction.probabilities.items()},
    }
    if prediction.explanation is not None:
        fields["explanation"] = prediction.explanation
    if prediction.truncated:
        fields["truncated"] = True
    return fields
