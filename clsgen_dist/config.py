"""Every setting, in one tree: YAML file, then ``--section.key=value`` from the command line.

Each package owns the class of its settings (``settings.py``); this module joins them, and refuses what cannot work across
sections. ``clsgen train --print_config`` prints the complete tree as it would be used. Nothing here imports torch: a wrong
setting is refused before any model or process group exists.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsgen_dist.checkpoint.settings import CheckpointSettings
from clsgen_dist.curation.settings import CurationSettings
from clsgen_dist.data.settings import CurriculumSettings, DataSettings, PromptSettings
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.engine.settings import OptimSettings
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.value_ranges import NonNegativeInt, dataclass_range_faults
from clsgen_dist.model.settings import ModelSettings
from clsgen_dist.objectives.settings import ObjectivesSettings
from clsgen_dist.resilience.settings import FaultSettings
from clsgen_dist.training.settings import TrainSettings

_PACKAGE = Path(__file__).resolve().parent
SHIPPED = _PACKAGE.parent if (_PACKAGE.parent / "ds_configs").is_dir() else _PACKAGE / "shipped"
"""Holds ``configs/``, ``ds_configs/`` and ``slurm/``: the checkout, or a folder of the installed package."""


@dataclass(kw_only=True)
class Settings:
    """A training run."""

    output_dir: str = "runs/default"
    """Everything the run writes: checkpoints, TensorBoard log, quarantine, settings."""
    resume: str = "never"
    """`never`, `auto` (the newest valid checkpoint in output_dir, if any), or a checkpoint's folder."""
    overwrite: bool = False
    """Delete what an earlier run left in output_dir, instead of refusing to start over it; with a `resume` folder: the checkpoints later than that."""
    seed: NonNegativeInt = 0
    """Seed of the order of rows, of new weights and of dropout."""
    deepspeed: str = "ds_configs/zero3.json"
    """DeepSpeed's JSON: the ZeRO-3 settings. Fields set to "auto" are filled in from this tree."""
    data: DataSettings
    prompt: PromptSettings = field(default_factory=PromptSettings)
    model: ModelSettings
    objectives: ObjectivesSettings = field(default_factory=ObjectivesSettings)
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    faults: FaultSettings = field(default_factory=FaultSettings)
    decoding: DecodingSettings = field(default_factory=DecodingSettings)
    curation: CurationSettings = field(default_factory=CurationSettings)

    def __post_init__(self) -> None:
        """Raise SettingsError with every fault found, field by field."""
        faults = dataclass_range_faults(self)
        if not faults:
            for section in (self.data, self.model, self.objectives, self.curriculum, self.decoding, self.curation):
                faults += section.faults()
            faults += _cross_faults(self)
        if faults:
            raise SettingsError("; ".join(faults))


def _term_faults(settings: Settings) -> Iterator[str]:
    """Terms of the loss without what they need."""
    objectives, data, train = settings.objectives, settings.data, settings.train
    stages = settings.curriculum.stages
    if objectives.consistency.weight and objectives.consistency.learns == "lm" and settings.model.finetune == "head":
        yield (
            f"objectives.consistency.weight is {objectives.consistency.weight} with learns=lm and model.finetune=head: the "
            "LM is frozen and learns nothing; set objectives.consistency.learns to head, or its weight to 0"
        )
    if objectives.evidence.weight and settings.model.finetune == "head":
        yield (
            f"objectives.evidence.weight is {objectives.evidence.weight} with model.finetune=head: attention is frozen and "
            "learns nothing; set model.finetune to lora, or the weight to 0"
        )
    preference = objectives.preference
    if preference.weight and preference.reference == "adapters_off" and settings.model.finetune != "lora":
        yield (
            f"objectives.preference.reference is adapters_off with model.finetune={settings.model.finetune}: there are no "
            "adapters to switch off; set the reference to start"
        )
    shorter = [stage.name for stage in stages if stage.max_prompt_length is not None]
    if preference.weight and preference.reference == "start" and (shorter or data.stream_window):
        what = f"max_prompt_length of the stages {shorter}" if shorter else "data.stream_window"
        yield (
            f"objectives.preference.reference is start with {what}: the explanations' log-probabilities before training "
            "are those of the whole prompts, of rows that are here; leave it out, or set the reference to adapters_off"
        )
    if objectives.retention.weight and data.replay is None:
        yield (
            f"objectives.retention.weight is {objectives.retention.weight}, but data.replay is not set: name a file of "
            "general texts there, or set the weight to 0"
        )
    if objectives.retention.weight and settings.model.finetune != "lora" and objectives.retention.method == "kl":
        yield (
            f"objectives.retention.method is kl with model.finetune={settings.model.finetune}: the untrained model is the "
            "backbone without its adapters; set model.finetune to lora, or the method to replay"
        )
    if train.interference_every and settings.model.finetune != "lora":
        yield (
            f"train.interference_every is {train.interference_every} with model.finetune={settings.model.finetune}: there are "
            "no adapters to measure; set model.finetune to lora, or leave it out"
        )
    if objectives.balance.method == "gradient_norm" and settings.model.finetune == "head":
        yield (
            "objectives.balance.method is gradient_norm with model.finetune=head: no gradient reaches the hidden states; "
            "use uncertainty or loss_ratio"
        )


def _cross_faults(settings: Settings) -> Iterator[str]:
    """What is wrong between sections."""
    train, data, stages = settings.train, settings.data, settings.curriculum.stages
    objectives = settings.objectives
    for stage in stages:
        if (stage.loss_schedule or objectives.schedule) == "constant" and (
            stage.generation_range or stage.classification_range
        ):
            yield (
                f"curriculum stage {stage.name!r}: loss ranges with the schedule constant, which does not move; set "
                "loss_schedule of the stage (or objectives.schedule) to linear, cosine or sigmoid"
            )
        if (stage.max_prompt_length or 0) > data.max_prompt_length:
            yield (
                f"curriculum stage {stage.name!r}: max_prompt_length is {stage.max_prompt_length}, more than "
                f"data.max_prompt_length {data.max_prompt_length}, which is what the exported model takes"
            )
    yield from _term_faults(settings)
    names = [stage.name for stage in stages]
    if train.stop_at_stage is not None and train.stop_at_stage not in names:
        yield f"train.stop_at_stage is {train.stop_at_stage!r}, expected one of the curriculum's stages {names}"
    difficulty_stages = [stage.name for stage in stages if stage.needs_difficulty]
    if data.stream_window is not None and difficulty_stages:
        yield (
            f"data.stream_window with the curriculum stages {difficulty_stages}, which choose rows by difficulty; it is not "
            "known for rows that are streamed: drop their difficulty, pacing, bands and replay"
        )
    if train.eval_every is not None and data.dev is None:
        yield f"train.eval_every is {train.eval_every} but data.dev is not set; name dev rows or drop it"
    if train.early_stop_patience is not None and (data.dev is None or train.eval_every is None):
        yield "train.early_stop_patience needs data.dev and train.eval_every: without them nothing is compared"


def resolve_path(path: str) -> Path:
    """``path`` from the working directory or, failing that, as one of ours; SettingsError if it is neither."""
    for candidate in (Path(path), SHIPPED / path):
        if candidate.is_file():
            return candidate
    places = " or ".join(dict.fromkeys([str(Path.cwd()), str(SHIPPED)]))
    raise SettingsError(f"{path!r} is not a file in {places}; check the path")


def load_settings(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a recipe.

    Args:
        recipe: a YAML file, from the working directory or one of ours, like ``configs/demo.yaml``.
        overrides: values by dotted name, like ``{"train.max_steps": 100}``.

    Raises:
        SettingsError: no such file, an unknown name, or values that cannot work.
    """
    import json

    flags = [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in (overrides or {}).items()
    ]
    return parse_settings(["--config", str(resolve_path(str(recipe))), *flags])


def parse_settings(argv: Sequence[str], *, default_config: str | None = None) -> Settings:
    """Settings from ``--config FILE`` and overrides; ``--help`` and ``--print_config`` print and exit.

    Args:
        argv: flags as on the command line.
        default_config: the recipe used where ``argv`` names none.

    Raises:
        SettingsError: no such file, an unknown name, or values that cannot work.
    """
    parser = _settings_parser("clsgen train")
    try:
        return _instantiate(parser, parser.parse_args(recipe_flags(argv, default_config)))
    except PermissionError as error:
        raise SettingsError(f"{error.filename} may not be read by this user ({error.strerror})") from error


def recipe_flags(argv: Sequence[str], default: str | None = None) -> list[str]:
    """The flags with the value of ``--config`` as a path of ours where it is none from here.

    ``default`` is the recipe used where the flags name none. SettingsError if there is no such file.
    """
    # Launchers put a flag of their own first.
    flags = [flag for flag in argv if not re.fullmatch(r"--local[_-]rank=\d+", flag)]
    if default and not any(flag == "--config" or flag.startswith("--config=") for flag in flags):
        flags = ["--config", default, *flags]
    found: list[str] = []
    for word, before in zip(flags, ["", *flags], strict=False):
        name, equals, value = word.partition("=") if word.startswith("--config=") else ("", "", word)
        if (equals or before == "--config") and not Path(value).exists():
            word = f"{name}{equals}{resolve_path(value)}"
        found.append(word)
    return found


def settings_from_yaml(text: str) -> Settings:
    """The tree that :func:`to_yaml` wrote, in this version or an earlier one; SettingsError where it does not fit."""
    import yaml

    parser = _settings_parser("settings")
    return _instantiate(parser, parser.parse_string(yaml.safe_dump(with_new_names(yaml.safe_load(text)))))


RENAMED = {
    "loss.generation_weight": "objectives.generation.weight",
    "loss.classification_weight": "objectives.classification.weight",
    "loss.generation_range": "objectives.generation.range",
    "loss.classification_range": "objectives.classification.range",
    "loss.schedule": "objectives.schedule",
    "loss.min_share": "objectives.min_share",
    "loss.impl": "objectives.impl",
}
"""Settings that checkpoints of an earlier version wrote under another name."""


def with_new_names(tree: dict[str, Any]) -> dict[str, Any]:
    """A settings tree of an earlier version with the names of this one."""
    tree = dict(tree)
    for old, new in RENAMED.items():
        section, name = old.split(".")
        if section not in tree or name not in tree[section]:
            continue
        tree[section] = dict(tree[section])
        *parents, leaf = new.split(".")
        inner = tree
        for parent in parents:
            inner[parent] = dict(inner.get(parent, {}))
            inner = inner[parent]
        inner[leaf] = tree[section].pop(name)
        if not tree[section]:
            del tree[section]
    return tree


def to_yaml(settings: Settings) -> str:
    """The tree as a recipe that ``--config`` reads back."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False)


def _settings_parser(program: str) -> Any:
    from clsgen_dist.parser import add_settings, new_parser

    parser = new_parser(program)
    add_settings(parser, Settings)
    return parser


def _instantiate(parser: Any, parsed: Any) -> Settings:
    parsed.pop("config", None)
    return Settings(**vars(parser.instantiate(parsed)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
