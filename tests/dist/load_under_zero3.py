"""Run by test_loading.py on each rank: load a backbone under ZeRO-3 and watch what this rank holds."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations import HfDeepSpeedConfig

from clsgen_dist.engine.world import process_group
from clsgen_dist.engine.config import deepspeed_config
from clsgen_dist.model.backbone import load_backbone, open_backbone


def anonymous_mb() -> float:
    """Resident memory that no file backs: what the process really holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


class Watch(threading.Thread):
    """Samples the largest anonymous memory, and the most parameter elements this rank holds, while loading."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = self.start_mb = anonymous_mb()
        self.done = False

    def run(self) -> None:
        while not self.done:
            self.peak_mb = max(self.peak_mb, anonymous_mb())
            time.sleep(0.005)


def held_elements(model: torch.nn.Module) -> int:
    return sum(p.data.numel() + (p.ds_tensor.numel() if hasattr(p, "ds_tensor") else 0) for p in model.parameters())


def main() -> None:
    path, zero_file, out = sys.argv[-3:]  # the launcher puts --local_rank first
    with process_group(120) as world:
        config = deepspeed_config(
            Path(zero_file),
            batch_size=world.size,
            world_size=world.size,
            max_grad_norm=1.0,
            bf16=False,
            optimizer="adamw",
        )
        opened = open_backbone(path)
        alive = HfDeepSpeedConfig(config)
        # What imports and first uses allocate is not the model's.
        AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
        largest = 0
        original = torch.nn.Module._load_from_state_dict

        def counting(module, *args, **kwargs):
            nonlocal largest
            largest = max(largest, held_elements(roots[0]) if roots else 0)
            return original(module, *args, **kwargs)

        roots: list[torch.nn.Module] = []
        torch.nn.Module._load_from_state_dict = counting
        import transformers.modeling_utils as modeling

        load_into = modeling._load_state_dict_into_zero3_model

        def remember(model, *args, **kwargs):
            roots.append(model)
            return load_into(model, *args, **kwargs)

        modeling._load_state_dict_into_zero3_model = remember
        watch = Watch()
        watch.start()
        model = load_backbone(opened, dtype=torch.float32, attention="sdpa")
        watch.done = True
        watch.join()
        report: dict[str, float] = {
            "elements": sum(p.ds_numel for p in model.parameters()),
            "peak_elements": max(largest, held_elements(model)),
            "held_elements": held_elements(model),
            "grown_mb": watch.peak_mb - watch.start_mb,
        }
        Path(f"{out}.{world.rank}").write_text(json.dumps(report))
        del alive


if __name__ == "__main__":
    main()
