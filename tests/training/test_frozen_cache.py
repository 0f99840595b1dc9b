"""Which runs keep what their frozen layers give, and which sequences those are."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import transformers

from clsgen_dist.config import parse_settings
from clsgen_dist.data.curriculum.stages import RunOrder, Stage, plan_stages, quantiles
from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.pack import Sample
from clsgen_dist.model.attention import register_per_sequence_attention
from clsgen_dist.model.backbone import build_model, layer_stack
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.frozen_layers import FrozenLayers, first_that_learns
from clsgen_dist.training.frozen_cache import Unusable, _key, _open, _width, require_possible, require_worthwhile
from clsgen_dist.training.visited_sequences import visited_sequences


def _settings(*flags):
    return parse_settings(list(flags), default_config="configs/demo.yaml")


@pytest.mark.parametrize(
    ("flags", "first", "why"),
    [
        (["--model.top_layers=null"], 0, "every layer learns .* set model.top_layers"),
        (["--model.finetune=full", "--model.top_layers=null"], 0, "every layer learns"),
        (["--data.stream_window=2"], 15, "rows are streamed"),
        (["--objectives.preference.weight=1"], 15, "objectives.preference puts other sequences beside"),
        (["--objectives.retention.weight=1", "--data.replay=x.jsonl"], 15, "objectives.retention puts other"),
        (["--objectives.evidence.weight=1", "--objectives.evidence.layers=[20,3]"], 15, "the layer 3, which is frozen"),
        (["--model.finetune=head", "--model.top_layers=null", "--objectives.consistency.weight=1",
          "--objectives.consistency.learns=head"], 30, "objectives.consistency reads more of the last states"),
    ],
)  # fmt: skip
def test_what_forbids_it_is_named(flags, first, why):
    with pytest.raises(Unusable, match=why):
        require_possible(_settings(*flags), layers=30, first=first)


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        ([], 15),
        (["--objectives.evidence.weight=1", "--objectives.evidence.layers=[-1,15]"], 15),
        (["--objectives.consistency.weight=1"], 15),
        (["--model.finetune=head", "--model.top_layers=null", "--model.decide=both",
          "--objectives.consistency_after.weight=0"], 30),
    ],
)  # fmt: skip
def test_what_does_not_forbid_it(flags, first):
    require_possible(_settings(*flags), layers=30, first=first)


def test_auto_asks_for_a_second_visit_and_both_for_room():
    train = SimpleNamespace(cache_frozen="auto", cache_frozen_gb=1.0)
    require_worthwhile(train, visits=101, sequences=100, size=10**9)
    with pytest.raises(Unusable, match=r"no sequence comes twice: 100 visits of 100 sequences; raise train.epochs"):
        require_worthwhile(train, visits=100, sequences=100, size=1)
    with pytest.raises(Unusable, match=r"have 1.2 GB, more than train.cache_frozen_gb 1; raise it to 1.21"):
        require_worthwhile(train, visits=101, sequences=100, size=1_200_000_000)
    train.cache_frozen = "on"
    require_worthwhile(train, visits=100, sequences=100, size=1)


def _stream(rows, stages, batch_size=8):
    planned = plan_stages(stages, rows=len(rows), batch_size=batch_size, epochs=1, max_steps=None)
    order = RunOrder(planned, quantiles(np.zeros(len(rows)), rows.label_N, "random", 0), seed=0)
    return TrainStream(rows, order, batch_size=batch_size, micro_batch_tokens=300, rank=0, world_size=1)


def test_the_sequences_of_a_run_are_those_that_its_steps_hold(row_dataset, mixed):
    """Rows with none to three explanations, in stages with shorter prompts: equal keys are equal tokens."""
    rows = row_dataset(mixed, labels=("no", "yes"))
    stages = [Stage(name="short", epochs=1.3, max_prompt_length=45), Stage(name="whole", epochs=3)]
    stream = _stream(rows, stages)
    for steps in (2, stream.steps):
        visited = visited_sequences(stream, rows, steps)
        by_key, visits = {}, 0
        for step in range(steps):
            limit = stream.stage_of(step).stage.max_prompt_length
            row_B, visit_B = stream.chosen(step)
            keys = rows.sequence_keys(row_B, visit_B, limit)
            for key, row, visit in zip(keys.tolist(), row_B.tolist(), visit_B.tolist(), strict=True):
                sample = rows.sample(row, visit, limit)
                tokens = (sample.prompt.tolist(), sample.explanation.tolist())
                assert by_key.setdefault(key, tokens) == tokens
                visits += 1
        assert visited.key_E.tolist() == sorted(by_key) and visited.visits == visits
        assert len({repr(tokens) for tokens in by_key.values()}) == len(by_key), "a sequence is kept twice"
        for at, key in enumerate(visited.key_E.tolist()):
            limit = int(visited.limit_E[at]) or None
            sample = rows.sample(int(visited.row_E[at]), int(visited.visit_E[at]), limit)
            assert (sample.prompt.tolist(), sample.explanation.tolist()) == by_key[key]
            assert visited.answer_E[at] == len(sample.explanation)
            assert visited.length_E[at] == len(sample.prompt) + len(sample.explanation)


def test_the_setting_is_a_word_in_a_recipe_too(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    text = _recipe()
    for word in ("on", "off", "auto"):
        recipe.write_text(text.replace("  epochs: 5\n", f"  epochs: 5\n  cache_frozen: {word}\n"))
        assert parse_settings([f"--config={recipe}"]).train.cache_frozen == word


def _recipe():
    from clsgen_dist.config import SHIPPED

    return (SHIPPED / "configs/demo.yaml").read_text()


class _Engine:
    """Of one process: calls what is to run inside."""

    def __init__(self, module):
        self.module = module.train()

    def __call__(self, inside):
        return inside(self.module)

    def eval(self):
        self.module.eval()

    def train(self):
        self.module.train()


def _mixtral(finetune, top_layers, noise):
    config = transformers.MixtralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=noise,
    )  # fmt: skip
    lm = transformers.MixtralForCausalLM._from_config(config, attn_implementation=register_per_sequence_attention())
    return build_model(lm, head=HeadSpec(2), losses=LossSpec("torch"), finetune=finetune, top_layers=top_layers)


@pytest.mark.parametrize(("finetune", "top_layers"), [("lora", 1), ("head", None)])
@pytest.mark.parametrize("noise", [0.1, 0.0])
def test_frozen_layers_that_are_random_in_training_are_refused(finetune, top_layers, noise):
    model = _mixtral(finetune, top_layers, noise)
    engine = _Engine(model)
    sample = Sample(np.arange(3, 12), np.arange(20, 24), 1)
    _, layers = layer_stack(model.lm)
    model.frozen_layers = FrozenLayers(layers, first_that_learns(layers))
    if noise:
        with pytest.raises(Unusable, match=r"MixtralForCausalLM gives other states in each training pass .two passes"):
            _width(engine, model.frozen_layers, sample)
    else:
        assert _width(engine, model.frozen_layers, sample) == 32
    assert model.training and model.lm.training


class _Alone:
    is_main = True

    def broadcast(self, value):
        return value


def test_a_disk_without_room_for_checkpoints_beside_it_is_refused(small_disk):
    sizes = np.array([100_000])
    with pytest.raises(Unusable, match=r"_states needs 0.0001 GB, and checkpoints 0.00025 GB beside it .No space"):
        _open(small_disk / "frozen_states", _Alone(), "key", sizes, 250_000)
    assert _open(small_disk / "frozen_states", _Alone(), "key", sizes, 1000).size == 100_000


def test_a_file_in_the_folders_place_is_said_to_be_one(tmp_path):
    (tmp_path / "frozen_states").write_text("")
    with pytest.raises(Unusable, match=r"frozen_states cannot be written \(Not a directory\); make it a folder"):
        _open(tmp_path / "frozen_states", _Alone(), "key", np.array([10]), 0)


def test_a_token_moved_across_the_text_is_another_prompt(row_dataset, mixed, tmp_path):
    rows = row_dataset(mixed, labels=("no", "yes"))
    visited = visited_sequences(_stream(rows, [Stage(name="all", epochs=1)]), rows, 2)
    model = _mixtral("lora", 1, 0.0)
    _, layers = layer_stack(model.lm)
    model.frozen_layers = FrozenLayers(layers, 1)
    backbone = SimpleNamespace(path=tmp_path)
    key = _key(model, rows, backbone, visited)
    assert key == _key(model, rows, backbone, visited)
    prompt, encoder = rows.encoder.rendered, rows.encoder
    moved = dataclasses.replace(
        prompt, prefix_ids=prompt.prefix_ids[:-1], suffix_ids=[prompt.prefix_ids[-1], *prompt.suffix_ids]
    )
    before = rows.fingerprint
    encoder.rendered = moved
    encoder._prefix, encoder._suffix = (np.array(ids, dtype=np.int32) for ids in (moved.prefix_ids, moved.suffix_ids))
    try:
        assert rows.fingerprint == before and _key(model, rows, backbone, visited) != key
    finally:
        encoder.rendered = prompt
        encoder._prefix, encoder._suffix = (np.array(i, dtype=np.int32) for i in (prompt.prefix_ids, prompt.suffix_ids))
