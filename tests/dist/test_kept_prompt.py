"""A run keeps the prompt of its first start, even if the template contains the time of day."""

from __future__ import annotations

import shutil

import pytest

from clsgen_dist import checkpoint
from clsgen_dist.hf_export.export import export
from clsgen_dist.inference.predict import Predictor

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def clock(tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clock") / "llama"
    shutil.copytree(tiny_backbone, folder)
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%H:%M:%S.%f') + '\n' }}" + template.read_text())
    return folder


def test_resume_export_and_predict_use_the_prompt_of_the_first_start(clock, train, tmp_path):
    run, options = tmp_path / "run", {"model__backbone": clock, "model__finetune": "head"}
    train(run, ranks=1, train__max_steps=2, **options)
    first, second = (checkpoint.folder_name(step) for step in (2, 4))
    prompt = checkpoint.read_marker(run / "checkpoints" / first)["prompt"]
    train(run, ranks=1, resume="auto", train__max_steps=4, **options)
    assert checkpoint.read_marker(run / "checkpoints" / second)["prompt"] == prompt
    export(run, tmp_path / "model")
    rendered = Predictor(tmp_path / "model").encoder.rendered
    assert (rendered.prefix, rendered.prefix_ids) == (prompt["prefix"], prompt["prefix_ids"])


def test_a_prompt_length_beyond_the_context_is_refused_before_reading_rows(train, tmp_path):
    done = train(tmp_path / "run", ranks=1, check=False, data__train="nowhere.jsonl", data__max_prompt_length=2048)
    assert done.returncode == 2
    assert "the backbone's context length is 2048; lower data.max_prompt_length to" in done.stdout
