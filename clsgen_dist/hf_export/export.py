"""From a sharded training checkpoint to a plain Hugging Face folder.

1. The trained weights are merged into the base's files (:mod:`clsgen_dist.hf_export.merge`).
2. The base's configuration and tokenizer are copied (:mod:`clsgen_dist.hf_export.config_files`).
3. The classification head is written into its own folder.
4. The result is reloaded and verified (:mod:`clsgen_dist.hf_export.verify`), then renamed to the output folder.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from clsgen_dist import checkpoint
from clsgen_dist.config import Settings, settings_from_yaml
from clsgen_dist.decoding.settings import DecodingSettings
from clsgen_dist.errors import CheckpointError, SettingsError
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
from clsgen_dist.objectives.class_weights import distortions

logger = logging.getLogger(__name__)


def export(
    checkpoint_path: str | Path,
    output: str | Path,
    *,
    max_shard_bytes: int = 5 * 10**9,
    verify_logits: bool = True,
    interpolation: float = 1.0,
    fold: bool = False,
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

    Returns:
        ``output``: ``config.json``, weights and tokenizer in the base's layout; the head as ``weight [C, D]`` and
        ``bias [C]`` in fp32, for C classes and D hidden units; ``clsgen.json``.

    Raises:
        CheckpointError: no valid checkpoint.
        ModelError: ``output`` exists and is not an earlier export, the weights do not match the architecture, or
            verification failed; nothing is written to ``output`` then.
        SettingsError: the interpolation is out of range.
    """
    if not 0 < interpolation <= 1:
        raise SettingsError(
            f"--interpolation is {interpolation:g}, expected a share above 0 and up to 1; 1 exports the trained weights"
        )
    output = Path(output)
    source = _find_checkpoint(Path(checkpoint_path))
    marker = checkpoint.verify(source)
    settings = settings_from_yaml((source / checkpoint.SETTINGS_FILE).read_text())
    require_replaceable(output)
    if fold:
        lm = open_backbone(backbone_path(settings.model.backbone), weights=False).meta
        require_foldable(source, marker["identity"]["decide"], lm)
    partial = output.with_name(f".{output.name}.partial")
    write = functools.partial(_write_and_verify, source, partial, settings, marker, max_shard_bytes, verify_logits)
    try:
        _retry_with_diagnostics(
            write, source, partial, settings, marker, output.with_name(f"{output.name}.differed.json")
        )
        if interpolation != 1:
            _write(source, partial, settings, marker, max_shard_bytes, interpolation)
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


def _write_and_verify(
    source: Path, folder: Path, settings: Settings, marker: dict[str, Any], max_shard_bytes: int, verify_logits: bool
) -> None:
    """Write the export anew into ``folder``, and verify it; LogitsDifferError, ModelError."""
    _write(source, folder, settings, marker, max_shard_bytes)
    if verify_logits:
        verify_canary(folder, marker["canary"])
    else:
        logger.info("logits not verified (--verify_logits false)")


def _retry_with_diagnostics(
    write: Callable[[], None], source: Path, folder: Path, settings: Settings, marker: dict[str, Any], evidence: Path
) -> None:
    """``write``; if the logits differ, write diagnostics to ``evidence``, and try once more.

    Logits differed twice on busy machines, cause unknown: off by 9e-4 once, correct in every later export.
    """
    try:
        write()
    except LogitsDifferError as error:
        base, merge, _ = _open(source, settings, marker["identity"])
        write_evidence(evidence, folder, base, merge, marker["canary"], error)
        logger.warning("%s: exporting again; diagnostics are in %s", error, evidence)
    else:
        return
    write()


def _find_checkpoint(path: Path) -> Path:
    if (path / checkpoint.MARKER).is_file():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = checkpoint.newest_valid(root)
    if found is None:
        raise CheckpointError(f"{path} has no valid checkpoint; name a run's output_dir or a checkpoint's folder")
    best = checkpoint.read_marker(found)["state"]["best_step"]
    return root / checkpoint.folder_name(best) if best is not None else found


def _write(
    source: Path,
    folder: Path,
    settings: Settings,
    marker: dict[str, Any],
    max_shard_bytes: int,
    interpolation: float = 1.0,
) -> None:
    """Write all files anew into ``folder``, readable by all; ModelError if the tensors do not fit the architecture."""
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    identity = marker["identity"]
    base, merge, head = _open(source, settings, identity, interpolation)
    assert base.weights is not None
    write_shards(folder, base.weights, merge, max_shard_bytes)
    labels = LabelSpace.of(identity["labels"], settings.data.positive_label, identity["label_space"])
    write_config(folder, base, list(labels.names))
    copy_small_files(folder, Path(base.path))
    prompt = marker.get("prompt") or {}
    if template := prompt.get("template"):
        write_chat_template(folder, template)
    (folder / HEAD_FILE).parent.mkdir()
    save_file(head, folder / HEAD_FILE, metadata={"format": "pt"})
    card = ModelCard(
        labels=list(labels.names),
        label_space=labels.kind,
        positive_label=labels.positive,
        decide=identity["decide"],
        system=settings.prompt.system,
        question=settings.prompt.question,
        prompt=prompt or None,
        max_prompt_length=settings.data.max_prompt_length,
        max_explanation_length=settings.data.max_explanation_length,
        head_sha256=head_fingerprint(head["weight"], head["bias"]),
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
    )
    card.write(folder)
    write_readme(folder, card)
    verify_shapes(folder)
    for file in (f for f in folder.rglob("*") if f.is_file()):
        file.chmod(0o644)  # safetensors writes files that only their owner can read


def _open(
    source: Path, settings: Settings, identity: dict[str, Any], interpolation: float = 1.0
) -> tuple[Backbone, Merge, dict[str, Tensor]]:
    """The base, the merge of its trained weights, and the classification head's weight ``[K, D]`` and bias ``[K]``."""
    base = open_backbone(backbone_path(settings.model.backbone))
    assert base.weights is not None
    tensors = trained_tensors(source)
    weight, bias = (tensors[f"classification_head.{name}"].contiguous().float() for name in ("weight", "bias"))
    weight_KD, bias_K = head_affine(weight, bias, identity["label_space"])
    if correction := identity["bias_correction"]:
        bias_K = bias_K + bias_K.new_tensor(correction)
    head = {"weight": weight_KD.contiguous(), "bias": bias_K.contiguous()}
    trained = {name.removeprefix("lm."): tensor for name, tensor in tensors.items() if name.startswith("lm.")}
    merge = Merge(trained, base.weights, settings.model.lora_alpha / settings.model.lora_rank, interpolation)
    return base, merge, head
