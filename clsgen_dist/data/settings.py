"""Settings of rows, prompt and curriculum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from clsgen_dist.data.curriculum.stages import Direction, Stage, stage_faults
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.cells import class_name
from clsgen_dist.io.value_ranges import ClosedUnitInterval, PositiveInt


@dataclass(kw_only=True)
class DataSettings:
    """Where rows come from."""

    train: str
    """Training rows: a .jsonl, .csv or .parquet file, a folder of `Dataset.save_to_disk` (`folder:split`), a hub id (`owner/name:split`), or `demo:breast-cancer/train`. With `stream_window`: Parquet shards anywhere, like `hf://datasets/owner/name/data/*.parquet`."""
    dev: str | None = None
    """Rows for periodic evaluation, early stop and the best checkpoint; none: no evaluation."""
    replay: str | None = None
    """General texts (`data.columns.text`) that `objectives.retention` keeps the model's language on; read as `data.train` is, its other columns do not matter."""
    replay_dev: str | None = None
    """General texts whose perplexity is measured before training and at each evaluation; none: not measured."""
    columns: Columns = field(default_factory=Columns)
    """How your columns are called."""
    label_space: Literal["auto", "single", "multilabel", "ordinal"] = "auto"
    """What a row's label is: `single` (one class, or the votes of several annotators), `multilabel` (a list of classes, or an object with an answer for each), `ordinal` (one of ordered classes); auto: multilabel where labels are lists or objects that do not sum to 1, else single."""
    labels: list[str] | None = None
    """The classes in order (ordinal: from low to high), read as the rows' labels are (1.0 is the class 1); none: the sorted labels of the training rows."""
    positive_label: str | None = None
    """Binary: the class whose probability is reported, and F1's positive; none: the last of `labels`."""
    max_bad_fraction: ClosedUnitInterval = 0.01
    """End the run when more than this share of a file's rows is bad (they are quarantined and listed either way)."""
    sampling: Literal["proportional", "balanced"] = "proportional"
    """How often rows are visited: all alike, or so that every class is visited equally often (multi-label: by each row's rarest class). An epoch still has as many rows as the file."""
    stream_window: PositiveInt | None = None
    """For sets larger than the disk: shards that are fetched, shuffled and trained on together; none: all rows at hand."""
    max_prompt_length: PositiveInt = 768
    """Longest prompt in tokens; a longer one loses the middle of its text (never the question), counted."""
    max_explanation_length: PositiveInt = 256
    """Longest explanation in tokens; a row with a longer one is quarantined, since no explanation is cut."""

    def __post_init__(self) -> None:
        """Classes are named as in the rows, however they are written here."""
        if self.labels is not None:
            self.labels = [class_name(name) for name in self.labels]
        if self.positive_label is not None:
            self.positive_label = class_name(self.positive_label)

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        labels = self.labels
        if self.stream_window is not None and self.sampling == "balanced":
            yield "data.sampling is balanced with data.stream_window: the classes of rows not fetched yet are not known"
        if self.stream_window is not None and not labels:
            yield "data.stream_window needs data.labels: the classes cannot be read from rows not fetched yet"
        least = 1 if self.label_space == "multilabel" else 2
        if labels is not None and len(set(labels)) < max(least, len(labels)):
            yield f"data.labels is {labels}, expected {'one' if least == 1 else 'two'} or more different names"
        if "" in (labels or []):
            yield f"data.labels is {labels}, expected no empty name: a row without label has no class"
        if labels and self.positive_label and self.positive_label not in labels:
            yield f"data.positive_label is {self.positive_label!r}, expected one of data.labels {labels}"


@dataclass(kw_only=True)
class PromptSettings:
    """What stands around a row's text, in the model's chat template."""

    system: str | None = None
    """System message; none: whatever the chat template puts there itself."""
    question: str = "Classify the text above and explain your decision in one sentence."
    """The task, put after the text."""
    chat_template: str | None = None
    """Which chat template: the name of one of the tokenizer's, a .jinja file, or `plain` for none; none: the tokenizer's default."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the template, like `{date_string: 1 Jan 2026}`; `enable_thinking` and `thinking` are false unless set here."""


@dataclass(kw_only=True)
class CurriculumSettings:
    """In which order the training rows are visited: from simple to complex, in stages."""

    stages: list[Stage] = field(default_factory=list)
    """The stages in order; none: `train.epochs` over all rows, shuffled."""
    difficulty: dict[str, float] = field(default_factory=lambda: {"length": 1.0, "rarity": 1.0})
    """Scorers and their weights, joined by rank within each class: `clsgen data score --help` lists them."""
    difficulty_model: str | None = None
    """Backbone that scorers like `loss_explanation` ask; none: model.backbone."""
    order: Direction = "easy_first"
    """`easy_first`; `hard_first` and `random` (the same growing pool in no order) are controls to compare with."""

    def faults(self) -> Iterator[str]:
        """What is wrong with fields of this section taken together."""
        yield from stage_faults(self.stages)
        if not self.difficulty or min(self.difficulty.values()) <= 0:
            yield f"curriculum.difficulty is {self.difficulty}, expected scorers with weights above 0"
