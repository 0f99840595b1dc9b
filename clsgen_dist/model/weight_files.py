"""A base's weight files, and the mapping between their tensors and the model's parameters.

Names and shapes often differ between files and modules: experts are separate in the files and stacked in the module, a
prefix is missing, a name is outdated. transformers has the mapping of each architecture; here it is resolved once for
all tensors, from the files' headers and a model on the meta device, and reversed at export. So missing weights, and
weights that could not be exported, are known before training.

    files --group by group--> parameters --training--> parameters --the same groups, reversed--> files

Cost: reading the headers, and a model on the meta device: 1 to 3 s for a 70B model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clsgen_dist.errors import ModelError, first_line
from clsgen_dist.model.unsupported import Unsupported, UnsupportedBackboneError

Shape = tuple[int, ...]

_COMPARE_ROWS = 4096
"""Rows of two tensors compared at a time."""
_SAMPLED_VALUES = 64
"""Values of each tensor in a fingerprint."""


class WeightFiles:
    """The tensors of a folder's weight files: the files that transformers' ``from_pretrained`` would read.

    Args:
        folder: a model's folder, with safetensors or else ``pytorch_model*.bin``.

    Raises:
        ModelError: no weight files, one is missing, or one cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._file_of: dict[str, Path] = {}
        self._pickles: dict[Path, dict[str, Tensor]] = {}
        for path in _weight_paths(folder):
            try:
                self._read_header(path)
            except ModelError:
                raise
            except Exception as error:
                raise ModelError(
                    f"{path} cannot be read as weights ({first_line(error)}); it may be truncated, or a Git "
                    "LFS pointer: download it again"
                ) from error

    def _read_header(self, path: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    piece = file.get_slice(name)
                    self.shapes[name] = tuple(piece.get_shape())
                    self.dtypes[name] = _DTYPES.get(piece.get_dtype(), torch.uint8)
                    self._file_of[name] = path
            return
        for name, tensor in self._pickle(path).items():
            if isinstance(tensor, Tensor):
                self.shapes[name], self.dtypes[name], self._file_of[name] = tuple(tensor.shape), tensor.dtype, path

    def _pickle(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a ``.bin`` file, memory-mapped."""
        from transformers.modeling_utils import load_state_dict

        if path not in self._pickles:
            self._pickles[path] = load_state_dict(str(path), map_location="cpu", weights_only=True)
        return self._pickles[path]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names."""
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], []).append(name)
        for path, wanted in by_file.items():
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    found |= {name: file.get_tensor(name) for name in wanted}
            else:
                found |= {name: self._pickle(path)[name] for name in wanted}
        return found

    def path_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name]

    def size(self, name: str) -> int:
        """Bytes of a tensor."""
        return self.dtypes[name].itemsize * torch.Size(self.shapes[name]).numel()

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same values."""
        if self.shapes[one] != self.shapes[other]:
            return False
        tensors = self.read([one, other])
        a, b = tensors[one], tensors[other]
        if a.data_ptr() == b.data_ptr():
            return True
        return all(
            torch.equal(a[at : at + _COMPARE_ROWS], b[at : at + _COMPARE_ROWS].to(a.dtype))
            for at in range(0, len(a), _COMPARE_ROWS)
        )


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _weight_paths(folder: Path) -> list[Path]:
    """The files that transformers would read, in its order of preference."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return [folder / single]
        index = folder / f"{single}.index.json"
        if not index.is_file():
            continue
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{index} cannot be read as an index of weight files ({error}); download it again"
            ) from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(
                f"{folder} lacks {len(missing)} of the {len(names)} weight files in {index.name}: "
                f"{', '.join(missing[:3])}; download them"
            )
        return [folder / name for name in names]
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".bin", ".gguf", ".pth", ".pt"))
    raise ModelError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin (nor an index of shards)"
        + (f", only {', '.join(others[:3])}" if others else "")
        + "; load the model with transformers and call save_pretrained"
    )


@dataclass
class Group:
    """Tensors of the files that are converted to parameters together: a single one, or a layer's experts."""

    target: str
    """The parameter; the first if there are several."""
    patterns: dict[str, str | None] = field(default_factory=dict)
    """The converter pattern of each tensor, by name in the files; None if only its name changes."""
    shapes: dict[str, Shape] = field(default_factory=dict)
    """Shapes of the resulting parameters."""

    @property
    def names(self) -> list[str]:
        """Names in the files, in stacking order."""
        return list(self.patterns)

    @property
    def is_converted(self) -> bool:
        """Whether tensors are converted, not just renamed."""
        return any(pattern is not None for pattern in self.patterns.values())


class WeightMap:
    """The mapping from tensors of the files to parameters of the model, and back.

    Args:
        files: the base's files.
        lm: the model on the meta device, as transformers builds it from the configuration.
    """

    def __init__(self, files: WeightFiles, lm: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        self.files, self.lm = files, lm
        self.state: dict[str, Tensor] = lm.state_dict()
        transforms = get_model_conversion_mapping(lm)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._converters = {pattern: t for t in converters for pattern in t.source_patterns}
        self.groups: list[Group] = []
        self.unused: list[str] = []
        """Tensors of the files that no parameter uses."""
        by_target: dict[str, Group] = {}
        for name in sorted(files.shapes, key=dot_natural_key):
            target, pattern = rename_source_key(
                name, renamings, converters, base_model_prefix=lm.base_model_prefix, meta_state_dict=self.state
            )
            if target not in self.state:
                self.unused.append(name)
                continue
            if target not in by_target:
                by_target[target] = Group(target)
                self.groups.append(by_target[target])
            by_target[target].patterns[name] = pattern
        # transformers keeps the conversions of a load to reverse them: only those that this base's names needed.
        lm._weight_conversions = [t for t in transforms if t.was_used()]
        for group in self.groups:
            try:
                made = self.to_parameters(group, self._on_meta(group))
            except Exception as error:
                raise ModelError(
                    f"{files.folder}: {group.names[0]} and {len(group.names) - 1} more cannot be converted to "
                    f"{group.target} ({first_line(error)}); files and config.json are of different models"
                ) from error
            group.shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
        self.parameters: dict[str, Shape] = {n: shape for group in self.groups for n, shape in group.shapes.items()}
        """Shapes of all parameters in the files."""

    def _on_meta(self, group: Group) -> dict[str, Tensor]:
        return {name: torch.empty(self.files.shapes[name], device="meta") for name in group.names}

    def to_parameters(self, group: Group, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a group's tensors to the model's parameters."""
        if not group.is_converted:
            (name,) = group.names[-1:]
            return {group.target: tensors[name]}
        converter = copy.deepcopy(self._converters[next(p for p in group.patterns.values() if p is not None)])
        for name, pattern in group.patterns.items():
            converter.add_tensor(group.target, name, pattern, tensors[name])  # type: ignore[arg-type]
        made = converter.convert(group.target, model=self.lm, config=self.lm.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def to_files(self, group: Group, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a group's parameters back to the tensors of the files; ModelError if that is impossible."""
        from transformers.core_model_loading import revert_weight_conversion

        if not group.is_converted:
            return dict.fromkeys(group.names, parameters[group.target])
        prefix = f"{self.lm.base_model_prefix}."
        found: dict[str, Tensor] = {}
        for name, tensor in revert_weight_conversion(self.lm, parameters).items():
            spellings = (name, name.removeprefix(prefix), prefix + name)
            found[next((s for s in spellings if s in group.patterns), name)] = tensor
        wrong = sorted(found.keys() ^ group.patterns.keys()) or [
            name for name, tensor in found.items() if tuple(tensor.shape) != self.files.shapes[name]
        ]
        if wrong:
            raise ModelError(f"the parameter {group.target} cannot be converted back to {wrong[0]}")
        return found

    def aliases(self, name: str) -> set[str]:
        """All names of a parameter, including those that the model ties to it."""
        ties: dict[str, str] = getattr(self.lm, "all_tied_weights_keys", {})
        source = ties.get(name, name)
        return {source, *(target for target, of in ties.items() if of == source)}

    def trained_as(self, name: str) -> tuple[list[str], str, str]:
        """Names under which a parameter may have been trained: its own and its ties', and LoRA's A and B."""
        module = name.removesuffix(".weight")
        return sorted(self.aliases(name)), f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight"

    def require_exportable(self, trained: Iterable[str]) -> None:
        """ModelError if a trainable parameter has no tensor in the files: an export would lose it."""
        placed = {
            name
            for group in self.groups
            for parameter in group.shapes
            for full, down, up in [self.trained_as(parameter)]
            for name in (*full, down, up)
        }
        if left := sorted(set(trained) - placed):
            raise UnsupportedBackboneError(
                Unsupported.NOT_EXPORTABLE,
                f"{_some(left)} of {type(self.lm).__name__} could be trained but not exported: no tensor in "
                f"{self.files.folder} belongs to it. Set model.finetune to head, or use another backbone",
            )

    def repeats(self, group: Group) -> bool:
        """Whether a group is a tied weight's second copy."""
        source = getattr(self.lm, "all_tied_weights_keys", {}).get(group.target)
        return source in self.parameters

    def fingerprint(self) -> str:
        """SHA-256 over name, shape and 64 values, evenly spaced, of every tensor that a parameter uses.

        Cheap at any size. The same weights in other files or in a wider dtype have the same; another model of the
        architecture has another. A model that differs in a few values only may not.
        """
        digest = hashlib.sha256()
        for group in self.groups:
            if self.repeats(group):
                continue
            digest.update(group.target.encode())
            for tensor in self.files.read(group.names).values():
                flat = tensor.flatten()
                values = flat[:: max(1, len(flat) // _SAMPLED_VALUES)].float().contiguous()
                digest.update(f"{tuple(tensor.shape)}".encode() + values.numpy().tobytes())
        return digest.hexdigest()

    def differing_ties(self) -> list[tuple[str, str]]:
        """Pairs of tensors that the configuration ties but that differ in the files."""
        names = {group.target: group.names[-1] for group in self.groups if not group.is_converted}
        ties: dict[str, str] = getattr(self.lm, "all_tied_weights_keys", {})
        pairs = [(names[a], names[b]) for a, b in ties.items() if a in names and b in names]
        return [(a, b) for a, b in pairs if not self.files.equal(a, b)]

    def require_complete(self) -> None:
        """ModelError naming the parameters that are missing in the files or have another shape there."""
        optional = [re.compile(p) for p in getattr(self.lm, "_keys_to_ignore_on_load_missing", None) or []]
        missing = [
            name
            for name in self.state
            if not self.parameters.keys() & self.aliases(name) and not any(p.search(name) for p in optional)
        ]
        wrong = [
            f"{name} is {shape}, expected {tuple(self.state[name].shape)}"
            for name, shape in self.parameters.items()
            if name in self.state and shape != tuple(self.state[name].shape)
        ]
        if missing:
            raise UnsupportedBackboneError(
                Unsupported.MISSING_WEIGHTS,
                f"{self.files.folder} has no weights for {_some(missing)} of {type(self.lm).__name__}; they would "
                f"be initialised randomly{self._remedy(missing)}",
            )
        if wrong:
            raise ModelError(
                f"{self.files.folder}: {_some(wrong)}; weight files and config.json are of different models"
            )

    def _remedy(self, missing: list[str]) -> str:
        """A remedy, from the tensors that no parameter uses."""
        prefix = os.path.commonprefix(self.unused).rpartition(".")[0] + "."  # noqa: RUF071 (names, not paths)
        if self.unused and all(name.removeprefix(prefix) in self.state for name in self.unused):
            return f". All names in the files start with {prefix!r}: save them without it"
        head = [n for n in self.unused if n.split(".")[0] in ("score", "classifier", "classification_head", "v_head")]
        if head:
            return (
                f". The files are of a classifier or reward model ({head[0]}) without LM head: name the causal "
                "language model that it was trained from"
            )
        if any("lora_" in name for name in self.unused):
            return ". The files contain unmerged LoRA layers: call merge_and_unload, then save_pretrained"
        if len(missing) == 1 and "lm_head" in missing[0]:
            return '. If its head is tied to the embedding, set "tie_word_embeddings": true in config.json'
        return (
            f" (the files also have {_some(self.unused)}, which no parameter uses); download them again"
            if self.unused
            else ""
        )

    def require_reversible(self) -> None:
        """ModelError if a group's conversion cannot be reversed, which makes an export impossible."""
        for group in self.groups:
            if not group.is_converted:
                continue
            try:
                self.to_files(group, self.to_parameters(group, self._on_meta(group)))
            except Exception as error:
                raise UnsupportedBackboneError(
                    Unsupported.NOT_EXPORTABLE,
                    f"{type(self.lm).__name__} could be trained but not exported: {first_line(error)}. Set "
                    "model.finetune to head, or use another backbone",
                ) from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
