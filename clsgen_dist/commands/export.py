"""``clsgen export``."""

from __future__ import annotations


def run(
    checkpoint: str,
    output: str,
    max_shard_size: str = "5GB",
    verify_logits: bool = True,
    interpolation: float = 1.0,
    fold: bool = False,
    merge: bool = True,
    push_to_hub: str | None = None,
    private: bool = False,
) -> None:
    """Turn a training checkpoint into a plain Hugging Face folder with its classification head, and verify it.

    Args:
        checkpoint: A run's output_dir (its best checkpoint is taken) or a checkpoint's folder.
        output: Folder to write.
        max_shard_size: Largest weight file, like 5GB or 500MB.
        verify_logits: Reload the result and compare its logits with the trained model's (in memory).
        interpolation: Share of the way from the backbone's weights to the trained ones; below 1, more language is kept.
        fold: Put the classification head into the LM head too, for engines such as vLLM; `checkpoint` may be an export.
        merge: Merge LoRA into the weights; false: write the adapters alone, in peft's format.
        push_to_hub: Upload the verified export to this repository of the Hugging Face hub, like organisation/model.
        private: Make that repository private.
    """
    from pathlib import Path

    from clsgen_dist.errors import SettingsError
    from clsgen_dist.hf_export.artifact import META_FILE
    from clsgen_dist.hf_export.export import export
    from clsgen_dist.hf_export.fold import fold as fold_head
    from clsgen_dist.hf_export.hub import push, require_hub

    if push_to_hub is not None:
        require_hub(push_to_hub)
    elif private:
        raise SettingsError("--private is true without --push_to_hub, so nothing is uploaded; name a repository there")
    if fold and (Path(checkpoint) / META_FILE).is_file():
        fold_head(checkpoint, output)
    else:
        export(
            checkpoint,
            output,
            max_shard_bytes=_bytes(max_shard_size),
            verify_logits=verify_logits,
            interpolation=interpolation,
            fold=fold,
            merge=merge,
        )
    if push_to_hub is not None:
        push(Path(output), push_to_hub, private=private)


def _bytes(size: str) -> int:
    from clsgen_dist.errors import SettingsError

    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = size[:-2], size[-2:].upper()
    if unit not in units or not number.strip().isdigit():
        raise SettingsError(f"--max_shard_size is {size!r}, expected a number and a unit, like 5GB or 500MB")
    return int(number) * units[unit]
