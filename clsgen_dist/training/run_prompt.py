"""The prompt of a run: rendered at its first start, and the checkpoint's ever after."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from clsgen_dist import checkpoint
from clsgen_dist.data.prompt import RenderedPrompt, render_prompt, saved_prompt
from clsgen_dist.data.settings import PromptSettings
from clsgen_dist.engine.world import World
from clsgen_dist.errors import CheckpointError


def prompt_of_run(settings: PromptSettings, tokenizer: Any, resume_from: Path | None, world: World) -> RenderedPrompt:
    """The run's prompt; collective.

    Raises:
        SettingsError, ModelError: it cannot be rendered.
        CheckpointError: the checkpoint to resume from was trained with another.
    """
    wanted = asdict(settings)
    if resume_from is None:
        # Of one rank: another may come after midnight.
        rendered: RenderedPrompt = world.broadcast(render_prompt(tokenizer, **wanted))
        return rendered
    kept = checkpoint.read_marker(resume_from).get("prompt")
    if kept and (changes := RenderedPrompt.from_json(kept).changes(**wanted)):
        raise CheckpointError(
            f"{resume_from} was trained with another prompt: {'; '.join(changes)}. Restore it, or start a new run with "
            "another output_dir"
        )
    return saved_prompt(kept, tokenizer, system=settings.system, question=settings.question)
