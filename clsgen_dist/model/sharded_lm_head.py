"""An LM head whose weight stays in the shards that ZeRO-3 has made of it.

Each rank computes with the rows that lie in its own partition of the flat weight, ``K = ceil(V·D / ranks)``
elements. A row belongs to the rank that holds its first element. Where ``K`` is no multiple of ``D``, each rank's last
row is completed with the first elements of the next rank's partition, at most ``D - 1`` of them, and their gradient
goes back there. The gradient of the weight is put where ZeRO-3's reduction would have put it, so optimizer, clipping,
offloading, checkpoints and export know nothing of it.

A tied embedding is looked up by the rank that owns the row: ids go there, rows come back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from clsgen_kernels import Ranks, VocabShards
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clsgen_dist.model.lm_head import LMHead, LogitTransform

# N tokens, V vocabulary, D hidden, K elements of a partition


def head_parameter(lm: Any) -> Any:
    """The LM head's weight as a parameter; under ZeRO-3, reading the attribute would gather it."""
    return lm.get_output_embeddings()._parameters.get("weight")


def is_tied(lm: Any) -> bool:
    """Whether the LM head's weight is the input embedding's."""
    return lm.get_input_embeddings()._parameters.get("weight") is head_parameter(lm)


def cannot_shard(lm: Any) -> str | None:
    """Why this model's LM head cannot stay sharded; None if it can."""
    embedding, config = lm.get_input_embeddings(), lm.config.get_text_config(decoder=True)
    if not is_tied(lm):
        return None
    if getattr(config, "hidden_size_per_layer_input", None):
        return (
            f"{type(lm).__name__} looks tokens up in every layer, and the sharded embedding hands over its rows alone"
        )
    plain = isinstance(embedding, nn.Embedding) and embedding.max_norm is None
    if not plain or (type(embedding).forward is not nn.Embedding.forward and not hasattr(embedding, "embed_scale")):
        return f"its input embedding, which is the same weight, is a {type(embedding).__name__}, not a plain lookup"
    return None


@contextlib.contextmanager
def gathered(parameters: list[Any]) -> Iterator[None]:
    """Gathers parameters that ZeRO-3 has partitioned, for reading; collective."""
    if not any(hasattr(p, "ds_id") for p in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


def row_starts(vocabulary: int, width: int, ranks: int) -> tuple[int, ...]:
    """First row of each rank where ZeRO-3 partitions ``[vocabulary, width]`` over so many, and the vocabulary."""
    size = -(-vocabulary * width // ranks)
    return (*(min(vocabulary, -(-rank * size // width)) for rank in range(ranks)), vocabulary)


class ShardedLMHead(LMHead):
    """This rank's rows of the LM head's weight.

    Args:
        lm: the causal LM, partitioned by ZeRO-3, for which :func:`cannot_shard` finds no reason.
        ranks: the processes that it is partitioned over.
        deposit: takes the flat gradient ``[K]`` of this rank's partition: the mean over ranks, as ZeRO-3 takes it.
        device: where the losses are computed.

    Raises:
        ValueError: a rank would have no row.
    """

    shards: VocabShards

    def __init__(self, lm: Any, ranks: Ranks, deposit: Callable[[Tensor], None], device: torch.device) -> None:
        super().__init__(lm, LogitTransform.of(lm.config))
        self._parameter, self._ranks, self._deposit, self._device = head_parameter(lm), ranks, deposit, device
        (vocabulary, width), size = self._parameter.ds_shape, self._parameter.ds_tensor.ds_numel
        self.shards = VocabShards(ranks, row_starts(vocabulary, width, ranks.size))
        start = size * ranks.rank
        self._size, self._width = size, width
        self._filled = min(size, vocabulary * width - start)
        """Elements of this rank's partition that are not padding."""
        self._lead = self.shards.first_row * width - start
        """Elements at its beginning that belong to the last row of the rank before."""
        self._cut = size % width != 0
        self._leaf: Tensor | None = None
        self._completed: Tensor | None = None

    def begin(self) -> None:
        """A forward pass begins: the rows of the one before, if its gradient was never asked for, are forgotten."""
        self._leaf = self._completed = None

    @contextlib.contextmanager
    def whole(self) -> Iterator[LMHead]:
        """The complete head, to read; collective."""
        with gathered([self._parameter]):
            yield LMHead(self.lm, self.transform)

    @property
    def weight_VD(self) -> Tensor:
        """``[V_r, D]`` this rank's rows: a view of the partition where no row is cut, else a copy. Collective.

        If the weight learns it is a leaf, the same throughout a pass, whose gradient is deposited.
        """
        if not (self._parameter.requires_grad and torch.is_grad_enabled()):
            return self._complete_rows()
        if self._leaf is None:
            self._leaf = self._complete_rows().detach().requires_grad_()
            self._leaf.register_post_accumulate_grad_hook(self._take_gradient)
        return self._leaf

    @property
    def bias_V(self) -> Tensor | None:
        """``[V_r]`` this rank's part of the bias, which is gathered; None if there is none."""
        bias_V = super().bias_V
        first = self.shards.first_row
        return None if bias_V is None else bias_V[first : first + self.shards.held]

    def gathered_parameters(self) -> list[nn.Parameter]:
        """What ZeRO-3 gathers of it while the losses are computed: the bias."""
        return [p for p in super().gathered_parameters() if p is not self._parameter]

    def rows(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Weight ``[R, D]`` and bias ``[R]`` of these tokens, on every rank; no gradient reaches them. Collective."""
        weight_VD, bias_V = self.weight_VD.detach(), super().bias_V
        local = torch.tensor(tokens, device=weight_VD.device) - self.shards.first_row
        here = (local >= 0) & (local < self.shards.held)
        weight_RD = self._ranks.sums(weight_VD[local.where(here, 0)] * here[:, None])
        return weight_RD, None if bias_V is None else bias_V.detach()[list(tokens)]

    def embed(self, input_ids_N: Tensor) -> Tensor | None:
        """``[N, D]`` a tied embedding's rows of the tokens, from the ranks that own them, else None. Collective."""
        if not is_tied(self.lm):
            return None
        embedding = self.lm.get_input_embeddings()
        order_N, asked, answered = self._ranks.route(self.shards.owners(input_ids_N))
        wanted = self._ranks.exchange(input_ids_N[order_N], asked, answered) - self.shards.first_row
        padding = -1 if embedding.padding_idx is None else embedding.padding_idx - self.shards.first_row
        found_MD = F.embedding(wanted, self.weight_VD, padding if 0 <= padding < self.shards.held else None)
        arrived_ND: Tensor = _Exchange.apply(found_MD, self._ranks, answered, asked)
        embedded_ND = arrived_ND[order_N.argsort()]
        scale = getattr(embedding, "embed_scale", None)
        if scale is None:
            return embedded_ND
        return embedded_ND * torch.as_tensor(scale, dtype=embedded_ND.dtype, device=embedded_ND.device)

    def _complete_rows(self) -> Tensor:
        partition = self._parameter.ds_tensor.detach().to(self._device)
        if not self._cut:
            return partition[: self._filled].view(-1, self._width)
        if self._completed is not None:
            return self._completed
        beginnings = self._from_all(partition[: self._width])
        own = partition[self._lead : self._filled]
        missing = self.shards.held * self._width - own.numel()
        following = beginnings[self._ranks.rank + 1][:missing] if missing else own[:0]
        self._completed = torch.cat([own, following]).view(-1, self._width)
        return self._completed

    def _take_gradient(self, leaf: Tensor) -> None:
        grad = leaf.grad.view(-1)  # type: ignore[union-attr]
        leaf.grad = self._leaf = self._completed = None
        own = self._filled - self._lead
        if self._cut:
            ends = self._from_all(F.pad(grad[own:], (0, self._width - (grad.numel() - own))))
            grad = torch.cat([ends[self._ranks.rank - 1][: self._lead], grad[:own]])
        if self._filled < self._size:
            grad = F.pad(grad, (0, self._size - self._filled))
        self._deposit(grad.div_(self._ranks.size))

    def _from_all(self, values_D: Tensor) -> Tensor:
        return self._ranks.all_gather(values_D[None], [1] * self._ranks.size)


class _Exchange(torch.autograd.Function):
    """Sends ``sent[r]`` rows to each rank r, and their gradient back."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, ranks: Ranks, sent: list[int], received: list[int]) -> Tensor:
        ctx.ranks, ctx.sent, ctx.received = ranks, sent, received
        return ranks.exchange(rows_MD, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.ranks.exchange(grad_ND, ctx.received, ctx.sent), None, None, None
