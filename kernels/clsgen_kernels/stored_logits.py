"""Where the forward leaves logits for the backward: how many of them, and in which memory.

The vocabulary is cut into slabs; the logits of one are ``[n, K]``. Those of the first slabs are stored, one behind the
other, and the backward recomputes the rest.

An LM weight that learns gets a gradient ``dW [V, D]``, which is allocated in the forward already. Its end holds the
logits: the backward writes dW from the beginning, slab by slab, and has read a slab's logits before dW reaches them.
For one call that takes no further memory, since dW is there when the backward begins in any case. All logits fit where
``n`` is at most about ``D``, else ``D / n`` of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# n supervised tokens, D hidden, V vocabulary, K slab, s stored slabs

_ALIGNED = 8
"""Elements: 16 bytes at least, so that slabs can be read and written by descriptor."""


class Storage(NamedTuple):
    """Which logits are stored, and where."""

    slab: int
    """Vocabulary rows of a slab."""
    slabs: int
    """How many are stored, from the first on."""
    in_gradient: bool
    """At the end of the LM weight's gradient instead of in memory of their own."""

    def allocate(self, rows: int, weight_VD: Tensor) -> Tensor:
        """The memory, not initialised: the gradient ``[V, D]``, or as much as the logits of ``rows`` tokens take."""
        if self.in_gradient:
            return torch.empty_like(weight_VD, memory_format=torch.contiguous_format)
        return weight_VD.new_empty(self.slabs * rows * self.slab)

    def logits(self, memory: Tensor, rows: int) -> Tensor:
        """``[s, n, K]``: the stored slabs' logits within their memory."""
        first = self._first(rows, memory.numel()) if self.in_gradient else 0
        logits = memory.view(-1)[first : first + self.slabs * rows * self.slab]
        return logits.view(self.slabs, rows, self.slab)

    def fits_in_gradient(self, rows: int, vocabulary: int, width: int) -> bool:
        """Whether dW can be written slab by slab, each slab's logits being read before, without reaching later ones."""
        first = self._first(rows, vocabulary * width)
        # Slab k's logits begin after the end of dW's slab k - 1: both linear in k, so the first and the last k tell.
        ends = {1, self.slabs - 1} if self.slabs > 1 else set()
        return first >= 0 and all(k * self.slab * width <= first + k * rows * self.slab for k in ends)

    def _first(self, rows: int, elements: int) -> int:
        """Where the logits begin in a gradient of so many elements; negative if they are more."""
        return (elements - self.slabs * rows * self.slab) // _ALIGNED * _ALIGNED


def choose_storage(
    rows: int, vocabulary: int, width: int, slab: int, *, element_size: int, learns: bool, store_bytes: int
) -> Storage | None:
    """Where logits can be stored: all of them, else as many as the gradient holds; None if nowhere.

    Args:
        rows: supervised tokens.
        vocabulary: rows of the LM weight.
        width: of the hidden states.
        slab: vocabulary rows of a slab.
        element_size: bytes of a logit as it is stored.
        learns: whether the LM weight's gradient can hold logits.
        store_bytes: all logits are stored in memory of their own if they take no more, and the gradient holds not all.
    """
    if not rows or not vocabulary:
        return None
    slabs = -(-vocabulary // slab)
    inside = 0
    if learns:
        most = range(min(slabs, vocabulary * width // (rows * slab)), 0, -1)
        inside = next((k for k in most if Storage(slab, k, True).fits_in_gradient(rows, vocabulary, width)), 0)
    if inside < slabs and slabs * rows * slab * element_size <= store_bytes:
        return Storage(slab, slabs, in_gradient=False)
    return Storage(slab, inside, in_gradient=True) if inside else None
