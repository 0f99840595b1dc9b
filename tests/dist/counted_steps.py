"""Counts, on a real rank, what each optimizer step calls and gathers; tests arm it in the ranks they start."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Gathered(TorchDispatchMode):
    """Bytes of the complete tensors of all-gathers."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and "allgather" in func._overloadpacket.__name__:
            complete = [t for t in torch.utils._pytree.tree_leaves(args[0]) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in complete)
        return func(*args, **(kwargs or {}))


def count_steps(path: str) -> None:
    """Append a line of JSON for every step to ``path.RANK``: micro-steps, bytes gathered, calls of each decoder layer."""
    from clsgen_dist.training import step

    take = step.TrainStep.__call__

    def counted(self: Any, number: int, share: Any, *rest: Any, **options: Any) -> Any:
        calls: Counter[str] = Counter()
        model = self._engine.module
        named = {name: m for name, m in model.named_modules() if name.rpartition(".")[0].endswith("layers")}
        named["embeddings"] = model.lm.get_input_embeddings()
        handles = [
            m.register_forward_hook(lambda *_, key=name.rpartition(".")[2]: calls.update([key])) for name, m in named.items()
        ]
        with _Gathered() as gathered:
            result = take(self, number, share, *rest, **options)
        for handle in handles:
            handle.remove()
        line = {"micro_steps": len(share.batches), "gathered": gathered.bytes, "calls": calls, "loss": result.total_loss,
                "known": options.get("known", False), "norm": result.grad_norm}  # fmt: skip
        with Path(f"{path}.{self._world.rank}").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return result

    step.TrainStep.__call__ = counted  # type: ignore[method-assign]
