"""Where the classification head starts: at an exported model's own head where the classes are the same."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from clsgen_dist.config import settings_from_yaml
from clsgen_dist.errors import ModelError
from clsgen_dist.hf_export.artifact import HEAD_FILE, ModelCard, read_head
from clsgen_dist.model.classification_head import ClassificationHead, ClassLoss
from clsgen_dist.model.label_space import LabelSpace
from clsgen_dist.training.head_start import head_start
from tests.inference.conftest import hand_made_export


def start(folder, labels, *, correction=None, decide="before", init="auto", question="Why?", template=None):
    settings = settings_from_yaml(
        f"""
        output_dir: unused
        data: {{train: unused, labels: [a, b]}}
        prompt: {{question: "{question}", chat_template: {json.dumps(template)}}}
        model: {{backbone: {folder}, decide: {decide}, head_init: {init}}}
        """
    )
    loss = ClassLoss(kind=labels.kind, bias_correction=correction)
    return head_start(settings, folder, labels, loss, [5, 6, 7][: len(labels)], None)


def head_of(spec):
    return ClassificationHead(spec.initial_weight(None, 32), 0.0, spec.initial_bias(), spec.kind)


@pytest.mark.parametrize("kind", ["single", "multilabel", "ordinal"])
def test_an_export_goes_on_with_its_own_head(tmp_path, kind):
    folder = hand_made_export(tmp_path, ["low", "mid", "high"], kind)
    head = head_of(start(folder, LabelSpace.of(["low", "mid", "high"], "high", kind)))
    weight_KD, bias_K = read_head(folder, ModelCard.read(folder))
    for got, expected in zip(head.affine(), (weight_KD, bias_K), strict=True):
        torch.testing.assert_close(got.detach(), expected, rtol=1e-6, atol=1e-6)


def test_what_is_added_outside_training_is_taken_off_so_that_the_logits_stay(tmp_path):
    folder = hand_made_export(tmp_path, ["no", "yes"])
    head = head_of(start(folder, LabelSpace.of(["no", "yes"], "yes"), correction=(0.25, -1.5)))
    _, bias_K = read_head(folder, ModelCard.read(folder))
    torch.testing.assert_close(head.bias.detach() + torch.tensor([0.25, -1.5]), bias_K)


@pytest.mark.parametrize(
    ("labels", "kind", "decide", "reason"),
    [
        (["yes", "no"], "single", "before", "tells 'no', 'yes', not 'yes', 'no'"),
        (["no", "yes"], "multilabel", "before", "is single, and these labels are multilabel"),
        (["no", "yes"], "single", "after", "is read before the explanation"),
    ],
)
def test_a_head_that_does_not_fit_is_not_taken_and_the_log_says_why(tmp_path, caplog, labels, kind, decide, reason):
    folder = hand_made_export(tmp_path, ["no", "yes"])
    spec = start(folder, LabelSpace.of(labels, labels[-1], kind), decide=decide)
    assert spec.trained is None and spec.label_tokens == [5, 6]
    assert reason in caplog.text


def test_the_setting_chooses_another_start(tmp_path):
    folder, labels = hand_made_export(tmp_path, ["no", "yes"]), LabelSpace.of(["no", "yes"], "yes")
    assert start(folder, labels, init="label_tokens").label_tokens == [5, 6]
    zeros = start(folder, labels, init="zeros")
    assert zeros.trained is None and zeros.label_tokens is None


def test_another_prompt_is_warned_of(tmp_path, caplog):
    folder, labels = hand_made_export(tmp_path, ["no", "yes"]), LabelSpace.of(["no", "yes"], "yes")
    with caplog.at_level(logging.WARNING):
        start(folder, labels)
        assert not caplog.records
        start(folder, labels, question="Really?")
    assert "trained with another prompt: prompt.question was 'Why?' and is now 'Really?'" in caplog.text
    caplog.clear()
    start(folder, labels, template="{{ messages[0].content }}")
    assert "another prompt: prompt.chat_template was None" in caplog.text


def test_a_damaged_head_is_refused(tmp_path):
    folder = hand_made_export(tmp_path, ["no", "yes"])
    (folder / HEAD_FILE).unlink()
    with pytest.raises(ModelError, match="classification head"):
        start(folder, LabelSpace.of(["no", "yes"], "yes"))
