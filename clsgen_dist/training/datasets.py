"""From the data settings to training and dev rows, as the stream and the evaluation ask for them."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clsgen_dist.config import Settings
from clsgen_dist.data.encode import Encoder
from clsgen_dist.data.reading.ingest import resolve_space
from clsgen_dist.data.reading.label_cells import Space
from clsgen_dist.data.reading.rejection import require_few_bad_rows
from clsgen_dist.data.settings import DataSettings, PromptSettings
from clsgen_dist.data.tables.build import open_table
from clsgen_dist.data.tables.dataset import Compared, RowDataset
from clsgen_dist.data.tables.replay import ReplayTexts
from clsgen_dist.data.tables.shards import ShardedRows
from clsgen_dist.data.tables.spec import TableSpec
from clsgen_dist.errors import DataError, SettingsError
from clsgen_dist.io.text import MAX_LISTED, counts_phrase
from clsgen_dist.model.label_space import Kind, LabelSpace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """What a run trains and evaluates on."""

    train: RowDataset | ShardedRows
    dev: RowDataset | None
    labels: list[str]
    """Class names in the order of the head's logits."""
    notes: list[str]
    """For people: of each file the rows kept, rejected and shortened; the classes of the training rows."""
    kind: Kind = "single"
    """The label space."""
    replay: ReplayTexts | None = None
    """General texts beside the training rows."""
    replay_dev: ReplayTexts | None = None
    """General texts whose perplexity is measured."""

    @property
    def has_votes(self) -> bool:
        """Whether training rows may have votes or probabilities as labels."""
        if isinstance(self.train, ShardedRows):
            return self.train.space == "single"
        return self.train.table.answers_NC is not None and self.kind != "multilabel"

    def known_counts(self) -> list[float] | None:
        """Training rows in which it is known whether they have each class; None while shards are streamed."""
        if isinstance(self.train, ShardedRows):
            return None
        if self.kind == "multilabel":
            return [float(n) for n in (~np.isnan(self.train.labels)).sum(axis=0)]
        return [float((self.train.label_N >= 0).sum())] * len(self.labels)

    def class_counts(self) -> list[float] | None:
        """Training rows of each class; None while shards are streamed."""
        if isinstance(self.train, ShardedRows):
            return None
        return [float(n) for n in self.train.class_counts()]


def open_datasets(
    data: DataSettings,
    encoder: Encoder,
    quarantine: Path | None,
    seed: int = 0,
    run: str = "",
    *,
    compared: Compared = "own",
) -> Datasets:
    """Open the training and dev rows, building their tables if need be.

    Args:
        data: where the rows are.
        encoder: of texts and explanations.
        quarantine: folder for the lists of bad rows; None writes none.
        seed: of the order; streamed shards are shuffled with it.
        run: the run's output folder, which streamed shards must know.
        compared: which explanations samples have besides their own.

    Raises:
        DataError: too many bad rows, fewer than two classes, or nothing at all to learn.
    """
    train: RowDataset | ShardedRows
    data = dataclasses.replace(data, label_space=_resolved_space(data))
    if data.stream_window is not None:
        labels = list(data.labels or [])
        train = ShardedRows(
            data.train,
            _table_spec(data, labels, encoder),
            encoder,
            window=data.stream_window,
            seed=seed,
            max_bad_fraction=data.max_bad_fraction,
            run=run,
            quarantine=quarantine and quarantine / "quarantine-train",
            owns_cache=os.environ.get("LOCAL_RANK", "0") == "0",
            compared=compared,
        )
        notes = [f"train: {len(train)} rows in {len(train.names)} shards, {data.stream_window} at a time"]
    else:
        file = quarantine and quarantine / "quarantine-train.jsonl"
        train = _open(data, data.train, data.labels, encoder, file, compared)
        labels = train.table.card.labels
        notes = [f"train: {_note(train)}", _classes(train)]
    kind: Kind = "single" if data.label_space == "auto" else data.label_space
    if len(labels) < (1 if kind == "multilabel" else 2):
        raise DataError(
            f"{data.train}: found the classes {labels}, expected two or more; check data.columns.label "
            f"({data.columns.label!r}), or name the classes in data.labels. {notes[0]}"
        )
    dev = None
    if data.dev is not None:
        file = quarantine and quarantine / "quarantine-dev.jsonl"
        dev = _open(data, data.dev, labels, encoder, file, compared)
        notes.append(f"dev: {_note(dev)}")
    for note in notes:
        logger.info(note)
    return Datasets(train, dev, labels, notes, kind)


def with_replay(rows: Datasets, settings: Settings, encoder: Encoder) -> Datasets:
    """The rows with the general texts that the retention term replays, and those whose perplexity is measured.

    Raises:
        DataError: a file has no text of two tokens, or too many bad rows.
    """
    retention = settings.objectives.retention
    return dataclasses.replace(
        rows,
        replay=_texts(settings, "replay", encoder) if retention.weight else None,
        replay_dev=_texts(settings, "replay_dev", encoder),
    )


def _texts(settings: Settings, name: Literal["replay", "replay_dev"], encoder: Encoder) -> ReplayTexts | None:
    data, source = settings.data, getattr(settings.data, name)
    if source is None:
        return None
    spec = dataclasses.replace(_table_spec(data, None, encoder), columns=data.columns.text_only(), require_target=False)
    table = open_table(source, spec)
    bad = sum(table.card.rejected.values())
    require_few_bad_rows(source, len(table), bad, table.rejected(), data.max_bad_fraction, None)
    logger.info("%s: %d general texts", name, len(table))
    per_step = max(1, round(settings.objectives.retention.share * settings.train.batch_size))
    return ReplayTexts(table, max_length=data.max_prompt_length, per_step=per_step, seed=settings.seed)


def _resolved_space(data: DataSettings) -> Space:
    """The label space, found from the training rows for ``auto``; streamed shards are single unless set."""
    return data.label_space if data.stream_window else resolve_space(data.train, data.columns, data.label_space)


def datasets_of_recipe(settings: Settings) -> Datasets:
    """The rows of a recipe without a run: its prompt is rendered again, and nothing is quarantined.

    Raises:
        SettingsError: ``data.stream_window`` is set: rows that are streamed are not here.
        DataError: as :func:`open_datasets`.
    """
    if settings.data.stream_window is not None:
        raise SettingsError(
            "data.stream_window is set, but this command needs rows on this machine; leave it out, and name one shard"
        )
    encoder = encoder_of_settings(settings.model.backbone, settings.prompt, settings.data.max_prompt_length)
    rows = open_datasets(settings.data, encoder, None, compared=settings.objectives.compared)
    return with_replay(rows, settings, encoder)


def encoder_of_settings(tokenizer: str, prompt: PromptSettings, max_prompt_length: int) -> Encoder:
    """The encoder of a tokenizer (folder, hub id or ``demo:`` name) and a freshly rendered prompt; errors as there."""
    from clsgen_dist.model.backbone import backbone_path, load_tokenizer

    return Encoder(load_tokenizer(backbone_path(tokenizer)), **vars(prompt), max_prompt_length=max_prompt_length)


def require_rows_for_terms(rows: Datasets, settings: Settings) -> None:
    """DataError if a term that is on has no row to learn from; the log names what no term uses."""
    _require_something_to_learn(rows, settings)
    _require_evidence(rows, settings)
    _require_pairs(rows, settings)
    _log_unused(rows, settings)


def _log_unused(rows: Datasets, settings: Settings) -> None:
    objectives, replay = settings.objectives, settings.data.replay
    if replay and not objectives.retention.weight:
        logger.warning("data.replay is %s, but its texts are not used: objectives.retention.weight is 0", replay)
    if isinstance(rows.train, ShardedRows):
        return
    table = rows.train.table
    if (rejected := len(table.rejected_length_R)) and not objectives.preference.weight:
        logger.warning(
            "%s: %d rejected explanations are not used: objectives.preference.weight is 0", rows.train.name, rejected
        )
    if (found := table.card.with_evidence) and not (objectives.evidence.weight or objectives.contrast.weight):
        logger.info("%s: the evidence of %d rows is not used: objectives.evidence.weight is 0", rows.train.name, found)


def _require_something_to_learn(rows: Datasets, settings: Settings) -> None:
    """DataError if no row carries a loss that counts and reaches what is trained."""
    if isinstance(rows.train, ShardedRows):  # not known before they are here
        return
    card, objectives = rows.train.table.card, settings.objectives
    explained = card.unexplained < card.rows and objectives.generation.weight > 0 and settings.model.finetune != "head"
    labelled = card.unlabelled < card.rows and objectives.classification.weight > 0
    judged = (
        objectives.preference.weight and objectives.preference.loss == "kto" and len(rows.train.table.rejected_length_R)
    )
    if not explained and not labelled and not judged:
        raise DataError(
            f"{card.source}: {card.rows - card.unlabelled} of {card.rows} rows have a label and "
            f"{card.rows - card.unexplained} an explanation, but objectives.classification.weight is "
            f"{objectives.classification.weight}, objectives.generation.weight {objectives.generation.weight} and "
            f"model.finetune {settings.model.finetune!r}: nothing would be trained; name the columns, or change one of "
            "these"
        )


def _require_pairs(rows: Datasets, settings: Settings) -> None:
    """DataError if the preference term is on and no training row has both an explanation and a rejected one."""
    weight = settings.objectives.preference.weight
    if not weight or isinstance(rows.train, ShardedRows):
        return
    table, columns = rows.train.table, settings.data.columns
    chosen_N, rejected_N = (np.diff(start) > 0 for start in (table.explanation_start_N1, table.rejected_start_N1))
    if not (chosen_N & rejected_N).any():
        raise DataError(
            f"{table.card.source}: {int(rejected_N.sum())} rows have a rejected explanation, none of them an accepted "
            f"one too, but objectives.preference.weight is {weight}; name the columns in data.columns.chosen "
            f"({columns.chosen!r}) and data.columns.rejected ({columns.rejected!r}), or set the weight to 0"
        )


def _require_evidence(rows: Datasets, settings: Settings) -> None:
    """DataError if the evidence term is on and no training row has evidence that is in its text."""
    weight = settings.objectives.evidence.weight
    if not weight or isinstance(rows.train, ShardedRows) or rows.train.table.card.with_evidence:
        return
    card, columns = rows.train.table.card, settings.data.columns
    raise DataError(
        f"{card.source}: no row has evidence, but objectives.evidence.weight is {weight}. {card.summary()}; name the "
        f"column of quotes or characters in data.columns.evidence ({columns.evidence!r}), or set the weight to 0"
    )


def require_named_classes(rows: Datasets, name_tokens: Sequence[int], labels: LabelSpace) -> None:
    """DataError if fewer than half of the explanations begin with a class's name, as the consistency term needs.

    Of at most 1,000 rows; streamed shards are not known before they are here.
    """
    if isinstance(rows.train, ShardedRows):
        return
    table, among = rows.train.table, np.unique(np.linspace(0, len(rows.train) - 1, 1000).astype(int))
    samples = [rows.train.sample(int(row)).explanation for row in among]
    explained = [tokens for tokens in samples if len(tokens)]
    begun = sum(int(tokens[0]) in name_tokens for tokens in explained)
    if 2 * begun < len(explained):
        written = " or ".join(repr(name[:1].upper() + name[1:]) for name in labels.names[:2])
        raise DataError(
            f"{table.card.source}: {begun} of {len(explained)} explanations begin with a class, such as {written}. "
            "objectives.consistency needs half or more: begin them with it, or set objectives.consistency.weight to 0"
        )


def _open(
    data: DataSettings,
    source: str,
    labels: list[str] | None,
    encoder: Encoder,
    quarantine: Path | None,
    compared: Compared,
) -> RowDataset:
    table = open_table(source, _table_spec(data, labels, encoder))
    if quarantine is not None:
        if table.quarantine.exists():
            quarantine.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(table.quarantine, quarantine)
        else:  # an earlier run's must not be taken for this one's
            quarantine.unlink(missing_ok=True)
    require_few_bad_rows(
        source, len(table), sum(table.card.rejected.values()), table.rejected(), data.max_bad_fraction, quarantine
    )
    return RowDataset(table, encoder, compared=compared)


def _table_spec(data: DataSettings, labels: list[str] | None, encoder: Encoder) -> TableSpec:
    return TableSpec(
        columns=data.columns,
        labels=tuple(labels) if labels is not None else None,
        max_explanation_length=data.max_explanation_length,
        tokens_of=encoder.tokens_of,
        end_token=encoder.end_token,
        tokenizer=encoder.tokenizer_key,
        space=data.label_space,
    )


def _classes(rows: RowDataset) -> str:
    """The classes with their rows, in the order of the logits; of many, the largest."""
    names = rows.table.card.labels
    counts = rows.class_counts().tolist()
    found = list(zip(names, counts, strict=True))
    if len(found) > MAX_LISTED:
        found.sort(key=lambda item: -item[1])
    return f"{len(names)} classes: {counts_phrase(dict(found))}"


def _note(rows: RowDataset) -> str:
    lost = rows.lost_evidence()
    return (
        f"{rows.table.card.summary()}; {rows.truncated()} shortened in the middle of the text"
        f"{f', {lost} of which lose all their evidence' if lost else ''}"
    )
