"""DeepSpeed's operators in C++ that a run needs, compiled once per machine before anything waits for them.

A build that was killed leaves torch's own lock behind, on which every later build waits forever. So one process builds
at a time, under a lock of *ours*, which dies with it: whoever holds that knows that no build is running, and removes
torch's. The others come after, and find it done.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from clsgen_dist.engine.settings import OPTIMIZERS
from clsgen_dist.errors import SettingsError
from clsgen_dist.io.cache import cache_dir


def build_operators(optimizer: str, config: dict[str, Any]) -> None:
    """Compile what the optimizer and DeepSpeed's configuration need: two minutes each, once.

    Raises:
        SettingsError: the compiler or ninja is not installed.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder, CPUAdamBuilder
    from filelock import FileLock

    zero = config["zero_optimization"]
    devices = [zero.get(key, {}).get("device") for key in ("offload_param", "offload_optimizer")]
    needed = {f"optim.name={optimizer}": CPUAdamBuilder} if OPTIMIZERS[optimizer].runs_on_host else {}
    needed |= {"offloading to nvme": AsyncIOBuilder} if "nvme" in devices else {}
    if not needed:
        return
    beside_python = Path(sys.executable).parent  # where pip puts ninja, also when the environment is not activated
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{beside_python}"
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        raise SettingsError(
            f"{' and '.join(needed)}: {' and '.join(missing)} not found, and DeepSpeed compiles an operator at first "
            "use; install them (Debian: apt-get install g++ ninja-build), or do without (optim.name=adamw)"
        )
    folder = cache_dir() / "torch_extensions"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(folder))
    with FileLock(folder / "build.lock"):
        for stale in Path(os.environ["TORCH_EXTENSIONS_DIR"]).glob("**/lock"):
            stale.unlink()
        for builder in needed.values():
            builder().load(verbose=False)
