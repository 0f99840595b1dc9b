"""Whether the LM head is gathered or stays sharded under ZeRO-3, and where the sharded one's gradient goes.

What a rank receives and sends for the LM head in a micro-step, with e bytes an element, n supervised tokens and N
tokens over all ranks, besides the factor ``(ranks - 1) / ranks`` that both have:

    gathered    V·D·e in the forward, V·D·e in the backward; V·D·e gradients if it learns
    sharded     n·D·e states, n·D·4 gradients of states in fp32
                if the input embedding is the same weight: N/ranks·D·e rows looked up, and as much gradient if it learns

The sharded head wins while the ranks' supervised tokens are fewer than some two thirds of the vocabulary, so on one or
a few nodes: with every further rank its traffic grows, and the gathered head's does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from clsgen_dist.errors import SettingsError
from clsgen_dist.model.sharded_lm_head import cannot_shard, head_parameter, row_starts


@dataclass(frozen=True)
class HeadTraffic:
    """Bytes that a rank receives and sends for the LM head in a micro-step."""

    gathered: float
    sharded: float


def head_traffic(
    rows: int,
    width: int,
    *,
    tokens: float,
    supervised: float,
    ranks: int,
    learns: bool,
    tied: bool,
    element_size: int,
) -> HeadTraffic:
    """The model above.

    Args:
        rows: of the vocabulary.
        width: of the hidden states.
        tokens, supervised: of a micro-batch of one rank.
        ranks: that the weight is partitioned over.
        learns: whether the weight is trained.
        tied: whether it is the input embedding too.
        element_size: bytes of a weight.
    """
    share = (ranks - 1) / ranks
    gathered = rows * width * element_size * (3 if learns else 2)
    sharded = supervised * ranks * width * (element_size + 4)
    if tied:
        sharded += tokens * width * element_size * (2 if learns else 1)
    return HeadTraffic(share * gathered, share * sharded)


def cannot_stay_sharded(lm: Any, zero: dict[str, Any], ranks: int) -> str | None:
    """Why the LM head of a model cannot stay sharded under a DeepSpeed configuration; None if it can."""
    section, weight = zero["zero_optimization"], head_parameter(lm)
    vocabulary, width = getattr(weight, "ds_shape", weight.shape)
    starts = row_starts(vocabulary, width, ranks)
    if len(set(starts)) <= ranks:
        return f"its {starts[-1]} rows leave none to some of {ranks} ranks"
    if section.get("mics_shard_size", -1) > 0:
        return "mics_shard_size partitions weights over some of the ranks"
    if section.get("offload_param", {}).get("device") == "nvme":
        return "offload_param is nvme, where its partition is not in memory"
    if section.get("zero_quantized_nontrainable_weights"):
        return "zero_quantized_nontrainable_weights keeps its partition quantised"
    return cannot_shard(lm)


def stays_sharded(
    wanted: Literal["auto", "gathered", "sharded"], lm: Any, zero: dict[str, Any], traffic: HeadTraffic, ranks: int
) -> bool:
    """Whether the LM head stays sharded; SettingsError if it must and cannot.

    Args:
        wanted: ``objectives.lm_head``.
        lm: the causal LM, partitioned or on the meta device.
        zero: DeepSpeed's configuration.
        traffic: from :func:`head_traffic`.
        ranks: that the weight is partitioned over.
    """
    why_not = cannot_stay_sharded(lm, zero, ranks)
    if wanted == "sharded" and why_not:
        raise SettingsError(f"objectives.lm_head is sharded, but {why_not}; set it to gathered")
    if wanted == "auto":
        return ranks > 1 and why_not is None and traffic.sharded < traffic.gathered
    return wanted == "sharded"


def lm_head_gradient_sink(lm: Any, optimizer: Any) -> Callable[[Tensor], None]:
    """Puts a flat gradient of this rank's partition of the LM head where ZeRO-3's own reduction puts it.

    Accumulation, the norm, clipping, offloading and the check for infinity follow as for other weights
    (``stage3.py``, ``partition_grads``, DeepSpeed 0.19.8).
    """
    parameter = head_parameter(lm)

    def deposit(gradient_K: Tensor) -> None:
        optimizer.partition_grads([parameter], [gradient_K])

    return deposit
