"""Settings of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clsgen_dist.io.value_ranges import PositiveFloat, PositiveInt


@dataclass(kw_only=True)
class TrainSettings:
    """The loop."""

    batch_size: PositiveInt = 16
    """Rows per optimizer step over all ranks and micro-batches: the gradient does not depend on how they are spread."""
    micro_batch_tokens: PositiveInt = 4096
    """Most tokens one rank puts through the model at once; rows are packed into it end to end, without padding."""
    epochs: PositiveFloat = 1.0
    """Passes over the training rows; may be a fraction."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps even if epochs remain."""
    stop_at_stage: str | None = None
    """End, with a checkpoint, after the curriculum stage of this name; `resume: auto` continues with the next."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on an accelerator, fp32 on CPU."""
    activation_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    cache_frozen: Literal["off", "auto", "on"] = "off"
    """With `model.finetune: head` or `model.top_layers`: keep on the disk what the frozen layers give for each sequence, so that they are computed once and neither computed nor gathered in any step. auto: where it saves time, fits `cache_frozen_gb` and the same losses follow; on: refuse to train otherwise."""
    cache_frozen_gb: PositiveFloat = 50.0
    """Most gigabytes (10⁹ bytes) in output_dir/frozen_states for `cache_frozen`; they are deleted at the run's end."""
    interference_every: PositiveInt | None = None
    """Steps between measurements of how the two losses' gradients meet in the adapters, each a second pass; none: never."""
    eval_every: PositiveInt | None = None
    """Evaluate on the dev rows every this many steps, and after the last; none: after the last only."""
    early_stop_patience: PositiveInt | None = None
    """Stop after this many evaluations without a better `best_metric`; none: never."""
    best_metric: Literal[
        "auroc", "auroc_micro", "average_precision", "average_precision_micro", "f1", "f1_micro", "subset_accuracy",
        "quadratic_kappa", "mae", "ece", "nll", "loss",
    ] = "auroc"  # fmt: skip
    """What makes a checkpoint the best on the dev rows: a metric of the label space, the classification loss (nll), or the joint loss."""
    log_rows: bool = False
    """Write the ids of each step's rows to output_dir/rows.jsonl: what was visited when, for audits and comparisons."""
    collective_timeout_s: PositiveInt = 1800
    """A collective that waits longer than this ends the run: a dead rank is not waited for."""
