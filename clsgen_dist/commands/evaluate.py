"""``clsgen evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.decoding.settings import DecodingSettings
    from clsgen_dist.inference.settings import JudgeSettings
    from clsgen_dist.io.value_ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

_TOKENS = 25_000
"""Of general text, where only --max_drop asks for it."""


def run(
    model: str,
    data: str,
    train: str | None = None,
    output: str | None = None,
    compare: str | None = None,
    columns: Columns | None = None,
    batch_size: PositiveInt = 32,
    explain: bool = True,
    explain_sample: PositiveInt | None = None,
    decoding: DecodingSettings | None = None,
    faithfulness_rows: NonNegativeInt = 0,
    capability_tokens: NonNegativeInt = 0,
    general_text: str | None = None,
    max_drop: NonNegativeFloat | None = None,
    model_card: bool = True,
    lm_eval_tasks: list[str] | str | None = None,
    embedding_model: str | None = None,
    judge: JudgeSettings | None = None,
    max_bad_fraction: ClosedUnitInterval = 0.01,
) -> None:
    """Measure an exported model on held-out rows, with intervals and baselines, and write a report.

    A command that was killed goes on where it was. Over ranks: torchrun --nproc_per_node 8 -m clsgen_dist evaluate ...

    Args:
        model: Folder that `clsgen export` wrote.
        data: Labelled rows that were neither trained nor calibrated on.
        train: The training rows, for the baselines (majority class, TF-IDF logistic regression); none: no baselines.
        output: Folder for the report: index.html, report.md, report.json.
        compare: Another model of the same classes, measured on the same rows.
        columns: How the columns are called.
        batch_size: Rows put through the model together.
        explain: Decode explanations too, and measure them.
        explain_sample: Decode explanations for so many rows only, evenly over the decided classes.
        decoding: How explanations are written; none: as the model's clsgen.json says, but never drawn anew.
        faithfulness_rows: Rows whose evidence is masked and edited, some eighteen passes through the model each.
        capability_tokens: Tokens of general text on which the model is compared with its backbone; 25,000 resolve 1 %.
        general_text: UTF-8 text for that; none: Python's language reference.
        max_drop: End with status 2 unless perplexity is at most this per cent above the backbone's (95 % confidence).
        model_card: Fill the evaluation part of the model's README.md, if there is an output.
        lm_eval_tasks: Tasks of lm-evaluation-harness, as YAML files or folders, run for the model and its backbone.
        embedding_model: Folder or hub id of a model that embeds explanations and references, to compare their meaning.
        judge: A language model behind an OpenAI-compatible server that is asked about explanations.
        max_bad_fraction: Stop when more than this share of the rows is bad; fewer are dropped, and listed.
    """
    from clsgen_dist.engine.world import set_launch_variables
    from clsgen_dist.errors import CapabilityLostError
    from clsgen_dist.inference.evaluate import evaluate

    found = evaluate(
        model,
        data,
        train,
        columns,
        output=output,
        compare=compare,
        batch_size=batch_size,
        explain=explain,
        explain_sample=explain_sample,
        decoding=decoding,
        faithfulness_rows=faithfulness_rows,
        capability_tokens=capability_tokens or (_TOKENS if max_drop is not None else 0),
        general_text_file=general_text,
        model_card=model_card,
        lm_eval_tasks=[lm_eval_tasks] if isinstance(lm_eval_tasks, str) else lm_eval_tasks or [],
        embedding_model=embedding_model,
        judge=judge,
        max_bad_fraction=max_bad_fraction,
    )
    if set_launch_variables().rank != 0:
        return
    print(found.text())
    if output:
        print(f"report: {Path(output) / 'index.html'}")
    if max_drop is not None and found.capability:
        drop = found.capability.drop_percent
        if not drop.interval.high <= max_drop:
            raise CapabilityLostError(
                f"perplexity on general text is {drop.value:.1f} % above the backbone's, up to "
                f"{drop.interval.high:.1f} % with 95 % confidence, expected at most {max_drop:g} (--max_drop); "
                "lower optim.lr, train less, or use clsgen export --interpolation"
            )
