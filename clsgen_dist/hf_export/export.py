"""From a sharded training checkpoint to a plain Hugging Face folder.

1. The trained weights are merged into the base's files (:mod:`clsgen_dist.hf_export.merge`).
2. The base's configuration and tokenizer are copied (:mod:`clsgen_dist.hf_export.config_files`).
3. The classification head is written into its own folder.
4. The result is reloaded and verified (:mod:`clsgen_dist.hf_export.verify`), then renamed to the output folder.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from clsgen_dist import checkpoint
from clsgen_dist.config import Settings, settings_from_yaml
from clsgen_dist.errors import CheckpointError, ModelError
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, head_fingerprint
from clsgen_dist.hf_export.config_files import copy_small_files, write_chat_template, write_config, write_readme
from clsgen_dist.hf_export.merge import Merge, trained_tensors, write_shards
from clsgen_dist.hf_export.verify import LogitsDifferError, verify_canary, verify_shapes, write_evidence
from clsgen_dist.model.backbone import Backbone, backbone_path, open_backbone
from clsgen_dist.model.label_space import LabelSpace

logger = logging.getLogger(__name__)


def export(
    checkpoint_path: str | Path,
    output: str | Path,
    *,
    max_shard_bytes: int = 5 * 10**9,
    verify_logits: bool = True,
) -> Path:
    """Export a checkpoint folder, or a run's folder (its best checkpoint, else the newest valid one), to ``output``.

    Raises:
        CheckpointError: no valid checkpoint.
        ModelError: ``output`` exists and is not an earlier export, the weights do not match the architecture, or
            verification failed; nothing is written to ``output`` then.
    """
    output = Path(output)
    source = _find_checkpoint(Path(checkpoint_path))
    marker = checkpoint.verify(source)
    settings = settings_from_yaml((source / checkpoint.SETTINGS_FILE).read_text())
    if output.exists() and not (output / "clsgen.json").is_file() and any(output.iterdir()):
        raise ModelError(f"{output} exists and is not an exported model; choose another --output")
    partial = output.with_name(f".{output.name}.partial")

    def write() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(source, partial, settings, marker, max_shard_bytes)
        verify_shapes(partial)
        if verify_logits:
            verify_canary(partial, marker["canary"])
        else:
            logger.info("logits not verified (--verify_logits false)")

    try:
        try:
            write()
        except LogitsDifferError as error:
            # Happened twice on busy machines, cause unknown: off by 9e-4 once, correct in every later export.
            evidence = output.with_name(f"{output.name}.differed.json")
            base, merge, _ = _open(source, settings)
            write_evidence(evidence, partial, base, merge, marker["canary"], error)
            logger.warning("%s: exporting again; diagnostics are in %s", error, evidence)
            write()
        for file in (f for f in partial.rglob("*") if f.is_file()):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("exported %s to %s", source, output)
    return output


def _find_checkpoint(path: Path) -> Path:
    if (path / checkpoint.MARKER).is_file():
        return path
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = checkpoint.newest_valid(root)
    if found is None:
        raise CheckpointError(f"{path} has no valid checkpoint; name a run's output_dir or a checkpoint's folder")
    best = checkpoint.read_marker(found)["state"]["best_step"]
    return root / checkpoint.folder_name(best) if best is not None else found


def _write(source: Path, folder: Path, settings: Settings, marker: dict[str, Any], max_shard_bytes: int) -> None:
    from safetensors.torch import save_file

    base, merge, head = _open(source, settings)
    assert base.weights is not None
    write_shards(folder, base.weights, merge, max_shard_bytes)
    labels = LabelSpace.of(marker["identity"]["labels"], settings.data.positive_label)
    write_config(folder, base, list(labels.names))
    copy_small_files(folder, Path(base.path))
    prompt = marker.get("prompt") or {}
    if template := prompt.get("template"):
        write_chat_template(folder, template)
    (folder / HEAD_FILE).parent.mkdir()
    save_file(head, folder / HEAD_FILE, metadata={"format": "pt"})
    write_readme(folder, backbone=settings.model.backbone, labels=list(labels.names), head_file=HEAD_FILE)
    ModelCard(
        labels=list(labels.names),
        positive_label=labels.positive,
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
            "rows": marker["identity"]["rows"],
            "seed": settings.seed,
        },
    ).write(folder)


def _open(source: Path, settings: Settings) -> tuple[Backbone, Merge, dict[str, Tensor]]:
    """The base, the merge of its trained weights, and the classification head."""
    base = open_backbone(backbone_path(settings.model.backbone))
    assert base.weights is not None
    tensors = trained_tensors(source)
    head = {name: tensors[f"classification_head.{name}"].contiguous().detach().float() for name in ("weight", "bias")}
    trained = {name.removeprefix("lm."): tensor for name, tensor in tensors.items() if name.startswith("lm.")}
    merge = Merge(trained, base.weights, scale=settings.model.lora_alpha / settings.model.lora_rank)
    return base, merge, head
