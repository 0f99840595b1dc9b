"""Whether an exported folder is the model that was trained: shapes, and the losses of a fixed text.

The folder is reloaded as anyone would, and what it says of the text is compared with what the training engine said of
it at the checkpoint. Where they differ, what tells why is kept: whether the files hold what a second merge gives,
whether the loaded model holds what the files do, and whether it says the same twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from clsgen_dist.errors import ModelError
from clsgen_dist.hf_export.artifact import ModelCard, read_head
from clsgen_dist.hf_export.merge import Merge
from clsgen_dist.model.backbone import Backbone, open_backbone
from clsgen_dist.model.weight_files import WeightFiles

_TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of a probe's losses, relative to 1 nat: rounding of merged weights in that dtype."""


class LogitsDifferError(ModelError):
    """The exported model does not compute what the trained one did."""


def verify_shapes(folder: Path) -> None:
    """Every parameter of the architecture is in the files with its shape; ModelError otherwise."""
    try:
        open_backbone(str(folder))
    except ModelError as error:
        raise ModelError(f"the export's tensors do not fit its architecture: {error}") from error


def verify_canary(folder: Path, probe: dict[str, Any], say: Callable[[str], None]) -> None:
    """Reload as anyone would, and compare the probe's losses and class logits with the training engine's.

    Raises:
        LogitsDifferError: they differ by more than rounding.
    """
    lm = _load(folder)
    difference = _difference(lm, folder, probe)
    tolerance = max(_TOLERANCE.get(dtype, 5e-2) for dtype in (lm.dtype, getattr(torch, probe["dtype"])))
    if not difference <= tolerance:
        raise LogitsDifferError(
            f"the export's logits differ from the trained model's by {difference:.2e}, at most {tolerance:.0e} was "
            f"expected in {lm.dtype}; the architecture may scale or cap its logits, or a merge went wrong"
        )
    say(f"verified by reloading: shapes, head fingerprint, logits (largest difference {difference:.1e})")


def write_evidence(
    path: Path, folder: Path, base: Backbone, merge: Merge, probe: dict[str, Any], error: LogitsDifferError
) -> None:
    """Keep, as JSON, what tells why an export's logits differed; ``folder`` is the export that did."""
    written = WeightFiles(folder)
    unlike_second_merge = [
        name
        for group in merge.groups()
        for name, tensor in merge.tensors(group).items()
        if not torch.equal(tensor, written.read([name])[name])
    ]
    lm = _load(folder)
    loaded = lm.state_dict()
    exported = open_backbone(str(folder)).weights
    assert exported is not None
    unlike_files = [
        name
        for group in exported.groups
        for name, tensor in exported.to_parameters(group, written.read(group.names)).items()
        if not torch.equal(loaded[name], tensor.to(loaded[name].dtype))
    ]
    threads = torch.get_num_threads()
    again = [_difference(lm, folder, probe) for _ in range(2)]
    torch.set_num_threads(1)
    try:
        one_thread = _difference(lm, folder, probe)
    finally:
        torch.set_num_threads(threads)
    found = {
        "error": str(error),
        "written_unlike_second_merge": unlike_second_merge,
        "loaded_unlike_written": unlike_files,
        "difference_when_loaded_again": again,
        "difference_with_one_thread": one_thread,
        "threads": threads,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
        "backbone": base.path,
    }
    path.write_text(json.dumps(found, indent=2) + "\n")


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    # Not the base's, which might be one that transformers refuses: nothing is generated here.
    return AutoModelForCausalLM.from_pretrained(folder, generation_config=GenerationConfig()).eval()


@torch.no_grad()
def _difference(lm: Any, folder: Path, probe: dict[str, Any]) -> float:
    """Largest difference of the probe's token losses and class logits, in nats."""
    weight_CD, bias_C = read_head(folder, ModelCard.read(folder))
    last = len(probe["prompt"]) - 1
    inputs = {"input_ids": torch.tensor([probe["prompt"] + probe["explanation"]]), "use_cache": False}
    states_STD = lm.base_model(**inputs).last_hidden_state
    logits_STV = lm(**inputs).logits
    losses = F.cross_entropy(logits_STV[0, last:-1].float(), torch.tensor(probe["explanation"]), reduction="none")
    class_logits = F.linear(states_STD[0, last].float(), weight_CD, bias_C)
    return max(
        (torch.tensor(probe["token_losses"]) - losses).abs().max().item(),
        (torch.tensor(probe["class_logits"]) - class_logits).abs().max().item(),
    )
