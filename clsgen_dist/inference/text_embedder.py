"""Embeddings of texts by a small model: mean of its last hidden states over a text's tokens, scaled to length 1.

Most sentence-embedding models were trained with that mean; those that read a start token instead, and those that want
a prefix such as "query: ", give worse embeddings here. Any model of transformers can be loaded; one that was only
trained to predict words embeds poorly. Cost: a forward pass of each text, padded to the longest of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clsgen_dist.errors import ModelError, first_line
from clsgen_dist.model.backbone import backbone_path

# N texts, T tokens, D dimensions

_BATCH = 32
_LONGEST = 512
"""Tokens that are read by a model of relative positions, which names no limit."""


class TextEmbedder:
    """An embedding model; called with texts, it returns their embeddings ``[N, D]`` in float32.

    Args:
        name: folder or hub id.
        device: torch device.

    Raises:
        ModelError: no model can be loaded from there.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoModel, AutoTokenizer

        path = backbone_path(name, "--embedding_model")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model: Any = AutoModel.from_pretrained(path, trust_remote_code=False, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"--embedding_model {name!r} cannot be loaded ({first_line(error)}); give a folder with a model and "
                "its tokenizer, or the name of one on the hub"
            ) from error
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token  # masked, so any token does
        self._model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(device).eval()
        positions = getattr(model.config, "max_position_embeddings", _LONGEST)
        self._longest = min(self._tokenizer.model_max_length, positions)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; longer ones than the model reads are cut."""
        batches = [list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return np.concatenate([self._embed(batch) for batch in batches])

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> np.ndarray:
        tokens = self._tokenizer(
            texts,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        ).to(self._model.device)
        hidden_NTD = self._model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])[0]
        mask_NT1 = tokens["attention_mask"][:, :, None].to(hidden_NTD.dtype)
        mean_ND = (hidden_NTD * mask_NT1).sum(dim=1) / mask_NT1.sum(dim=1)
        return F.normalize(mean_ND, dim=1).cpu().numpy()
