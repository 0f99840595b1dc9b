"""``clsgen data explain FILE --output FILE --url URL``: a teacher or a template writes explanations.

Exit status: 0 done, or stopped at the budget; 1 the server is gone; 2 the command, key or address is wrong. In each
case the output has what was answered, and the same command goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clsgen_dist.data.example import Columns
    from clsgen_dist.io.value_ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
    from clsgen_dist.teacher.candidates import FurtherChecks
    from clsgen_dist.teacher.rows_to_explain import RowsToExplain


def run(
    files: list[str],
    output: str,
    url: str | None = None,
    model: str | None = None,
    teacher: Literal["model", "self", "template"] = "model",
    template: list[str] | None = None,
    without_label: bool = False,
    styles: str = "short",
    candidates: PositiveInt = 1,
    paraphrase: PositiveInt | None = None,
    temperature: NonNegativeFloat | None = 0.7,
    max_tokens: PositiveInt = 256,
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    seed: NonNegativeInt | None = 0,
    concurrency: PositiveInt = 8,
    timeout: PositiveFloat = 120.0,
    tries: PositiveInt = 6,
    max_tokens_total: PositiveInt | None = None,
    max_cost: PositiveFloat | None = None,
    price_input: NonNegativeFloat | None = None,
    price_output: NonNegativeFloat | None = None,
    columns: Columns | None = None,
    labels: list[str] | None = None,
    label_space: Literal["auto", "single", "multilabel", "ordinal"] = "auto",
    journal: str | None = None,
    config: str | None = None,
) -> None:
    """Have a language model write explanations for labelled rows without any, and keep those that state the label.

    With --paraphrase, it writes the explanations of labelled rows in other words instead. The key is read from the
    environment variable OPENAI_API_KEY. Texts are sent to the server. Templates need no server: they are filled with
    the row's label and evidence.

    Args:
        files: The rows: one file, saved folder or hub id.
        output: File of JSON lines for all rows; those with new explanations have columns `explanations`, `provenance`.
        url: Address of an OpenAI-compatible server, like http://localhost:8000/v1.
        model: The teacher's name there; none: the only one that is served.
        teacher: `self` if `clsgen serve` serves the model being trained, which gets the text alone; `template`: none.
        template: Sentence with {label}, {evidence} and perhaps {counter_evidence}; several by repeating the option.
        without_label: Do not tell the label: the teacher decides, and its agreement with the labels is measured.
        styles: Some of short, clinical, lay, evidence-first, by comma; each is asked for.
        candidates: Answers of each style.
        paraphrase: How many paraphrases of each explanation to ask for; those with its class and numbers are kept.
        temperature: How freely they are drawn; null: not sent.
        max_tokens: Longest answer; training quarantines explanations longer than data.max_explanation_length.
        token_limit: The name of that limit; OpenAI's reasoning models want max_completion_tokens, and no temperature.
        seed: Of the first candidate; null: not sent.
        concurrency: Questions on their way at a time.
        timeout: Seconds for one try, up to its last byte.
        tries: Of one question; the waits between them double, or are what the server asks for.
        max_tokens_total: Stop before more tokens than these are spent, over all runs of this journal.
        max_cost: Stop before more money is spent, over all runs of this journal.
        price_input: Money per million tokens that are sent.
        price_output: Money per million tokens that are written.
        columns: How your columns are called.
        labels: All classes; none: those of the rows.
        label_space: What a row's label is, as in a recipe's data.label_space.
        journal: File of all answers, which a later run takes instead of asking again; none: OUTPUT.journal.
        config: Recipe whose `curation` says which explanations are dropped; none: the defaults.
    """
    from clsgen_dist.data.example import Columns
    from clsgen_dist.data.reading.cells import class_name
    from clsgen_dist.errors import SettingsError
    from clsgen_dist.teacher.budget import Limits
    from clsgen_dist.teacher.explain import Explainer, TeacherSettings
    from clsgen_dist.teacher.explain_report import to_text
    from clsgen_dist.teacher.prompts import styles_of
    from clsgen_dist.teacher.rows_to_explain import RowsToExplain

    if len(files) != 1:
        raise SettingsError(f"data explain reads one file, and {len(files)} are named; name one, like rows/train.jsonl")
    known, classes = columns or Columns(), tuple(map(class_name, labels)) if labels else None
    checks = _checks(config)
    _check_teacher(teacher, url, template, paraphrase)
    if template is not None:
        print(_explain_by_templates(RowsToExplain(files[0], known, classes, label_space), template, output, checks))
        return
    settings = TeacherSettings(
        url=url or "",
        model=model,
        is_self=teacher == "self",
        with_label=not without_label,
        styles=tuple(styles_of(styles)) if teacher == "model" else ("short",),
        candidates=candidates,
        paraphrases=paraphrase or 0,
        temperature=temperature,
        max_tokens=max_tokens,
        token_limit=token_limit,
        seed=seed,
        concurrency=concurrency,
        timeout=timeout,
        tries=tries,
        limits=Limits(
            max_tokens_total=max_tokens_total, max_cost=max_cost, price_input=price_input, price_output=price_output
        ),
        columns=known,
        labels=classes,
        space=label_space,
        journal=Path(journal) if journal else None,
    )
    print(to_text(Explainer(files[0], settings, checks).run(Path(output)), output))


def _checks(config: str | None) -> FurtherChecks:
    """What else may be wrong with an explanation, as a recipe says."""
    from clsgen_dist.config import CurationSettings, parse_settings, resolve_path
    from clsgen_dist.teacher.candidates import explanation_checks

    curation = parse_settings(["--config", str(resolve_path(config))]).curation if config else CurationSettings()
    return explanation_checks(curation)


def _explain_by_templates(rows: RowsToExplain, templates: list[str], output: str, checks: FurtherChecks) -> str:
    from clsgen_dist.teacher.explain_report import templates_to_text
    from clsgen_dist.teacher.templates import explain_by_templates

    return templates_to_text(explain_by_templates(rows, templates, Path(output), checks), output)


def _check_teacher(teacher: str, url: str | None, template: list[str] | None, paraphrase: int | None) -> None:
    """SettingsError unless a template has sentences and no address, and another teacher the other way round."""
    from clsgen_dist.errors import SettingsError

    if teacher == "template" and not template:
        raise SettingsError("--template is missing, expected a sentence like '{label}: {evidence}.'")
    if teacher != "template" and template:
        raise SettingsError(f"--template is for --teacher template, and --teacher is {teacher}; leave one out")
    if teacher == "template" and paraphrase:
        raise SettingsError(
            f"--paraphrase is {paraphrase}, and --teacher template writes no paraphrases; leave one out"
        )
    if teacher == "template" and url is not None:
        raise SettingsError(f"--url is {url}, and --teacher template asks no server; leave one out")
    if teacher != "template" and url is None:
        raise SettingsError("--url is missing, expected the address of a server, like http://localhost:8000/v1")
