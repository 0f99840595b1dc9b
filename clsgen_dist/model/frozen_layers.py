"""A backbone's frozen layers alone, or the others alone: what never changes is computed once.

With ``model.top_layers`` the lower layers see the same sequences in every epoch and never learn. What enters the first
layer that learns is kept, and the backbone starts there: it is called with these states as ``inputs_embeds``, and the
layers below are replaced by stand-ins without parameters, the last of which returns the states as they are. So masks,
positions and whatever a family does to its embeddings stay the backbone's own, and ZeRO-3 gathers neither embeddings
nor frozen layers. In the same way the lower layers run alone, with stand-ins above them.

With ``finetune: head`` nothing below the head learns. Kept are the last states at the two positions where the head may
be read, and of each supervised token its loss and whether it was predicted: the LM head is not multiplied again.

Cost: a stand-in for each layer that is left out, put in and taken out at every pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from clsgen_kernels import DualHeadOutput, Execution, dual_head_loss
from torch import Tensor, nn

# N packed tokens, S sequences, n supervised tokens, D hidden

_BACKBONE_INPUTS = ("input_ids_N", "position_N", "sequence_start_S1", "longest")


@dataclass(frozen=True)
class KnownStates:
    """What frozen layers gave for a micro-batch."""

    hidden_ND: Tensor
    """States that enter the first layer that learns. Where none does: ``[2 S, D]`` the last states of each sequence's
    classification token and last token."""
    generation_loss_n: Tensor | None = None
    """fp32 loss of each supervised token, nats; None where some layer learns."""
    token_hit_n: Tensor | None = None
    """bool: the target is the most likely token."""

    @property
    def all_frozen(self) -> bool:
        """Whether no layer learns, and the losses of tokens are known."""
        return self.generation_loss_n is not None

    def to(self, device: torch.device) -> KnownStates:
        """The same on this device."""
        parts = (self.hidden_ND, self.generation_loss_n, self.token_hit_n)
        return KnownStates(*(None if part is None else part.to(device, non_blocking=True) for part in parts))  # type: ignore[arg-type]

    def renumbered(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Where no layer learns: the batch's positions among the states kept, and no token is supervised any more."""
        if not self.all_frozen:
            return batch
        at_S = torch.arange(len(batch["class_index_S"]), device=self.hidden_ND.device)
        no_token = batch["target_n"][:0]
        return {
            **batch,
            "class_index_S": 2 * at_S,
            "end_index_S": 2 * at_S + (batch["end_index_S"] != batch["class_index_S"]),
            "supervised_index_n": no_token,
            "target_n": no_token,
        }

    def with_tokens(self, losses: DualHeadOutput) -> DualHeadOutput:
        """The losses of both heads, those of tokens as they are known, where no layer learns."""
        if self.generation_loss_n is None or self.token_hit_n is None:
            return losses
        return losses._replace(generation_loss=self.generation_loss_n, token_hit=self.token_hit_n)


class FrozenLayers:
    """Runs a part of a decoder's layers.

    Args:
        layers: of the decoder, in order.
        first: the first that learns, from 1; as many as there are: none does.
    """

    def __init__(self, layers: nn.ModuleList, first: int) -> None:
        self.layers, self.first = layers, first
        self.outputs: int | None = None
        """Values that a layer returns, where it returns a tuple; :func:`starts_equal` finds out."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[list[Tensor]]:
        """Inside, the layers from ``first`` on do nothing; the list gets what enters the first of them."""
        found: list[Tensor] = []
        stand_ins = {index: _StandIn(self.layers[index], self.outputs) for index in range(self.first, len(self.layers))}
        stand_ins[self.first].seen = found
        with self._replaced(stand_ins):
            yield found

    @contextlib.contextmanager
    def left_out(self, states: Tensor) -> Iterator[None]:
        """Inside, the layers before ``first`` do nothing; ``states`` enter it, shaped as the backbone's embeddings."""
        stand_ins = {index: _StandIn(self.layers[index], self.outputs) for index in range(self.first)}
        stand_ins[self.first - 1].states = states
        with self._replaced(stand_ins):
            yield

    @contextlib.contextmanager
    def _replaced(self, stand_ins: dict[int, _StandIn]) -> Iterator[None]:
        originals = {index: self.layers[index] for index in stand_ins}
        try:
            for index, stand_in in stand_ins.items():
                self.layers[index] = stand_in
            yield
        finally:
            for index, layer in originals.items():
                self.layers[index] = layer


class _StandIn(nn.Module):
    """In a layer's place: returns what enters it, or given states. Other attributes are the layer's."""

    def __init__(self, layer: nn.Module, outputs: int | None) -> None:
        super().__init__()
        self.__dict__["_replaces"] = layer  # not as a submodule: its parameters are not this one's
        self._outputs = outputs
        self.states: Tensor | None = None
        self.seen: list[Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_replaces"], name)

    def forward(self, *args: Any, **options: Any) -> Any:
        """The states; as a tuple with nothing else in it where the layer returns one."""
        entering = args[0] if args else options["hidden_states"]
        if self.seen is not None:
            self.seen.append(entering.detach())
        states = entering if self.states is None else self.states
        return states if self._outputs is None else (states, *[None] * (self._outputs - 1))


def first_that_learns(layers: nn.ModuleList) -> int:
    """Number of the first layer with a parameter that learns; as many as there are layers if none has one."""
    learns = (any(p.requires_grad for p in layer.parameters()) for layer in layers)
    return next((index for index, found in enumerate(learns) if found), len(layers))


def active_dropout(lm: nn.Module, frozen: FrozenLayers) -> str | None:
    """The first module of the frozen part that drops something in training, and how much; None without any."""
    above = {id(m) for layer in list(frozen.layers)[frozen.first :] for m in layer.modules()}
    for name, module in lm.named_modules():
        rates = {key: value for key, value in vars(module).items() if "drop" in key.lower() and _is_rate(value)}
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            rates["p"] = module.p
        if rates and id(module) not in above:
            key, rate = next(iter(rates.items()))
            return f"{name}.{key} = {rate:g}"
    return None


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and value > 0


def starts_equal(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """States of a batch, ``[N, D]``, computed in two ways, which should be equal.

    Args:
        model: a :class:`clsgen_dist.model.dual_head.DualHeadModel` in evaluation mode, with its ``frozen_layers``.
        batch: fields of :class:`clsgen_dist.data.pack.Batch`.

    Returns:
        ``whole``, the last states computed at once; ``entering``, those that enter the first layer that learns; and
        ``started``, the last states computed from them.
    """
    frozen: FrozenLayers = model.frozen_layers
    inputs, outputs = [batch[name] for name in _BACKBONE_INPUTS], []
    handle = frozen.layers[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        whole_ND = model.hidden_states(*inputs)
    finally:
        handle.remove()
    frozen.outputs = len(outputs[0]) if isinstance(outputs[0], tuple) else None
    entering_ND = entering_states(model, batch)
    # Other tokens in between: what a layer might remember of these must not help it.
    model.hidden_states(inputs[0].flip(0), *inputs[1:])
    started_ND = model.hidden_states(*inputs, known_ND=entering_ND)
    return {"whole": whole_ND, "entering": entering_ND, "started": started_ND}


def training_passes(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the frozen part gives for a batch, ``[N, D]``, in evaluation mode and twice as in training.

    Modes and random numbers are as before when it returns.

    Args:
        model: a :class:`clsgen_dist.model.dual_head.DualHeadModel` with its ``frozen_layers``.
        batch: fields of :class:`clsgen_dist.data.pack.Batch`.

    Returns:
        ``evaluated``; ``first`` and ``second``, in training mode with two seeds.
    """
    frozen: FrozenLayers = model.frozen_layers
    device = batch["input_ids_N"].device
    modes = [(module, module.training) for module in model.modules()]
    found = {}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for seed, (name, training) in enumerate({"evaluated": False, "first": True, "second": True}.items()):
                torch.manual_seed(seed)
                model.train(training)
                if frozen.first == len(frozen.layers):
                    found[name] = model.hidden_states(*(batch[field] for field in _BACKBONE_INPUTS))
                else:
                    found[name] = entering_states(model, batch)
    finally:
        for module, training in modes:
            module.training = training
    return found


def entering_states(model: Any, batch: dict[str, Any]) -> Tensor:
    """``[N, D]`` what enters the first layer that learns; only the layers below it are computed."""
    with model.frozen_layers.alone() as found:
        model.hidden_states(*(batch[field] for field in _BACKBONE_INPUTS))
    states: Tensor = found[0][0]
    return states


def final_states(model: Any, batch: dict[str, Any]) -> KnownStates:
    """What is kept of a batch where no layer learns: last states where the head may be read, and the losses of tokens.

    Args:
        model: a :class:`clsgen_dist.model.dual_head.DualHeadModel`.
        batch: fields of :class:`clsgen_dist.data.pack.Batch`.
    """
    hidden_ND = model.hidden_states(*(batch[field] for field in _BACKBONE_INPUTS))
    nowhere, lm_head = batch["class_index_S"][:0], model.lm_head
    found = dual_head_loss(
        hidden_ND,
        lm_head.weight_VD,
        *model.classification_head.affine(),
        supervised_index_n=batch["supervised_index_n"],
        target_n=batch["target_n"],
        class_index_S=nowhere,
        label_S=nowhere,
        lm_bias_V=lm_head.bias_V,
        generation=lm_head.transform.options(model.loss_spec.generation),
        impl=model.loss_spec.impl,
        execution=Execution(vocab_shards=lm_head.shards),
    )
    read_2S = torch.stack([batch["class_index_S"], batch["end_index_S"]], dim=1).flatten()
    return KnownStates(hidden_ND[read_2S], found.generation_loss.float(), found.token_hit)


@contextlib.contextmanager
def lm_head_unused(engine: Any) -> Iterator[None]:
    """Inside, ZeRO-3 does not gather the LM head for the model: the losses of tokens are known."""
    from deepspeed.runtime.zero.partition_parameters import register_external_parameter, unregister_external_parameter

    model = engine.module
    parameters = model.lm_head.gathered_parameters()
    for parameter in parameters:
        unregister_external_parameter(model, parameter)
    _forget_order(engine)
    try:
        yield
    finally:
        for parameter in parameters:
            register_external_parameter(model, parameter)
        _forget_order(engine)


def _forget_order(engine: Any) -> None:
    """Let ZeRO-3 record anew which parameters it fetches for which module: it refuses what it does not expect."""
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


# --- as bytes, one content for each sequence


def content_bytes(
    length_E: np.ndarray, answer_E: np.ndarray, width: int, itemsize: int, *, all_frozen: bool
) -> np.ndarray:
    """``[E]`` bytes that are kept of sequences of these lengths, whose explanations have ``answer_E`` tokens."""
    if all_frozen:
        return 2 * width * itemsize + 5 * answer_E.astype(np.int64)
    return length_E.astype(np.int64) * width * itemsize


def contents(known: KnownStates, length_S: Iterable[int], answer_S: Iterable[int]) -> list[np.ndarray]:
    """The bytes of each sequence: its states; where no layer learns, then the losses of its tokens and the hits."""
    rows_S = [2 if known.all_frozen else int(length) for length in length_S]
    parts = [[_bytes(part)] for part in known.hidden_ND.split(rows_S)]
    if known.generation_loss_n is not None and known.token_hit_n is not None:
        lengths = [int(answer) for answer in answer_S]
        of_tokens = (known.generation_loss_n.float().split(lengths), known.token_hit_n.to(torch.uint8).split(lengths))
        for content, *more in zip(parts, *of_tokens, strict=True):
            content += map(_bytes, more)
    return [np.concatenate(content) for content in parts]


def known_states(
    content: np.ndarray, answer_S: Iterable[int], width: int, dtype: torch.dtype, *, all_frozen: bool
) -> KnownStates:
    """What :func:`contents` wrote, from the bytes of the sequences of a micro-batch end to end."""
    if not all_frozen:
        return KnownStates(torch.from_numpy(content).view(dtype).view(-1, width))
    of_states = 2 * width * dtype.itemsize
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    at = 0
    for answer in answer_S:
        ends = np.cumsum([at, of_states, 4 * answer, answer])
        for part, start, stop in zip(parts, ends[:-1], ends[1:], strict=True):
            part.append(content[start:stop])
        at = int(ends[-1])
    joined = [torch.from_numpy(np.concatenate(part)) for part in parts]
    return KnownStates(joined[0].view(dtype).view(-1, width), joined[1].view(torch.float32), joined[2].bool())


def stand_in_states(all_frozen: bool, width: int, dtype: torch.dtype) -> KnownStates:
    """For the batch of a rank without rows, of which nothing is learnt: two tokens, finite in any norm."""
    hidden = torch.linspace(-1.0, 1.0, width).to(dtype).expand(2, width)
    nothing = torch.zeros(0)
    return KnownStates(hidden, nothing, nothing.bool()) if all_frozen else KnownStates(hidden)


def _bytes(values: Tensor) -> np.ndarray:
    found: np.ndarray = values.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()
    return found
