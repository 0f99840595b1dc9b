"""From a sharded training checkpoint to a plain Hugging Face folder.

1. The trained weights are merged into the base's files (:mod:`clsgen_dist.hf_export.merge`), or LoRA adapters are
   written alone (:mod:`clsgen_dist.hf_export.adapters`).
2. The base's configuration and tokenizer are copied (:mod:`clsgen_dist.hf_export.config_files`).
3. The classification head is written into its own folder.
4. The result is reloaded and verified (:mod:`clsgen_dist.hf_export.verify`), then renamed to the output folder.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clsgen_dist import checkpoint
from clsgen_dist.config import Settings, settings_from_yaml
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import CheckpointError, SettingsError
from clsgen_dist.hf_export.adapters import peft_tensors, write_adapters
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint, require_replaceable
from clsgen_dist.hf_export.config_files import copy_small_files, write_chat_template, write_config
from clsgen_dist.hf_export.fold import fold as fold_head
from clsgen_dist.hf_export.fold import require_foldable
from clsgen_dist.hf_export.merge import Merge, trained_tensors, write_shards
from clsgen_dist.hf_export.readme import write_readme
from clsgen_dist.hf_export.verify import LogitsDifferError, verify_canary, verify_shapes, write_evidence
from clsgen_dist.model.backbone import Backbone, backbone_path, open_backbone
from clsgen_dist.model.classification_head import head_affine
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.model.weight_files import WeightMap
from clsgen_dist.objectives.class_weights import distortions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is exported, and how."""

    source: Path
    """The checkpoint's folder."""
    settings: Settings
    marker: dict[str, Any]
    max_shard_bytes: int
    merge: bool
    verify_logits: bool


def export(
    checkpoint_path: str | Path,
    output: str | Path,
    *,
    max_shard_bytes: int = 5 * 10**9,
    verify_logits: bool = True,
    interpolation: float = 1.0,
    fold: bool = False,
    merge: bool = True,
) -> Path:
    """Export a checkpoint to a plain Hugging Face folder with the classification head beside it.

    Cost: the base's files are read and written once, one group of tensors at a time; verification holds the model in
    memory. A failed verification of the logits is tried a second time, and leaves diagnostics in
    ``OUTPUT.differed.json`` beside ``output``.

    Args:
        checkpoint_path: a checkpoint's folder, or a run's: its best checkpoint, else the newest valid one.
        output: folder to write, which may exist if it is empty or an earlier export: that is replaced.
        max_shard_bytes: largest size of one ``model*.safetensors``, in bytes.
        verify_logits: reload the result, and compare its losses on a fixed text with the trained model's.
        interpolation: share of the way from the backbone's weights to the trained ones, above 0 and up to 1. Below 1,
            more of the backbone's language is kept, and probabilities need calibration anew. The whole change is
            written and verified first.
        fold: also put the classification head into the LM head (:mod:`clsgen_dist.hf_export.fold`).
        merge: add LoRA's update to the weights; False: write the adapters alone, in peft's format
            (:mod:`clsgen_dist.hf_export.adapters`).

    Returns:
        ``output``: ``config.json``, weights and tokenizer in the base's layout; the head as ``weight [C, D]`` and
        ``bias [C]`` in fp32, for C classes and D hidden units; ``clsgen.json``. Without ``merge``, adapters in the
        place of configuration and weights.

    Raises:
        CheckpointError: no valid checkpoint.
        ModelError: ``output`` exists and is not an earlier export, the weights do not match the architecture, or
            verification failed; nothing is written to ``output`` then.
        SettingsError: the interpolation is out of range; or ``merge`` is False with ``fold``, an interpolation, or a
            run without adapters.
    """
    if not 0 < interpolation <= 1:
        raise SettingsError(
            f"--interpolation is {interpolation:g}, expected a share above 0 and up to 1; 1 exports the trained weights"
        )
    output = Path(output)
    source = _find_checkpoint(Path(checkpoint_path))
    marker = checkpoint.verify(source)
    settings = settings_from_yaml((source / checkpoint.SETTINGS_FILE).read_text())
    if not merge:
        _require_adapters_alone(source, settings.model.finetune, interpolation, fold)
    require_replaceable(output)
    if fold:
        require_foldable(source, marker["identity"]["decide"])
    partial = output.with_name(f".{output.name}.partial")
    job = _Job(
        source=source,
        settings=settings,
        marker=marker,
        max_shard_bytes=max_shard_bytes,
        merge=merge,
        verify_logits=verify_logits,
    )
    try:
        _write_with_retry(job, partial, output.with_name(f"{output.name}.differed.json"))
        if interpolation != 1:
            _write(job, partial, interpolation)
        if fold:
            folded = fold_head(partial, partial.with_name(f"{partial.name}.folded"))
            shutil.rmtree(partial)
            folded.rename(partial)
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("exported %s to %s", source, output)
    return output


def _require_adapters_alone(source: Path, finetune: str, interpolation: float, fold: bool) -> None:
    """SettingsError if a checkpoint cannot be exported without merging."""
    if finetune != "lora":
        raise SettingsError(
            f"--merge is false, and {source} was trained with model.finetune={finetune}, expected lora: there are no "
            "adapters; leave --merge out"
        )
    if fold:
        raise SettingsError(
            "--merge is false and --fold is true, but the folded head is rows of merged weights; drop one of the two"
        )
    if interpolation != 1:
        raise SettingsError(
            f"--merge is false and --interpolation is {interpolation:g}, but adapters are exported as they were "
            "trained; drop one of the two"
        )


def _write_with_retry(job: _Job, folder: Path, evidence: Path) -> None:
    """Write and verify; if the logits differ, write diagnostics to ``evidence``, and try once more.

    Logits differed twice on busy machines, cause unknown: off by 9e-4 once, correct in every later export.
    """
    try:
        _write_and_verify(job, folder)
    except LogitsDifferError as error:
        opened = _open(job)
        write_evidence(evidence, folder, opened.base, opened.tensors_again(job.merge), job.marker["canary"], error)
        logger.warning("%s: exporting again; diagnostics are in %s", error, evidence)
    else:
        return
    _write_and_verify(job, folder)


def _write_and_verify(job: _Job, folder: Path) -> None:
    """Write the export anew into ``folder``, and verify it; LogitsDifferError, ModelError."""
    _write(job, folder)
    if job.verify_logits:
        verify_canary(folder, job.marker["canary"], in_4bit=job.settings.model.load_in_4bit)
    else:
        logger.info("logits not verified (--verify_logits false)")


def _find_checkpoint(path: Path) -> Path:
    if (path / checkpoint.MARKER).is_file():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = checkpoint.newest_valid(root)
    if found is None:
        raise CheckpointError(f"{path} has no valid checkpoint; name a run's output_dir or a checkpoint's folder")
    best = checkpoint.read_marker(found)["state"]["best_step"]
    return root / checkpoint.folder_name(best) if best is not None else found


def _write(job: _Job, folder: Path, interpolation: float = 1.0) -> None:
    """Write all files anew into ``folder``, readable by all; ModelError if the tensors do not fit the architecture."""
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    opened = _open(job, interpolation)
    card = _card(job, opened, interpolation)
    if job.merge:
        write_shards(folder, opened.weights, opened.merge, job.max_shard_bytes)
        write_config(folder, opened.base, card.labels)
        verify_shapes(folder)
    else:
        write_adapters(folder, opened.base, opened.trained, job.settings.model)
    copy_small_files(folder, Path(opened.base.path))
    if card.prompt and (template := card.prompt.get("template")):
        write_chat_template(folder, template)
    (folder / HEAD_FILE).parent.mkdir()
    save_file(opened.head, folder / HEAD_FILE, metadata={"format": "pt"})
    card.write(folder)
    write_readme(folder, card)
    for file in (f for f in folder.rglob("*") if f.is_file()):
        file.chmod(0o644)  # safetensors writes files that only their owner can read


def _card(job: _Job, opened: _Opened, interpolation: float) -> ModelCard:
    """The content of ``clsgen.json``."""
    settings, marker, identity = job.settings, job.marker, job.marker["identity"]
    labels = LabelSpace.of(identity["labels"], settings.data.positive_label, identity["label_space"])
    return ModelCard(
        labels=list(labels.names),
        label_space=labels.kind,
        positive_label=labels.positive,
        decide=identity["decide"],
        system=settings.prompt.system,
        question=settings.prompt.question,
        prompt=marker.get("prompt") or None,
        max_prompt_length=settings.data.max_prompt_length,
        max_explanation_length=settings.data.max_explanation_length,
        head_sha256=head_fingerprint(opened.head["weight"], opened.head["bias"]),
        trained={
            "backbone": settings.model.backbone,
            "finetune": settings.model.finetune,
            "step": marker["state"]["step"],
            "rows": identity["rows"],
            "seed": settings.seed,
            **({"interpolation": interpolation} if interpolation != 1 else {}),
        },
        decoding=asdict(settings.decoding) if settings.decoding != DecodingSettings() else None,
        distorted_by=distortions(settings.objectives, labels.kind, balanced=settings.data.sampling == "balanced"),
        base_fingerprint=None if job.merge else opened.weights.fingerprint(),
    )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A checkpoint's trained tensors and their base."""

    base: Backbone
    weights: WeightMap
    """Of the base."""
    trained: dict[str, Any]
    """By the LM's parameter names."""
    merge: Merge
    head: dict[str, Tensor]
    """The classification head's ``weight [K, D]`` and ``bias [K]``."""

    def tensors_again(self, merge: bool) -> Iterator[dict[str, Tensor]]:
        """What the export's weight files should hold, by name."""
        if merge:
            yield from map(self.merge.tensors, self.merge.groups())
        else:
            yield peft_tensors(self.trained)


def _open(job: _Job, interpolation: float = 1.0) -> _Opened:
    settings, identity = job.settings, job.marker["identity"]
    base = open_backbone(backbone_path(settings.model.backbone))
    assert base.weights is not None
    tensors = trained_tensors(job.source)
    weight, bias = (tensors[f"classification_head.{name}"].contiguous().float() for name in ("weight", "bias"))
    weight_KD, bias_K = head_affine(weight, bias, identity["label_space"])
    if correction := identity["bias_correction"]:
        bias_K = bias_K + bias_K.new_tensor(correction)
    trained = {name.removeprefix("lm."): tensor for name, tensor in tensors.items() if name.startswith("lm.")}
    scale = settings.model.lora_alpha / settings.model.lora_rank
    return _Opened(
        base=base,
        weights=base.weights,
        trained=trained,
        merge=Merge(trained, base.weights, scale, interpolation),
        head={"weight": weight_KD.contiguous(), "bias": bias_K.contiguous()},
    )
