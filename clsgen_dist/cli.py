"""The verbs of ``clsgen``. Each imports what it needs only when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

DEMO_RECIPE = "configs/demo.yaml"

_VERBS = {
    "train": "train a dual-head model (under deepspeed, torchrun or srun for several ranks)",
    "export": "a training checkpoint becomes a plain Hugging Face folder with its classification head",
    "calibrate": "fit threshold and recalibration of an exported model on held-out rows",
    "predict": "probability and explanation for rows or a single text",
    "evaluate": "measure an exported model on held-out rows",
    "demo": "train, export, calibrate and evaluate the embedded demo",
}


def main(argv: Sequence[str] | None = None) -> None:
    """``clsgen VERB …``; exits with 2 on bad input, 1 on a failed run."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, _VERBS))
        print("usage: clsgen VERB [options]   (clsgen VERB --help lists them)\n")
        print("\n".join(f"  {verb:{width}}  {what}" for verb, what in _VERBS.items()))
        return
    verb, rest = args[0], args[1:]
    if verb not in _VERBS:
        import difflib

        near = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(_VERBS)}"
        sys.exit(_complain(f"{verb!r} is no verb of clsgen{hint}"))
    globals()[f"{verb}_main"](rest)


def train_main(argv: Sequence[str] | None = None) -> None:
    """Settings, then :func:`clsgen_dist.engine.trainer.train`; without ``--config`` the demo recipe."""
    from clsgen_dist.config import parse_settings

    settings = parse_settings(None if argv is None else list(argv), default_config=DEMO_RECIPE)

    def run() -> None:
        from clsgen_dist.engine.trainer import train

        train(settings)

    _guarded(run)


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

        from clsgen_dist.infer import export as module

        module.export(
            Path(checkpoint), Path(output), max_shard_bytes=_bytes(max_shard_size), verify_logits=verify_logits
        )

    _run(export, argv)


def calibrate_main(argv: Sequence[str]) -> None:
    """``clsgen calibrate``."""
    from clsgen_dist.infer.commands import calibrate

    _run(calibrate, argv)


def predict_main(argv: Sequence[str]) -> None:
    """``clsgen predict``."""
    from clsgen_dist.infer.commands import predict

    _run(predict, argv)


def evaluate_main(argv: Sequence[str]) -> None:
    """``clsgen evaluate``."""
    from clsgen_dist.infer.commands import evaluate

    _run(evaluate, argv)


def demo_main(argv: Sequence[str]) -> None:
    """``clsgen demo``."""
    from clsgen_dist.demo import demo

    _run(demo, argv)


def _run(function: Callable[..., None], argv: Sequence[str]) -> None:
    """Parse ``argv`` by the function's signature and docstring, and call it."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=f"clsgen {function.__name__}", description=(function.__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_function_arguments(function, None, as_positional=False)
    arguments = parser.instantiate(parser.parse_args(list(argv)))
    _guarded(lambda: function(**vars(arguments)))


def _bytes(size: str) -> int:
    from clsgen_dist.errors import SettingsError

    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = size[:-2], size[-2:].upper()
    if unit not in units or not number.strip().isdigit():
        raise SettingsError(f"--max_shard_size is {size!r}, expected a number and a unit, like 5GB or 500MB")
    return int(number) * units[unit]


def _guarded(run: Callable[[], None]) -> None:
    """Run; what the user can mend becomes one clear line from rank 0 and status 2, Ctrl-C status 130."""
    warnings.filterwarnings("ignore", message=".*torch.utils._pytree.*|.*pkg_resources.*")
    from clsgen_dist.errors import UserError

    try:
        run()
    except UserError as error:
        sys.exit(_complain(str(error)) if os.environ.get("RANK", "0") == "0" else 2)
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2
