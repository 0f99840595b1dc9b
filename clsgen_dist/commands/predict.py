"""``clsgen predict``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.decoding.settings import DecodingSettings
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
    decoding: DecodingSettings | None = None,
    max_bad_fraction: ClosedUnitInterval = 1.0,
    keep_columns: bool = True,
    engine: str | None = None,
) -> None:
    """Probability of each class and an explanation, for every row of a file or for a single text.

    Every row is answered, in the file's order: one without a usable text by its id and `error`. A command that was
    killed goes on where it was. Over ranks: torchrun --nproc_per_node 8 -m clsgen_dist predict ...

    Args:
        model: Folder that `clsgen export` wrote.
        input: Rows (JSONL, CSV, Parquet, saved folder or hub id; `-`: JSONL or CSV from standard input); labels and explanations in them are not looked at.
        output: File to write, a row for each row of the input: `.jsonl`; `.csv` or `.parquet` with a column `p_LABEL` for each probability; `-`: JSONL to standard output.
        text: A single text instead of a file, taken as it is; the answer is printed as JSON.
        columns: How the input's columns are called.
        batch_size: Rows decoded together.
        max_new_tokens: Longest explanation in tokens; none: as long as the longest that training allowed.
        explain: Decode explanations too; without them only the probabilities are computed, many times faster.
        decoding: How explanations are written; none: as the model's clsgen.json says. Replaces all of that.
        max_bad_fraction: Stop with status 2, before predicting, when more than this share of the rows has no usable text.
        engine: Address of a server that serves the folder, like http://localhost:8000 (vLLM, a folded export): it computes instead of this process, `batch_size` calls at a time.
        keep_columns: Write the input's columns too; those called like one of the answer's get `input_` before their names.
    """  # noqa: E501
    from clsgen_dist.data.reading.cells import is_blank
    from clsgen_dist.data.reading.rejection import format_locations
    from clsgen_dist.engine.world import set_launch_variables
    from clsgen_dist.errors import DataError
    from clsgen_dist.inference.predict import Predictor
    from clsgen_dist.inference.predict_file import predict_file

    predictor = None
    if engine is not None:
        from clsgen_dist.clients import EnginePredictor

        predictor = EnginePredictor(model, engine)
    if text is not None and input is None:
        if is_blank(text):
            raise DataError("--text is empty; give the text to classify")
        [prediction] = (predictor or Predictor(model)).predict(
            [text], explain=explain, max_new_tokens=max_new_tokens, decoding=decoding
        )
        print(json.dumps(prediction.to_json(), ensure_ascii=False))
        return
    if text is not None or input is None or output is None:
        raise DataError("give either --text TEXT, or both --input ROWS and --output FILE")
    written = predict_file(
        model,
        input,
        output,
        columns,
        batch_size=batch_size,
        explain=explain,
        max_new_tokens=max_new_tokens,
        decoding=decoding,
        max_bad_fraction=max_bad_fraction,
        keep_columns=keep_columns,
        predictor=predictor,
    )
    if set_launch_variables().rank != 0:
        return
    predicted = f"{written.rows - written.bad} predicted, {written.truncated} of them shortened in the middle"
    target = "standard output" if output == "-" else output
    print(f"wrote {written.rows} rows to {target}: {predicted}", file=sys.stderr if output == "-" else sys.stdout)
    if written.contradict:
        print(
            f"{written.contradict} explanations state another class than was decided, and are marked: contradicts",
            file=sys.stderr,
        )
    if written.bad:
        where = format_locations(written.rejected)
        print(f"{written.bad} of {written.rows} rows have an error instead: {where}", file=sys.stderr)
