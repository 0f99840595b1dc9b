"""One micro-step of the real model without memory: what it keeps, what it computes, and which module runs when.

The model is built by the code that trains (``build_model``, ``set_zero3_units``) on torch's meta device, where tensors
have shapes and no data; forward, both losses and backward really run. Every tensor that is made is counted while it
lives, so activations, the loss's workspace and gradients waiting to be reduced are read off, not estimated; matrix
products are counted as they are called. The order of modules is noted where DeepSpeed's own hooks stand, for
:mod:`clsgen_dist.plan.zero3_simulation` to walk through. Weights are left out: under ZeRO-3 they come and go.

Cost: seconds for a model of 70B, whatever the number of tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from clsgen_dist.config import ModelSettings
from clsgen_dist.errors import ModelError
from clsgen_dist.model import families
from clsgen_dist.model.backbone import build_model, checkpoint_activations, refuse_changed_logits, set_zero3_units
from clsgen_dist.model.dual_head import DualHeadModel
from clsgen_dist.plan import attention_shapes

# N packed tokens, S sequences, n supervised tokens


class Moment(Enum):
    """When something happens to a module or to a parameter."""

    PRE_FORWARD = "pre_forward"
    POST_FORWARD = "post_forward"
    PRE_BACKWARD = "pre_backward"
    POST_BACKWARD = "post_backward"
    GRADIENT = "gradient"
    """A parameter's gradient is whole; ``at`` counts parameters."""


@dataclass(frozen=True, slots=True)
class Event:
    """One moment, and what the activations took up to it."""

    moment: Moment
    at: int
    """Number of the module in :attr:`MetaTrace.units`, or of the parameter."""
    peak: int
    """Most bytes held between the event before and this one."""
    held: int
    """Bytes held at this moment."""
    peak_of_loss: int
    """Of ``peak``, what the loss made."""
    held_of_loss: int
    """Of ``held``, what the loss made."""
    recompute: bool = False
    """Whether a forward runs inside the backward (activation checkpointing)."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter of the model."""

    name: str
    numel: int
    trainable: bool
    matrix: bool
    """Whether it has more than one dimension: those of the optimizer groups that decay."""
    quantised: bool = False
    """Whether bitsandbytes keeps it in 4 bits."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A module that ZeRO-3 sees: a leaf unit with all that is in it, or a module with its own parameters."""

    weights: tuple[int, ...]
    """Numbers of the parameters that are gathered for it."""
    below: tuple[int, ...]
    """Numbers of all parameters in it."""
    leaf: bool


@dataclass(frozen=True)
class MetaTrace:
    """What one micro-step does."""

    weights: list[Weight]
    units: list[Unit]
    events: list[Event]
    tail_peak: int
    """Most bytes held after the last event."""
    loss_workspace: int
    """Most bytes that the loss held at once."""
    matmul_flops: float
    """FLOPs of matrix products, recomputation included; attention's are among them where it is eager alone."""
    forward_flops: float
    """Those of them before the backward begins."""
    recomputed_flops: float
    """Those of them that only activation checkpointing causes."""
    moved_bytes: float
    """What all other operations of the backbone read and write, one after another: norms, activations, additions."""
    forward_moved_bytes: float
    """Those before the backward begins."""
    launches: int
    """Operations of the backbone that start a kernel, views left out."""
    forward_launches: int
    """Those before the backward begins."""
    tokens: int
    """Tokens of the micro-step."""
    bytes_per_element: int
    """Of weights, activations and gradients."""
    positions: int | None
    """Longest sequence that the backbone knows, if it says so."""
    learned_positions: bool
    """Whether a longer one would index past a table; rotary ones go on, untrained."""
    eager: bool
    """Whether attention's products are among the others."""

    @property
    def parameters(self) -> int:
        """All parameters, classification head and adapters included."""
        return sum(w.numel for w in self.weights)

    @property
    def trainable(self) -> int:
        """Those that learn."""
        return sum(w.numel for w in self.weights if w.trainable)

    @property
    def quantised(self) -> int:
        """Elements that are kept in 4 bits."""
        return sum(w.numel for w in self.weights if w.quantised)

    @property
    def activation_peak(self) -> int:
        """Most bytes held at once: activations, workspace, gradients not yet reduced."""
        return max([self.tail_peak, *(e.peak for e in self.events)])


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """What of the settings decides the model."""

    backbone: str
    """A folder or hub id with a config.json; weights are not needed."""
    classes: int
    finetune: str
    top_layers: int | None
    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    head_dropout: float
    load_in_4bit: bool
    bf16: bool

    @classmethod
    def of(cls, model: ModelSettings, *, backbone: str, classes: int, bf16: bool) -> ModelPlan:
        """The settings of ``model``, with the backbone's folder or hub id."""
        names = {field.name for field in dataclasses.fields(cls)} & set(vars(model))
        return cls(
            **{name: getattr(model, name) for name in names} | {"backbone": backbone}, classes=classes, bf16=bf16
        )


_PLANNED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def open_config(path: str) -> Any:
    """The backbone's configuration; ModelError if it cannot be trained, or what its layers do cannot be planned."""
    with _in_one_line(f"model.backbone {path!r} has no configuration that transformers reads"):
        config = families.open_config(path)
    text = config.get_text_config()
    if not (getattr(text, "num_hidden_layers", None) or 0) > 0:
        raise ModelError(f"model.backbone {path!r} has num_hidden_layers 0 or none, expected 1 or more in config.json")
    experts = next(
        (n for key in ("num_local_experts", "num_experts", "n_routed_experts") if (n := getattr(text, key, None))), 0
    )
    if experts > 1:
        raise ModelError(
            f"model.backbone {path!r} routes tokens to {experts} experts: how many reach each depends on the data, "
            "which a plan cannot know; name a dense backbone"
        )
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    if others := sorted({*map(str, kinds)} - _PLANNED_LAYERS):
        raise ModelError(
            f"model.backbone {path!r} has layers of the kind {', '.join(others)}: what they cost depends on kernels "
            "that a plan does not know; name a backbone of attention layers"
        )
    return config


@contextlib.contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """What transformers raises inside, as a ModelError: each family checks its fields with errors of its own."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {textwrap.shorten(f'{type(error).__name__}: {error}', 240)}") from error


Attention = Literal["flash", "sdpa", "eager"]
"""Over all packed sequences at once; once per sequence; once per sequence, with all scores written down."""


def attention_of(setting: str) -> Attention:
    """What ``model.attention`` comes to on a GPU."""
    return "sdpa" if setting == "sdpa" else "eager" if setting == "eager" else "flash"


def meta_model(plan: ModelPlan, attention: Attention) -> DualHeadModel:
    """The dual-head model that would train, without memory."""
    from transformers import AutoModelForCausalLM

    config = open_config(plan.backbone)
    dtype = torch.bfloat16 if plan.bf16 else torch.float32
    shapes = {"flash": attention_shapes.one_piece, "sdpa": attention_shapes.apart, "eager": attention_shapes.eager}
    with torch.device("meta"):
        with _in_one_line(f"model.backbone {plan.backbone!r} has a configuration that transformers cannot build"):
            lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=shapes[attention]())
        refuse_changed_logits(lm)
        return build_model(
            lm,
            classes=plan.classes,
            label_tokens=None,
            finetune=plan.finetune,
            top_layers=plan.top_layers,
            lora_rank=plan.lora_rank,
            lora_alpha=plan.lora_alpha,
            lora_dropout=plan.lora_dropout,
            head_dropout=plan.head_dropout,
            loss_impl="torch",
            seed=0,
        ).to(dtype)


def trace_micro_step(
    plan: ModelPlan,
    *,
    sequence_lengths: Sequence[int],
    supervised: int,
    activation_checkpointing: bool,
    attention: Attention = "flash",
) -> MetaTrace:
    """Run one micro-step of packed sequences, ``supervised`` of whose tokens carry generation loss, on meta."""
    model = meta_model(plan, attention)
    model.train()
    if activation_checkpointing:
        checkpoint_activations(model.lm)
    set_zero3_units(model)
    batch = _batch(list(sequence_lengths), supervised)
    counter = _Counter()
    counter.leave_out([*model.parameters(), *model.buffers()])
    stage = _Stage(model, counter)
    _tell_backbone(model.lm.base_model, counter)
    with _deepspeeds_linear(counter), counter:
        output = model(**batch)
        loss = output.generation_loss.sum() + output.class_loss.sum()
        del output
        forward_flops, forward_moved, forward_launches = counter.flops, counter.moved, counter.launches
        loss.backward()
        del loss
    quantised = _quantised(model.lm) if plan.load_in_4bit else set()
    weights = [
        Weight(name, p.numel(), p.requires_grad, p.dim() > 1, id(p) in quantised and not p.requires_grad)
        for name, p in model.named_parameters()
    ]
    return MetaTrace(
        weights,
        stage.units,
        stage.events,
        counter.take_peak()[0],
        counter.most_of_loss,
        counter.flops,
        forward_flops,
        counter.recomputed_flops,
        counter.moved,
        forward_moved,
        counter.launches,
        forward_launches,
        sum(sequence_lengths),
        2 if plan.bf16 else 4,
        getattr(model.lm.config.get_text_config(), "max_position_embeddings", None),  # type: ignore[operator, union-attr]
        not any("Rotary" in type(module).__name__ for module in model.modules()),
        attention == "eager",
    )


@contextlib.contextmanager
def _deepspeeds_linear(counter: _Counter) -> Iterator[None]:
    """Linear maps are DeepSpeed's, as under ZeRO-3: they keep their input even where the weight is frozen."""
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    def linear(*args: Any) -> Tensor:
        counter.recomputing = _recomputing()  # asked here: an autograd function's forward runs without gradients
        try:
            return zero3_linear_wrap(*args)  # type: ignore[no-any-return]
        finally:  # checkpointing ends a recomputation by an exception
            counter.recomputing = False

    plain, nn.functional.linear = nn.functional.linear, linear  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.linear = plain


def _quantised(lm: Any) -> set[int]:
    """Ids of the weights that bitsandbytes keeps in 4 bits: of linear maps, but for the LM head."""
    head = lm.get_output_embeddings()
    return {id(m.weight) for m in lm.modules() if isinstance(m, nn.Linear) and m is not head}


_MOVES_NOTHING = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach")


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


class _Counter(TorchDispatchMode):
    """Bytes of living tensors made inside, FLOPs of the matrix products called, bytes that other operations move.

    The loss moves its bytes inside one kernel on a GPU, so only what runs ``in_backbone`` is counted of the last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = self.held_of_loss = self.peak_of_loss = self.most_of_loss = 0
        self.flops = self.recomputed_flops = self.moved = 0.0
        self.launches = 0
        self.in_backbone = self.recomputing = False
        self._alive: dict[int, Any] = {}
        self._not_counted: set[int] = set()

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count what shares these tensors' memory: weights, buffers."""
        self._not_counted |= {t.untyped_storage()._cdata for t in tensors}

    def take_peak(self) -> tuple[int, int]:
        """Most bytes held since the last call, and of them what the loss made."""
        peak = self.peak, self.peak_of_loss
        self.peak, self.peak_of_loss = self.held, self.held_of_loss
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        self.launches += self.in_backbone and not func.is_view and packet.__name__ not in _MOVES_NOTHING
        if packet in flop_registry and "attention" not in packet.__name__:
            flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
            self.flops += flops
            if self.recomputing or _recomputing():
                self.recomputed_flops += flops
        elif self.in_backbone and not func.is_view and packet.__name__ not in _MOVES_NOTHING:
            self.moved += sum(_bytes(t) for t in torch.utils._pytree.tree_leaves((args, kwargs, out)))
        torch.utils._pytree.tree_map_only(Tensor, self._note, out)
        return out

    def _note(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "meta":
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._alive and key not in self._not_counted:
                size = storage.nbytes()
                of_loss = 0 if self.in_backbone else size
                self._alive[key] = weakref.finalize(storage, self._freed, key, size, of_loss)
                self.held += size
                self.held_of_loss += of_loss
                self.most_of_loss = max(self.most_of_loss, self.held_of_loss)
                if self.held > self.peak:
                    self.peak, self.peak_of_loss = self.held, self.held_of_loss
        return tensor

    def _freed(self, key: int, size: int, of_loss: int) -> None:
        self._alive.pop(key, None)
        self.held -= size
        self.held_of_loss -= of_loss


def _recomputing() -> bool:
    """Whether a forward runs inside the backward."""
    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()


def _tell_backbone(backbone: Any, counter: _Counter) -> None:
    """Set ``in_backbone`` while the backbone runs, forward or backward."""

    def begins(*_: Any) -> None:
        counter.in_backbone = True

    def ends(module: nn.Module, inputs: Any, output: Any) -> None:
        counter.in_backbone = False
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(begins)

    backbone.register_forward_pre_hook(begins)
    backbone.register_forward_hook(ends)


class _Stage:
    """Notes which module runs when, where DeepSpeed's ZeRO-3 puts its hooks (``parameter_offload.py`` of 0.19.8).

    A leaf unit's gradients wait until its backward is over, and leave in the optimizer's order, group by group, as they
    do there (``stage3.py``, ``create_reduce_and_remove_grad_hooks``); others leave as soon as they are whole.
    """

    def __init__(self, model: DualHeadModel, counter: _Counter) -> None:
        self.units: list[Unit] = []
        self.events: list[Event] = []
        self._counter = counter
        self._number = {id(p): index for index, p in enumerate(model.parameters())}
        self._place = _optimizer_order(model)
        self._waiting: dict[int, list[nn.Parameter]] = {}
        self._visit(model)

    def _note(self, moment: Moment, at: int) -> None:
        recompute = moment in (Moment.PRE_FORWARD, Moment.POST_FORWARD) and torch._C._current_graph_task_id() != -1
        counter = self._counter
        peak, of_loss = counter.take_peak()
        self.events.append(Event(moment, at, peak, counter.held, of_loss, counter.held_of_loss, recompute))

    def _visit(self, module: nn.Module) -> None:
        from deepspeed.utils import z3_leaf_module

        leaf = z3_leaf_module(module)
        if leaf:
            for parameter in module.parameters():
                self._reduce_when_whole(parameter, leaf_unit=len(self.units))
            self._add_unit(module, leaf)
            return
        for parameter in module.parameters(recurse=False):
            self._reduce_when_whole(parameter, leaf_unit=None)
        self._add_unit(module, leaf)
        for child in module.children():
            self._visit(child)

    def _add_unit(self, module: nn.Module, leaf: bool) -> None:
        number = len(self.units)
        external = [p for _, p in module.ds_external_parameters()] if hasattr(module, "_external_params") else []  # type: ignore[operator]
        below = [*module.parameters(), *external]
        own = below if leaf else [*module.parameters(recurse=False), *external]
        self.units.append(Unit(self._numbers(own), self._numbers(below), leaf))
        backward = _Backward(self, number)
        module.register_forward_pre_hook(lambda *_: self._note(Moment.PRE_FORWARD, number))
        module.register_forward_pre_hook(lambda _, inputs: backward.after(inputs))
        module.register_forward_hook(lambda *_: self._note(Moment.POST_FORWARD, number))
        module.register_forward_hook(lambda _, __, output: backward.before(output))

    def _numbers(self, parameters: Iterable[nn.Parameter]) -> tuple[int, ...]:
        return tuple(sorted({self._number[id(p)] for p in parameters}))

    def _reduce_when_whole(self, parameter: nn.Parameter, leaf_unit: int | None) -> None:
        if not parameter.requires_grad or hasattr(parameter, "_clsgen_noted"):
            return
        parameter._clsgen_noted = True  # type: ignore[attr-defined]

        def whole(p: Tensor) -> None:
            if leaf_unit is not None:
                self._waiting.setdefault(leaf_unit, []).append(parameter)
                return
            self._note(Moment.GRADIENT, self._number[id(parameter)])
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(whole)

    def backward_over(self, unit: int) -> None:
        """A module's backward is over: its gradients leave."""
        for parameter in sorted(self._waiting.pop(unit, []), key=lambda p: self._place[id(p)]):
            self._note(Moment.GRADIENT, self._number[id(parameter)])
            parameter.grad = None
        self._note(Moment.POST_BACKWARD, unit)


def _optimizer_order(model: nn.Module) -> dict[int, tuple[int, int]]:
    """Place of each trained parameter, by id: the number of its optimizer group, and its own."""
    groups: dict[tuple[bool, bool], int] = {}
    place = {}
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.requires_grad:
            group = groups.setdefault(optimizer_group(name, matrix=parameter.dim() > 1), len(groups))
            place[id(parameter)] = (group, number)
    return place


def optimizer_group(name: str, *, matrix: bool) -> tuple[bool, bool]:
    """Which of :func:`clsgen_dist.engine.optim.parameter_groups` a parameter is in: head or not, matrix or not."""
    return name.startswith("classification_head."), matrix


class _Backward:
    """Before and after a module's backward, by identity functions around its outputs and inputs."""

    def __init__(self, stage: _Stage, unit: int) -> None:
        self.stage, self.unit = stage, unit
        self.before_left = self.after_left = 0

    def before(self, output: Any) -> Any:
        """Wrap the outputs, so that the first of their gradients says that the backward begins."""
        from deepspeed.runtime.zero.utils import apply_to_tensors_only

        def begins() -> None:
            if self.before_left > 0:
                self.before_left -= 1
                self.stage._note(Moment.PRE_BACKWARD, self.unit)

        def wrap(tensor: Tensor) -> Tensor:
            self.before_left += 1
            return _Identity.apply(tensor, begins)

        return apply_to_tensors_only(wrap, output)

    def after(self, inputs: tuple[Any, ...]) -> Any:
        """Wrap the inputs, so that the last of their gradients says that the backward is over."""
        from deepspeed.runtime.zero.utils import apply_to_tensors_only

        self.after_left = 0

        def ends() -> None:
            self.after_left -= 1
            if self.after_left == 0:
                self.stage.backward_over(self.unit)

        def wrap(tensor: Tensor) -> Tensor:
            if tensor.requires_grad:
                self.after_left += 1
            return _Identity.apply(tensor, ends)

        return apply_to_tensors_only(wrap, inputs)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, then: Callable[[], None]) -> Tensor:
        ctx.then = then
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.then()
        return *grads, None


def _batch(lengths: list[int], supervised: int) -> dict[str, Any]:
    """The model's keyword arguments for packed sequences, as :func:`clsgen_dist.data.pack.collate` makes them."""
    tokens = sum(lengths)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)

    def numbers(count: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64, device="meta")

    return {
        "input_ids_N": numbers(tokens),
        "position_N": numbers(tokens),
        # Attention cuts at these numbers, so they must be there.
        "sequence_start_S1": torch.tensor(starts, dtype=torch.int32),
        "longest": max(lengths),
        "supervised_index_n": numbers(supervised),
        "target_n": numbers(supervised),
        "class_index_S": numbers(len(lengths)),
        "label_S": numbers(len(lengths)),
    }
