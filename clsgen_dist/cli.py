"""``clsgen COMMAND …``: finds the command's module, parses, calls it, and turns what a user can fix into one line.

Each command is a module in :mod:`clsgen_dist.commands`, imported when it is asked for, so that ``--help`` is instant.
:mod:`clsgen_dist.errors` lists the exit statuses.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_RECIPE = "configs/recipe.yaml"


@dataclass(frozen=True)
class Command:
    """What a command's signature cannot say; its module in :mod:`clsgen_dist.commands` is called like it."""

    summary: str
    """Its line in ``clsgen --help``."""
    recipe: str | None = None
    """Recipe used where the command line names none, for a command that takes every setting."""
    files: str | None = None
    """The parameter that takes all bare words."""
    file_setting: str | None = None
    """The setting that one bare FILE is the value of; dev rows are then left out."""
    switches: tuple[str, ...] = ()
    """Parameters that are true when named, without a value."""
    verbatim: tuple[str, ...] = ()
    """Parameters that take text, in which ``null`` and ``[1]`` have no meaning."""
    repeated: tuple[str, ...] = ()
    """Parameters that take such a text, and may be named several times."""
    timestamps: bool = False
    """Whether its log lines begin with the time."""


COMMANDS = {
    "plan": Command(
        "what a recipe needs and costs on a cluster: memory, traffic, time, GPU-hours; does it fit", recipe=_RECIPE
    ),
    "dryrun": Command(
        "one rank of many at full size, without memory: wrapping, partitions, every collective, checkpoint",
        recipe=_RECIPE,
    ),
    "preflight": Command("look at the nodes of a job before it trains: chips, disks, speed, links (one task per GPU)"),
    "train": Command(
        "train a dual-head model (under deepspeed, torchrun or srun for several ranks)",
        recipe="configs/demo.yaml",
        timestamps=True,
    ),
    "export": Command("turn a training checkpoint into a plain Hugging Face folder with its classification head"),
    "calibrate": Command("fit recalibration and decisions of an exported model on held-out rows"),
    "predict": Command("probability and explanation for rows or a single text", verbatim=("text",)),
    "serve": Command("serve an exported model: web page, own API, OpenAI's chat and decisions"),
    "evaluate": Command("measure an exported model on held-out rows"),
    "data check": Command(
        "format, balance, lengths, duplicates, leakage and truncation of one file or several splits",
        files="files",
        switches=("strict",),
    ),
    "data gate": Command(
        "divide rows by their issues: kept, for a person to review, rejected; with reasons",
        recipe=_RECIPE,
        file_setting="data.train",
    ),
    "data split": Command(
        "one file to train, dev, calibration and test rows: stratified, by group or time, near copies together",
        files="files",
    ),
    "data explain": Command(
        "a language model, or a template, writes the explanations that rows lack, or paraphrases, within a budget",
        files="files",
        repeated=("template",),
    ),
    "data thin": Command("remove explanations that nearly repeat others of their class; all rows stay", files="files"),
    "data self-label": Command(
        "a calibrated model labels the rows it is sure of, for a round of self-training, if held-out rows agree",
        files="files",
    ),
    "data combine": Command(
        "votes of annotators or labelling functions become labels with probabilities", files="files"
    ),
    "data score": Command(
        "how hard each row is, by the recipe's scorers: distribution, extremes, plot",
        recipe=_RECIPE,
        file_setting="data.train",
    ),
    "data preview": Command(
        "which rows a run would visit when: stages, difficulty, classes, loss weights, tokens", recipe=_RECIPE
    ),
    "data review": Command(
        "people accept, mend, reject or relabel rows in a browser; what they decided, as rows to train on",
        files="files",
    ),
    "demo": Command("train, export, calibrate and evaluate the embedded demo"),
    "init": Command("copy recipes, DeepSpeed files and Slurm scripts into a folder, to change them there"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that ``argv`` (by default the process's) names."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].startswith("--local_rank="):  # `deepspeed --module` puts its own flag first
        words.append(words.pop(0))
    name, rest = _command(words)
    module = importlib.import_module(f"clsgen_dist.commands.{name.replace(' ', '_').replace('-', '_')}")
    _run(COMMANDS[name], module.run, f"clsgen {name}", rest)


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command's name and what follows it; prints the list of commands where none is asked for."""
    group = "data " if words[:1] == ["data"] else ""
    given = words[1:] if group else words
    known = {name.removeprefix(group): command for name, command in COMMANDS.items() if name.startswith(group)}
    if not given or given[0] in ("-h", "--help"):
        width = max(map(len, known))
        print(f"usage: clsgen {group}COMMAND [options]   (clsgen {group}COMMAND --help lists them)\n")
        print("\n".join(f"  {name:{width}}  {command.summary}" for name, command in known.items()))
        sys.exit(0)
    if given[0] not in known:
        near = difflib.get_close_matches(given[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        _exit_with_error(f"unknown command {group}{given[0]!r}; {hint}")
    return group + given[0], given[1:]


def _run(command: Command, function: Any, program: str, words: list[str]) -> None:
    """Parse and call. What the user can fix becomes one line and the error's status, Ctrl-C status 130."""
    from clsgen_dist.config import Settings, recipe_flags
    from clsgen_dist.errors import UserError
    from clsgen_dist.io.log import setup_logging
    from clsgen_dist.parser import call, command_parser

    try:
        if command.recipe:
            words = recipe_flags(_with_file(words, command.file_setting), command.recipe)
        parser = command_parser(
            function,
            program,
            settings=Settings,
            positional=command.files,
            one_file=command.file_setting is not None,
            switches=command.switches,
            verbatim=command.verbatim,
            repeated=command.repeated,
        )
        run = call(function, parser, words, settings=Settings)
        setup_logging(timestamps=command.timestamps)
        run()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or not error.on_all_ranks:
            print(f"{error.label}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except PermissionError as error:
        what = f"{error.filename} may not be read or written by this user" if error.filename else "not allowed"
        _exit_with_error(f"{what} ({error.strerror}); have its owner allow it, or name another")
    except KeyboardInterrupt:
        sys.exit(130)


def _with_file(words: list[str], setting: str | None) -> list[str]:
    """The words with a bare FILE, which is no flag's value, as the training rows."""
    if setting is None:
        return words
    valued = False
    for at, word in enumerate(words):
        if not word.startswith("-") and not valued:
            return [*words[:at], *words[at + 1 :], f"--{setting}={word}", "--data.dev=null"]
        valued = word.startswith("--") and "=" not in word and word != "--print_config"
    return words


def _exit_with_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
