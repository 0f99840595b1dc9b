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
