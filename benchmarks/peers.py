"""The baseline for benchmarks: padded batches, logits of all tokens, Hugging Face's Trainer.

Backbone, trainable parameters, rows and optimizer are the same as ours; only the computation of a step differs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clsgen_dist.data.pack import Sample


def padded(samples: Sequence[Sample], pad_token: int = 2) -> dict[str, torch.Tensor]:
    """Collate samples as a padding collator does: pad all to the longest."""
    lengths = [len(s.prompt) + len(s.explanation) for s in samples]
    ids = torch.full((len(samples), max(lengths)), pad_token)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        ids[row, :length] = torch.from_numpy(np.concatenate([sample.prompt, sample.explanation]).astype(np.int64))
        mask[row, :length] = 1
        labels[row, len(sample.prompt) : length] = ids[row, len(sample.prompt) : length]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "class_index": torch.tensor([r * max(lengths) + len(s.prompt) - 1 for r, s in enumerate(samples)]),
        "row_label": torch.tensor([s.label for s in samples]),
    }


class BaselineModel(torch.nn.Module):
    """A dual-head model that computes the logits of all tokens."""

    def __init__(self, dual: Any) -> None:
        super().__init__()
        self.lm, self.head = dual.lm, dual.classification_head

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any, class_index: Any, row_label: Any) -> Any:
        """The joint loss of a padded batch."""
        out = self.lm(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False)
        logits = out.logits[:, :-1].float()
        generation = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        pooled = out.hidden_states[-1].flatten(0, 1)[class_index]
        logits_SC = F.linear(pooled.float(), self.head.weight.float(), self.head.bias.float())
        classification = F.cross_entropy(logits_SC, row_label)
        return {"loss": generation + classification}


def trainer_step(dual: Any) -> Callable[[Sequence[dict[str, torch.Tensor]]], None]:
    """One optimizer step of Hugging Face's Trainer over the micro-batches given."""
    from transformers import Trainer, TrainingArguments

    model = BaselineModel(dual)
    folder = tempfile.mkdtemp()
    trainer = Trainer(
        model=model, args=TrainingArguments(folder, use_cpu=True, report_to=[], disable_tqdm=True, max_grad_norm=1.0)
    )
    trainer.create_optimizer()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(micro_batches: Sequence[dict[str, torch.Tensor]]) -> None:
        trainer.current_gradient_accumulation_steps = len(micro_batches)
        for inputs in micro_batches:
            trainer.training_step(model, inputs)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step
