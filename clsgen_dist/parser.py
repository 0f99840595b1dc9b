"""The one parser: a command's options from its signature, the settings tree where it takes one, one-line errors.

Nothing here imports torch. Every error is one line on stderr with value, expectation and remedy, and exit status 2.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter, set_loader, set_parsing_settings

from clsgen_dist.data.curriculum.stages import Stage
from clsgen_dist.data.example import Columns
from clsgen_dist.errors import SettingsError
from clsgen_dist.io import value_ranges
from clsgen_dist.io.duplicate_keys import duplicate_key

_YAML = "yaml, names as written"
_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list"}
_ELSEWHERE = {
    "micro_batch_size": "train.micro_batch_tokens, a budget in tokens: rows are packed into it",
    "per_device_train_batch_size": "train.micro_batch_tokens, a budget in tokens: rows are packed into it",
    "gradient_accumulation_steps": "none: train.batch_size counts rows over all ranks, packing finds the micro-steps",
    "learning_rate": "optim.lr",
    "num_train_epochs": "train.epochs",
}
"""What users of other trainers call a setting."""


class Parser(ArgumentParser):
    """jsonargparse's parser, its errors in one line with the nearest name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        sys.stderr.write(f"error: {_one_line(message, [flag.removeprefix('--') for flag in flags])}\n")
        raise SystemExit(2)


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
    _note_ranges(parser, _hints_of_tree(settings))


def command_parser(
    command: Callable[..., None],
    program: str,
    *,
    settings: type,
    positional: str | None = None,
    one_file: bool = False,
    switches: Sequence[str] = (),
    verbatim: Sequence[str] = (),
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
    skip: set[str | int] = {"settings", *switches, *verbatim, *([positional] if positional else [])}
    parser.add_function_arguments(command, None, as_group=False, as_positional=False, skip=skip)
    if "settings" in inspect.signature(command).parameters:
        add_settings(parser, settings)
    _note_ranges(parser, _hints(command))
    parameters = inspect.signature(command).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.name not in ("settings", positional)]
    files = " [FILE ...]" if positional else " [FILE]" if one_file else ""
    parser.usage = f"%(prog)s{''.join(f' --{name} {name.upper()}' for name in required)}{files} [options]"
    return parser


def call(command: Callable[..., None], parser: Parser, argv: Sequence[str], *, settings: type) -> Callable[[], None]:
    """Parse ``argv``; the call of the command with it, or an error and exit."""
    arguments = vars(parser.instantiate(parser.parse_args(list(argv))))
    if "settings" in inspect.signature(command).parameters:
        arguments.pop("config")
        names = [field.name for field in dataclasses.fields(settings)]
        try:
            arguments["settings"] = settings(**{name: arguments.pop(name) for name in names})
        except SettingsError as error:
            parser.error(str(error))
    own = {f"--{name}": value for name, value in arguments.items()}
    if faults := value_ranges.range_faults({f"--{name}": kind for name, kind in _hints(command).items()}, own):
        parser.error("; ".join(faults))
    return lambda: command(**arguments)


def _hints(command: Callable[..., None]) -> dict[str, Any]:
    """The types of a command's parameters; of other types than numbers only the name matters here."""
    types = {**vars(value_ranges), "Settings": object, "Columns": object}
    return get_type_hints(command, localns=types, include_extras=True)


def _hints_of_tree(settings: Any, section: str = "") -> dict[str, Any]:
    """The types of all settings by dotted name."""
    hints: dict[str, Any] = {}
    for name, kind in get_type_hints(settings, include_extras=True).items():
        hints |= _hints_of_tree(kind, f"{section}{name}.") if dataclasses.is_dataclass(kind) else {section + name: kind}
    return hints


def _note_ranges(parser: Parser, hints: Mapping[str, Any]) -> None:
    """Have the help show the ranges, which the actions' own types do not keep."""
    actions: list[Any] = parser._actions
    for action in actions:
        if allowed := value_ranges.range_words(hints.get(action.dest)):
            action.allowed = allowed


# --- YAML ----------------------------------------------------------------------------------------------------------


def _load_yaml(text: str) -> Any:
    """YAML as the parser reads it, but that names of classes stay as they are written.

    There ``no`` is no truth value, ``010`` not eight and ``1.10`` not 1.1: a list of plain values (on the command
    line), and ``labels`` and ``positive_label`` in a recipe. Other settings read such strings as their type says.
    """
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
    kept = {
        first: [(tag, form) for tag, form in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": kept})


# --- errors in one line --------------------------------------------------------------------------------------------


def _one_line(message: str, names: Sequence[str]) -> str:
    """The parser's complaint in one line: the value, what was expected, the nearest of ``names``."""
    message = " ".join(message.split())
    if flag := re.search(r"[Uu]nrecognized arguments: --([\w.-]+)", message):
        return f"unknown option --{flag[1]}{_nearest(flag[1], names, '--')}"
    if option := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        wrong = f"{option[1]}.{option[2]}"
        return f"unknown setting {wrong}{_nearest(wrong, names)}"
    if option := re.search(r"Option '([\w.]+)' is not accepted", message):
        if set(_fields(Columns)) <= set(names):  # the parser of a group of options
            return f"unknown option --columns.{option[1]}{_nearest(option[1], _fields(Columns), '--columns.')}"
        known = [*_fields(Stage), *names] if "curriculum.stages" in message else names
        return f"unknown setting {option[1]}{_nearest(option[1], known)}"
    if re.search(r"data\.labels.*Got value: None", message):
        return f'{message}; null is no name in YAML: quote the class, like ["null", "yes"]'
    several = (
        r'Parser key "([\w.]+)": Does not validate .*? Errors: - (.*?)(?: - .*?)? Given value type: .*? Given value: '
    )
    message = re.sub(several + "(.*)", r'Parser key "\1": \2. Got value: \3', message)
    if wrong_type := re.search(r'Parser key "([\w.]+)": Expected a <class \'(\w+)\'>\.* Got value: (.*)', message):
        name, kind, value = wrong_type.groups()
        name = name if "." in name else f"--{name}"
        hint = "; write the classes as a list of names, like [no, yes]" if name == "data.labels" else ""
        return f"{name} is {value!r}, expected {_EXPECTED.get(kind, kind)}{hint}"
    if "expected one argument" in message:
        return f"{message}; write a value that begins with a dash as --NAME=VALUE"
    return message


def _nearest(wrong: str, names: Sequence[str], dashes: str = "") -> str:
    if known := _ELSEWHERE.get(wrong.split(".")[-1]):
        return f"; here it is {known}"
    sections = sorted({name.split(".")[0] for name in names})
    near = difflib.get_close_matches(wrong, [*names, *sections], n=1, cutoff=0.5)
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists what there is"


def _fields(of: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(of)]
