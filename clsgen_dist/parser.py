"""The one parser: a command's options from its signature, the settings tree where it takes one, one-line errors.

Nothing here imports torch. Every error is a SettingsError of one line with value, expectation and remedy. jsonargparse
gives its errors as sentences, which are not read: what it refuses is looked up again in the known names and types.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_loader, set_parsing_settings

from clsgen_dist.data.example import Columns
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import SettingsError
from clsgen_dist.inference.settings import JudgeSettings
from clsgen_dist.io import value_ranges
from clsgen_dist.io.duplicate_keys import duplicate_key

_YAML = "yaml, names as written"
_TYPES_OF_COMMANDS = {
    **vars(value_ranges),
    "Settings": object,
    "Columns": Columns,
    "JudgeSettings": JudgeSettings,
    "DecodingSettings": DecodingSettings,
}
"""What annotations of commands name; the modules import it for type checkers only."""
_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    tuple: "a list",
}
_LABELS_REMEDY = (
    "; write the classes as a list of names, like [no, yes], and where one is no name in YAML quote the class, like "
    '["null", "yes"]'
)
_OTHER_NAMES = {
    "micro_batch_size": "train.micro_batch_tokens, a budget in tokens: rows are packed into it",
    "per_device_train_batch_size": "train.micro_batch_tokens, a budget in tokens: rows are packed into it",
    "gradient_accumulation_steps": "none: train.batch_size counts rows over all ranks, packing finds the micro-steps",
    "learning_rate": "optim.lr",
    "num_train_epochs": "train.epochs",
    "loss": "objectives: loss.generation_weight is objectives.generation.weight, and so on",
}
_DASHED = re.compile(r"-(?!\d+$|\d*\.\d+$)\S*$")
"""What argparse takes for a flag, and not for the value of the flag before it, as it does numbers and sentences."""


class Parser(ArgumentParser):
    """jsonargparse's parser, which raises its errors as SettingsError: one line with the nearest name."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.args: list[str] = []
        self.kinds: dict[str, Any] = {}
        """The types of settings and a command's options by dotted name, sections included."""
        self.settings: type | None = None
        """The settings tree, where the command takes one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise SettingsError with what is wrong: as found here, else in the parser's words."""
        if not self.exit_on_error:  # a parser that jsonargparse builds for a value, to try it
            super().error(message, ex)
        raise SettingsError(self._fault() or " ".join(message.split())) from ex

    def _fault(self) -> str | None:
        """What is wrong with the words that could not be parsed."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        names = [*(flag.removeprefix("--") for flag in flags), *self.kinds]
        for word, following in pairwise([*self.args, ""]):
            flag, equals, value = word.partition("=")
            if not flag.startswith("--") or " " in flag:
                continue
            name = flag.removeprefix("--")
            kind = self._kind_of(name)
            if kind is None and flag not in flags:
                return f"unknown option {flag}{_nearest(name, names, '--')}"
            if kind is None:
                continue
            value = value if equals else following
            if not equals and (not value or value.partition("=")[0] in flags or _DASHED.match(value)):
                return f"{flag} has no value; write a value that begins with a dash as --NAME=VALUE"
            if fault := self._fault_of_recipe(value) if name == "config" else _fault(name, kind, value, names):
                return fault
        return None

    def _kind_of(self, name: str) -> Any:
        """The type of a setting, or of a key of a dictionary like ``curriculum.difficulty.length``; None if unknown."""
        if name in self.kinds:
            return self.kinds[name]
        dictionaries = [kind for known, kind in self.kinds.items() if name.startswith(f"{known}.")]
        values = [get_args(a)[1] for kind in dictionaries for a in _alternatives(kind) if get_origin(a) is dict]
        return next(iter(values), None)

    def _fault_of_recipe(self, path: str) -> str | None:
        try:
            tree = _load_yaml(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):  # the parser's message says so
            return None
        return _fault("", self.settings, tree, list(self.kinds)) if isinstance(tree, dict) else None


class _HelpFormatter(DefaultHelpFormatter):
    """Help that shows the range of a number after its type."""

    def _get_type_str(self, action: Any) -> str | None:
        kind = super()._get_type_str(action)
        allowed = getattr(action, "allowed", None)
        return f"{kind}, {allowed}" if allowed else kind


def new_parser(program: str, description: str = "") -> Parser:
    """A parser without any option yet."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader(_YAML, _load_yaml, (yaml.YAMLError,))
    return Parser(
        prog=program, description=description, allow_abbrev=False, parser_mode=_YAML, formatter_class=_HelpFormatter
    )


def add_settings(parser: Parser, settings: type) -> None:
    """The settings tree as flags ``--section.key``, and ``--config`` for a recipe."""
    parser.add_argument("--config", action=ActionConfigFile, help="YAML recipe; the flags after it override it")
    parser.add_class_arguments(settings, None)
    parser.kinds |= {"config": str, **_kinds(settings)}
    parser.settings = settings
    _note_ranges(parser)


def command_parser(
    command: Callable[..., None],
    program: str,
    *,
    settings: type,
    positional: str | None = None,
    one_file: bool = False,
    switches: Sequence[str] = (),
    verbatim: Sequence[str] = (),
    repeated: Sequence[str] = (),
) -> Parser:
    """The parser of a command, from its signature and docstring.

    Args:
        command: its parameter ``settings``, if it has one, becomes the settings tree.
        program: what the user typed, like ``clsgen plan``.
        settings: the class of the settings tree.
        positional: the parameter that takes all bare words.
        one_file: whether the caller has taken a bare FILE out of the words, for the usage.
        switches: parameters that are true when named, without a value.
        verbatim: parameters that take text, in which ``null`` and ``[1]`` have no meaning.
        repeated: parameters that take such a text, and may be named several times.
    """
    from docstring_parser import parse

    parser = new_parser(program, (command.__doc__ or "").split("\n\n")[0])
    described = {p.arg_name: p.description for p in parse(command.__doc__ or "").params}
    if positional:
        words = parser.add_argument(positional, nargs="*", type=str, metavar="FILE", help=described[positional])
        words.required = False  # argparse calls it required as it has no default
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=described[name])
    for name in verbatim:
        parser.add_argument(f"--{name}", type=str, help=described[name])
    for name in repeated:
        parser.add_argument(f"--{name}", action="append", type=str, help=described[name])
    skip: set[str | int] = {"settings", *switches, *verbatim, *repeated, *([positional] if positional else [])}
    parser.add_function_arguments(command, None, as_group=False, as_positional=False, skip=skip)
    parser.kinds |= {name: kind for name, kind in _kinds(command).items() if name not in ("settings", "return")}
    parser.kinds |= dict.fromkeys(repeated, str)
    if "settings" in inspect.signature(command).parameters:
        add_settings(parser, settings)
    _note_ranges(parser)
    parameters = inspect.signature(command).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.name not in ("settings", positional)]
    files = " [FILE ...]" if positional else " [FILE]" if one_file else ""
    parser.usage = f"%(prog)s{''.join(f' --{name} {name.upper()}' for name in required)}{files} [options]"
    return parser


def call(command: Callable[..., None], parser: Parser, argv: Sequence[str], *, settings: type) -> Callable[[], None]:
    """Parse ``argv``; the call of the command with it. SettingsError for whatever does not fit."""
    arguments = vars(parser.instantiate(parser.parse_args(list(argv))))
    if "settings" in inspect.signature(command).parameters:
        arguments.pop("config")
        names = [field.name for field in dataclasses.fields(settings)]
        arguments["settings"] = settings(**{name: arguments.pop(name) for name in names})
    own = {name: value for name, value in arguments.items() if name != "settings"}
    if faults := value_ranges.range_faults(
        {f"--{name}": parser.kinds[name] for name in own}, {f"--{name}": value for name, value in own.items()}
    ):
        raise SettingsError("; ".join(faults))
    return lambda: command(**arguments)


def _note_ranges(parser: Parser) -> None:
    """Have the help show the ranges, which the actions' own types do not keep."""
    actions: list[Any] = parser._actions
    for action in actions:
        if allowed := value_ranges.range_words(parser.kinds.get(action.dest)):
            action.allowed = allowed


# --- YAML ----------------------------------------------------------------------------------------------------------


def _load_yaml(text: str) -> Any:
    """YAML as the parser reads it, but that names of classes stay as they are written.

    There ``no`` is no truth value, ``010`` not eight and ``1.10`` not 1.1: a list of plain values (on the command
    line), and ``labels`` and ``positive_label`` in a recipe. Nor is ``off`` one in ``curation.severity`` and
    ``train.cache_frozen``. Other settings read such strings as their type says.
    """
    from jsonargparse import get_loader

    value = get_loader("yaml")(text)
    if not isinstance(value, (dict, list)):
        return value
    if twice := duplicate_key(text):
        raise yaml.YAMLError(twice)
    written = yaml.load(text, Loader=_as_written_loader())
    value = _with_written_keys(value, written)
    if isinstance(value, list):
        return value if any(isinstance(item, (dict, list)) for item in value) else written
    for typed, plain in ((value, written), (value.get("data"), written.get("data"))):
        if isinstance(typed, dict):
            typed.update({name: plain[name] for name in ("labels", "positive_label") if name in typed})
    for section, name in (("curation", "severity"), ("train", "cache_frozen")):
        if isinstance(typed := value.get(section), dict) and name in typed:
            typed[name] = written[section][name]
    return value


def _with_written_keys(value: Any, written: Any) -> Any:
    """The value with the keys of its mappings as they are written: they are names, like those of classes."""
    if isinstance(value, dict):
        pairs = zip(value.values(), written.items(), strict=True)
        return {str(key): _with_written_keys(item, plain) for item, (key, plain) in pairs}
    if isinstance(value, list):
        return [_with_written_keys(item, plain) for item, plain in zip(value, written, strict=True)]
    return value


@functools.cache
def _as_written_loader() -> Any:
    kept = {
        first: [(tag, form) for tag, form in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": kept})


# --- what is wrong, from the known names and types -----------------------------------------------------------------


def _kinds(of: Any, prefix: str = "") -> dict[str, Any]:
    """The types of a dataclass's or function's parameters, and of nested dataclasses' fields, by dotted name."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(of, localns=_TYPES_OF_COMMANDS, include_extras=True).items():
        found[prefix + name] = kind
        for section in filter(dataclasses.is_dataclass, _alternatives(kind)):
            found |= _kinds(section, f"{prefix}{name}.")
    return found


def _fault(name: str, kind: Any, value: Any, known: Sequence[str]) -> str | None:
    """The first unknown name or wrong type in a value, and the remedy.

    Args:
        name: the setting's dotted name; empty for the complete tree.
        kind: its type.
        value: as YAML or the command line has it.
        known: names to suggest.
    """
    alternatives = _alternatives(kind)
    if isinstance(value, str) and not any(_fits(alternative, value) for alternative in alternatives):
        with contextlib.suppress(yaml.YAMLError):
            value = _load_yaml(value)
    if not any(_fits(alternative, value) for alternative in alternatives):
        expected = " or ".join(_expected(a) for a in alternatives if a is not type(None))
        remedy = _LABELS_REMEDY if name.startswith("data.labels") else ""
        return f"{name if '.' in name else '--' + name} is {value!r}, expected {expected}{remedy}"
    section = next(filter(dataclasses.is_dataclass, alternatives), None)
    if isinstance(value, dict) and section:
        kinds = get_type_hints(section, include_extras=True)
        for key in value:
            path = f"{name}.{key}".lstrip(".")
            if key not in kinds:
                nearest = _nearest(path, known) if name in ("", *known) else _nearest(str(key), list(kinds))
                return f"unknown setting {path}{nearest}"
        inner = [(f"{name}.{key}".lstrip("."), kinds[key], item) for key, item in value.items()]
    elif isinstance(value, (list, tuple, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        item_kinds = value_ranges.item_kinds(kind, len(value))
        inner = [
            (f"{name}.{key}", of, item) for (key, item), of in zip(items, item_kinds, strict=False) if of is not None
        ]
    else:
        return None
    return next(filter(None, (_fault(*parts, known) for parts in inner)), None)


def _alternatives(kind: Any) -> list[Any]:
    """The members of a union, without their ranges."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [inner for member in get_args(kind) for inner in _alternatives(member)]
    return [kind]


def _fits(kind: Any, value: Any) -> bool:
    base = get_origin(kind) or kind
    if base is Literal:
        return value in get_args(kind)
    if isinstance(value, bool):
        return base in (bool, Any)
    if dataclasses.is_dataclass(base):
        return isinstance(value, dict)
    wider: dict[Any, Any] = {float: (int, float), tuple: (list, tuple), Any: object}
    return isinstance(value, wider.get(base, base))


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        choices = ", ".join(map(repr, get_args(kind)))
        return f"one of {choices}" if "," in choices else choices
    return _EXPECTED.get(get_origin(kind) or kind, "a mapping")


def _nearest(wrong: str, names: Sequence[str], dashes: str = "") -> str:
    if known := _OTHER_NAMES.get(wrong.split(".")[-1]):
        return f"; here it is {known}"
    sections = sorted({name.split(".")[0] for name in names})
    near = difflib.get_close_matches(wrong, [*names, *sections], n=1, cutoff=0.5)
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists what there is"
