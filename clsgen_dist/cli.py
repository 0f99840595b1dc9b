"""The verbs of ``clsgen``. Each imports what it needs only when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import argparse

    from clsgen_dist.config import Settings

DEMO_RECIPE = "configs/demo.yaml"

_VERBS = {
    "plan": "what a recipe needs and costs on a cluster: memory, traffic, time, GPU-hours; does it fit",
    "dryrun": "one rank of many at full size, without memory: wrapping, partitions, every collective, checkpoint",
    "preflight": "look at the nodes of a job before it trains: chips, disks, speed, links (one task per GPU)",
    "train": "train a dual-head model (under deepspeed, torchrun or srun for several ranks)",
    "export": "a training checkpoint becomes a plain Hugging Face folder with its classification head",
    "calibrate": "fit threshold and recalibration of an exported model on held-out rows",
    "predict": "probability and explanation for rows or a single text",
    "evaluate": "measure an exported model on held-out rows",
    "data": "look at rows before training: check, score, preview",
    "demo": "train, export, calibrate and evaluate the embedded demo",
    "init": "copy recipes, DeepSpeed files and Slurm scripts into a folder, to change them there",
}
_DATA_VERBS = {
    "check": "format, balance, lengths, duplicates, leakage and truncation of one file or several splits",
    "score": "how hard each row is, by the recipe's scorers: distribution, extremes, plot",
    "preview": "what a run would show when: stages, difficulty, classes, loss weights, tokens",
}


def main(argv: Sequence[str] | None = None) -> None:
    """``clsgen VERB …``; :mod:`clsgen_dist.errors` lists the exit statuses."""
    _dispatch("clsgen", _VERBS, sys.argv[1:] if argv is None else argv, "{}_main")


def _dispatch(program: str, verbs: dict[str, str], argv: Sequence[str], function: str) -> None:
    """List the verbs, or call the one that ``argv`` names with the rest of it."""
    # `deepspeed --module clsgen_dist train …` puts its own flag first.
    args = [a for a in argv if not a.startswith("--local_rank=")]
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, verbs))
        print(f"usage: {program} VERB [options]   ({program} VERB --help lists them)\n")
        print("\n".join(f"  {verb:{width}}  {what}" for verb, what in verbs.items()))
        return
    verb, rest = args[0], args[1:]
    if verb not in verbs:
        import difflib

        near = difflib.get_close_matches(verb, verbs, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(verbs)}"
        sys.exit(_complain(f"{verb!r} is no verb of {program}{hint}"))
    globals()[function.format(verb)](rest)


def train_main(argv: Sequence[str] | None = None) -> None:
    """Settings, then :func:`clsgen_dist.training.trainer.train`; without ``--config`` the demo recipe."""
    from clsgen_dist.config import parse_settings

    settings = parse_settings(None if argv is None else list(argv), default_config=DEMO_RECIPE)

    def run() -> None:
        from clsgen_dist.training.trainer import train

        train(settings)

    _guarded(run, timestamps=True)


def preflight_main(argv: Sequence[str]) -> None:
    """``clsgen preflight``."""
    from clsgen_dist.preflight.run import preflight

    _run(preflight, argv)


def export_main(argv: Sequence[str]) -> None:
    """``clsgen export``."""

    def export(checkpoint: str, output: str, max_shard_size: str = "5GB", verify_logits: bool = True) -> None:
        """Turn a training checkpoint into a plain Hugging Face folder with its classification head, and verify it.

        Args:
            checkpoint: A run's output_dir (its best checkpoint is taken) or a checkpoint's folder.
            output: Folder to write.
            max_shard_size: Largest weight file, like 5GB or 500MB.
            verify_logits: Reload the result and compare its logits with the trained model's (in memory, whole).
        """
        from pathlib import Path

        from clsgen_dist.hf_export import export as module

        module.export(
            Path(checkpoint), Path(output), max_shard_bytes=_bytes(max_shard_size), verify_logits=verify_logits
        )

    _run(export, argv)


def calibrate_main(argv: Sequence[str]) -> None:
    """``clsgen calibrate``."""
    from clsgen_dist.inference.commands import calibrate

    _run(calibrate, argv)


def predict_main(argv: Sequence[str]) -> None:
    """``clsgen predict``."""
    from clsgen_dist.inference.commands import predict

    _run(predict, argv, verbatim=("text",))


def evaluate_main(argv: Sequence[str]) -> None:
    """``clsgen evaluate``."""
    from clsgen_dist.inference.commands import evaluate

    _run(evaluate, argv)


def init_main(argv: Sequence[str]) -> None:
    """``clsgen init``."""

    def init(to: str = ".") -> None:
        """Copy configs/, ds_configs/ and slurm/ of this version into a folder; what is there already is left alone.

        Args:
            to: The folder; made if it is not there.
        """
        import shutil
        from pathlib import Path

        from clsgen_dist.config import SHIPPED

        for name in ("configs", "ds_configs", "slurm"):
            for source in sorted(p for p in (SHIPPED / name).rglob("*") if p.is_file() and p.suffix != ".pyc"):
                target = Path(to) / source.relative_to(SHIPPED)
                if target.exists():
                    print(f"left alone  {target}")
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
                print(f"copied      {target}")

    _run(init, argv)


def data_main(argv: Sequence[str]) -> None:
    """``clsgen data VERB …``."""
    _dispatch("clsgen data", _DATA_VERBS, argv, "data_{}_main")


def data_check_main(argv: Sequence[str]) -> None:
    """``clsgen data check``."""
    from clsgen_dist.commands.data_check import check

    _run(check, argv, program="clsgen data check", positional="files", switches=("strict",))


def data_score_main(argv: Sequence[str]) -> None:
    """``clsgen data score FILE``."""
    from clsgen_dist.commands.data_score import score

    own, settings = _own_and_settings(
        "data score", "Score the difficulty of rows, print and draw it.", argv, file=True,
        show=(int, 3, "easiest and hardest rows to print"), plot=(str, "difficulty.png", "image to write"),
    )  # fmt: skip
    if own.show < 0:
        sys.exit(_complain(f"--show is {own.show}, expected 0 or more"))
    _guarded(lambda: score(settings, show=own.show, plot=own.plot))


def data_preview_main(argv: Sequence[str]) -> None:
    """``clsgen data preview``."""
    from clsgen_dist.commands.data_preview import preview

    own, settings = _own_and_settings(
        "data preview", "Draw what a run would show when, before a step is taken.", argv, file=False,
        ranks=(int, 1, "ranks to pack for"), plot=(str, "preview.png", "image to write"),
        plan=(str, None, "JSON file to write for launch scripts: the stages with their steps, rows and tokens"),
    )  # fmt: skip
    if own.ranks < 1:
        sys.exit(_complain(f"--ranks is {own.ranks}, expected 1 or more"))
    _guarded(lambda: preview(settings, ranks=own.ranks, plot=own.plot, plan=own.plan))


def plan_main(argv: Sequence[str]) -> None:
    """``clsgen plan``."""
    own, settings = _own_and_settings(
        "plan", "Memory, traffic, time and cost of a recipe on a cluster, before a GPU is asked for.", argv, file=False,
        cluster=(str, "configs/clusters/h100.yaml", "what the nodes are made of"),
        nodes=(int, 1, "number of nodes"),
        gpus_per_node=(int, None, "GPUs used on each node; none: all of them"),
        rows=(int, None, "training rows, instead of reading data.train"),
        tokens_per_row=(int, None, "tokens of a row, explanation included"),
        supervised_per_row=(int, None, "tokens of a row's explanation"),
        search=(_truth, False, "true: also look for the cheapest micro-batch, checkpointing, offloading, node count"),
        json=(str, None, "file to write the plan to"),
        plot=(str, None, "image to write: memory by part, goodput against the interval between checkpoints"),
    )  # fmt: skip
    for name in ("nodes", "gpus_per_node", "rows", "tokens_per_row"):
        if getattr(own, name) is not None and getattr(own, name) < 1:
            sys.exit(_complain(f"--{name} is {getattr(own, name)}, expected 1 or more"))

    def run() -> None:
        from clsgen_dist.plan import commands as command
        from clsgen_dist.plan.plan import Stated

        command.run(
            settings,
            cluster=own.cluster,
            nodes=own.nodes,
            gpus_per_node=own.gpus_per_node,
            stated=Stated(rows=own.rows, tokens_per_row=own.tokens_per_row, supervised_per_row=own.supervised_per_row),
            searching=own.search,
            json_file=own.json,
            plot=own.plot,
        )

    _guarded(run)


def dryrun_main(argv: Sequence[str]) -> None:
    """``clsgen dryrun``."""
    own, settings = _own_and_settings(
        "dryrun", "What one rank of many does at full size, by the code that trains, without memory.", argv, file=False,
        ranks=(int, 64, "how many ranks"),
        micro_steps=(int, 2, "micro-steps of the optimizer step that is shown"),
        json=(str, None, "file to write every collective and partition to"),
    )  # fmt: skip
    for name in ("ranks", "micro_steps"):
        if getattr(own, name) < 1:
            sys.exit(_complain(f"--{name} is {getattr(own, name)}, expected 1 or more"))

    def run() -> None:
        from clsgen_dist.plan import commands as command

        command.run_dry(settings, ranks=own.ranks, micro_steps=own.micro_steps, json_file=own.json)

    _guarded(run)


def _truth(text: str) -> bool:
    import argparse

    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"is {text!r}, expected true or false")
    return text == "true"


def _whole(text: str) -> int:
    import argparse

    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a whole number") from None


def _own_and_settings(
    verb: str,
    description: str,
    argv: Sequence[str],
    *,
    file: bool,
    **options: tuple[Callable[[str], object], object, str],
) -> tuple[argparse.Namespace, Settings]:
    """A verb's own options, and the settings tree from every other argument; FILE stands for ``data.train``."""
    import argparse

    from clsgen_dist.config import parse_settings

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            sys.exit(
                _complain(f"{message.removeprefix('argument ').replace(': ', ' ', 1)}; --help lists what there is")
            )

    parser = Parser(
        prog=f"clsgen {verb}",
        description=f"{description} Every setting may follow, as for `clsgen train`.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="RECIPE", help="YAML recipe; the settings after it override it")
    if file:
        parser.add_argument("file", metavar="FILE", help="training rows, in any format that data.train takes")
    for name, (kind, default, text) in options.items():
        parser.add_argument(
            f"--{name}", type=_whole if kind is int else kind, default=default, help=f"{text} (default: %(default)s)"
        )
    mine, theirs = _split(argv, {f"--{name}" for name in (*options, "config")})
    own = parser.parse_args(mine)
    recipe = ["--config", _found(own.config)] if own.config else []
    given = ["--data.train", own.file, "--data.dev", "null"] if file else []
    return own, parse_settings([*recipe, *theirs, *given], default_config="configs/recipe.yaml", also=tuple(options))


def _found(recipe: str) -> str:
    """A recipe's path, from here or from the checkout; ends the command where there is none."""
    from clsgen_dist.config import resolve_path
    from clsgen_dist.errors import SettingsError

    try:
        return str(resolve_path(recipe))
    except SettingsError as error:
        sys.exit(_complain(str(error)))


def _split(argv: Sequence[str], own: set[str]) -> tuple[list[str], list[str]]:
    """A verb's own flags and bare words, and the settings, each with its value."""
    mine: list[str] = []
    theirs: list[str] = []
    waiting: list[str] | None = None  # whose flag the next word may be the value of
    for word in argv:
        if word.startswith("--") or word == "-h":
            name = word.split("=")[0]
            bucket = mine if name in own or name in ("-h", "--help") else theirs
            waiting = None if "=" in word or name in ("-h", "--help", "--print_config") else bucket
        else:
            bucket, waiting = waiting if waiting is not None else mine, None
        bucket.append(word)
    return mine, theirs


def demo_main(argv: Sequence[str]) -> None:
    """``clsgen demo``."""
    from clsgen_dist.commands.demo import demo

    _run(demo, argv)


def _run(
    function: Callable[..., None],
    argv: Sequence[str],
    program: str | None = None,
    positional: str | None = None,
    switches: Sequence[str] = (),
    verbatim: Sequence[str] = (),
) -> None:
    """Parse ``argv`` by the function's signature and docstring, and call it.

    ``positional`` is the parameter that takes all bare words; ``switches`` are those that are true when named;
    ``verbatim`` are texts, in which ``null`` and ``[1]`` have no meaning.
    """
    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            sys.exit(_complain(_refusal(message, [o for a in self._actions for o in a.option_strings])))

    parser = Parser(
        prog=program or f"clsgen {function.__name__}",
        description=(function.__doc__ or "").split("\n\n")[0],
        allow_abbrev=False,
    )
    told = {p.arg_name: p.description for p in parse(function.__doc__ or "").params}
    if positional:
        parser.add_argument(positional, nargs="*", type=str, metavar="FILE", help=told[positional])
    for switch in switches:
        parser.add_argument(f"--{switch}", action="store_true", help=told[switch])
    for name in verbatim:
        parser.add_argument(f"--{name}", type=str, help=told[name])
    skip: set[str | int] = {*switches, *verbatim, *([positional] if positional else [])}
    parser.add_function_arguments(function, None, as_positional=False, skip=skip)
    arguments = parser.instantiate(parser.parse_args(list(argv)))
    _guarded(lambda: function(**vars(arguments)))


def _refusal(message: str, options: list[str]) -> str:
    """The parser's complaint in one line, with the nearest option where it is about one."""
    import difflib
    import re
    from dataclasses import fields

    from clsgen_dist.data.example import Columns

    if flag := re.search(r"[Uu]nrecognized arguments: (\S+)", message):
        wrong = flag[1].split("=")[0]
    elif option := re.search(r"Option '([\w.]+)' is not accepted", message):  # the only group of options
        wrong, options = f"--columns.{option[1]}", [f"--columns.{column.name}" for column in fields(Columns)]
    else:
        hint = "; write a value that begins with a dash as --NAME=VALUE" if "expected one argument" in message else ""
        return " ".join(message.split()) + hint
    near = difflib.get_close_matches(wrong, options, n=1)
    return f"{wrong} is no option; " + (f"did you mean {near[0]}?" if near else "--help lists them")


def _bytes(size: str) -> int:
    from clsgen_dist.errors import SettingsError

    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = size[:-2], size[-2:].upper()
    if unit not in units or not number.strip().isdigit():
        raise SettingsError(f"--max_shard_size is {size!r}, expected a number and a unit, like 5GB or 500MB")
    return int(number) * units[unit]


def _guarded(run: Callable[[], None], *, timestamps: bool = False) -> None:
    """Run; what the user can fix becomes one clear line and the error's status, Ctrl-C status 130."""
    from clsgen_dist.errors import UserError
    from clsgen_dist.io.log import setup_logging

    setup_logging(timestamps=timestamps)
    try:
        run()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0" or not error.on_all_ranks:
            print(f"{error.label}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except PermissionError as error:
        what = (
            f"{error.filename} may not be read or written by this user"
            if error.filename
            else "something is not allowed"
        )
        sys.exit(_complain(f"{what} ({error.strerror}); have its owner allow it, or name another"))
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2
