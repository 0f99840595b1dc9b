"""A KV cache with room for the tokens to come: each is written in place; transformers' own copies all before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

# R rows, H key-value heads, T tokens, E head size

_ROOM = 64
"""Tokens that a layer makes room for at a time."""


class RoomyLayer(DynamicLayer):
    """A plain layer ``[R, H, T, E]`` whose keys and values are the beginning of larger tensors."""

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        assert layer.keys is not None and layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self._rooms = [layer.keys, layer.values]
        self.keys, self.values = self._rooms

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens; all keys and values."""
        keys = self._appended(0, self.keys, key_states)
        values = self._appended(1, self.values, value_states)
        self.keys, self.values = keys, values
        return keys, values

    def _appended(self, number: int, held_RHTE: Tensor | None, new_RHTE: Tensor) -> Tensor:
        assert held_RHTE is not None
        held, length = held_RHTE.shape[2], held_RHTE.shape[2] + new_RHTE.shape[2]
        room = self._rooms[number]
        # Rows that were selected or reordered meanwhile lie in other memory.
        if length > room.shape[2] or held_RHTE.data_ptr() != room.data_ptr():
            rows, heads, _, size = held_RHTE.shape
            room = self._rooms[number] = held_RHTE.new_empty(rows, heads, length + _ROOM, size)
            room[:, :, :held] = held_RHTE
        room[:, :, held:length] = new_RHTE
        return room[:, :, :length]


@torch.inference_mode()
def make_room(cache: DynamicCache) -> None:
    """Give the plain layers of a cache room; others (sliding windows, states) stay as they are."""
    cache.layers = [
        RoomyLayer(layer) if type(layer) is DynamicLayer and layer.is_initialized else layer for layer in cache.layers
    ]
