"""Which runs keep what their frozen layers give, and which sequences those are."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import transformers

from clsgen_dist import checkpoint
from clsgen_dist.checkpoint.state import TrainState
from clsgen_dist.config import parse_settings
from clsgen_dist.data.curriculum.stages import RunOrder, Stage, plan_stages, quantiles
from clsgen_dist.data.loader import TrainStream
from clsgen_dist.data.pack import Sample
from clsgen_dist.data.tables.state_cache import StateCache
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.attention import register_per_sequence_attention
from clsgen_dist.model.backbone import build_model, layer_stack
from clsgen_dist.model.classification_head import HeadSpec
from clsgen_dist.model.dual_head import LossSpec
from clsgen_dist.model.frozen_layers import FrozenLayers, first_that_learns
from clsgen_dist.training import frozen_cache, prepare
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
    is_main, rank, size = True, 0, 1

    def barrier(self):
        pass

    def gather(self, value):
        return [value]

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


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_tight_disk_turns_auto_off_and_on_is_refused(mode, monkeypatch, tmp_path, caplog):
    """A run that trains without kept states trains with auto too, and what an earlier start kept makes room."""
    folder = tmp_path / frozen_cache.FOLDER
    StateCache.create(folder, "key", np.array([10]))

    def attach(engine, stream, backbone, settings, sample, world, reserve):
        _open(folder, world, "key", np.array([10]), reserve)

    monkeypatch.setattr(frozen_cache, "_attach", attach)
    monkeypatch.setattr(frozen_cache, "checkpoints_to_come", lambda *_, **__: (10**15, 2))
    settings = _settings(f"--train.cache_frozen={mode}", f"--output_dir={tmp_path}")
    engine = SimpleNamespace(module=SimpleNamespace(frozen_layers="some"))

    def start(steps):
        frozen_cache.attach_frozen_states(engine, None, None, settings, None, _Alone(), steps=steps, evaluates=True)

    start(0)  # a run that is over needs no room
    assert engine.module.frozen_layers == "some" and folder.exists()
    if mode == "on":
        with pytest.raises(SettingsError, match=r"cache_frozen is on, but .* and checkpoints 2.04e\+06 GB beside it"):
            start(5)
        assert folder.exists()
    else:
        with caplog.at_level("INFO"):
            start(5)
        assert "No space left on device" in caplog.text and not folder.exists()
    assert engine.module.frozen_layers is None


@pytest.mark.parametrize("wrong_writes", [1, 2])
def test_what_was_filled_is_checked_and_filled_once_more(wrong_writes, monkeypatch, tmp_path):
    sizes = np.array([8, 8, 8])
    StateCache.create(tmp_path / "states", "key", sizes)
    cache, asked = StateCache(tmp_path / "states", sizes), []

    def compute(engine, world, rows, cache, visited, form, budget, missing_E):
        asked.append(missing_E.tolist())
        for entry in missing_E:
            cache.write(entry, np.full(8, entry, dtype=np.uint8))
        if len(asked) <= wrong_writes:
            cache._states[9] ^= 1  # after its sum was taken

    monkeypatch.setattr(frozen_cache, "_compute", compute)
    visited = SimpleNamespace(key_E=np.arange(3))
    engine = SimpleNamespace(eval=lambda: None, train=lambda: None)
    if wrong_writes == 1:
        frozen_cache._fill(engine, _Alone(), None, cache, visited, None, 1)
    else:
        with pytest.raises(Unusable, match=r"1 of the sequences in .* are not whole after 2 writes; check its disk"):
            frozen_cache._fill(engine, _Alone(), None, cache, visited, None, 1)
    assert asked == [[0, 1, 2], [1]]


def test_a_run_that_stopped_early_has_no_steps_left(monkeypatch, tmp_path):
    settings = _settings("--train.early_stop_patience=2", "--train.best_metric=auroc")
    monkeypatch.setattr(prepare, "total_steps", lambda *_: 30)
    stream, dev = SimpleNamespace(stages=[], steps=30), SimpleNamespace(fingerprint="rows")
    by = checkpoint.best_by("auroc", "rows")

    def left(**state):
        marker = {"state": dataclasses.asdict(TrainState(**state))}
        monkeypatch.setattr(checkpoint, "read_marker", lambda _: marker)
        return prepare._steps_left(settings, stream, dev, tmp_path)

    assert prepare._steps_left(settings, stream, dev, None) == 30
    assert left(step=10, best_by=by, evaluations_without_gain=1) == 20
    assert left(step=10, best_by=by, evaluations_without_gain=2) == 0
    assert left(step=10, best_by="another metric", evaluations_without_gain=2) == 20
    assert left(step=30, best_by=by) == 0
