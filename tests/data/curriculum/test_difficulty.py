"""Difficulty: the scorers, combined by rank within each class, computed once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clsgen_dist.data.curriculum import difficulty
from clsgen_dist.errors import DataError
from clsgen_dist.training.backbone_scores import difficulty_scores, probing_run

RARE = "xylophone quixotic zephyr"


@pytest.fixture
def rows(row_dataset):
    """Two classes distinguished by a word; row 3 has the other's word, 5 rare ones, 7 is long, 9 has no label."""
    made = []
    for i in range(60):
        word = "bad" if i % 2 else "good"
        made.append(
            {
                "id": f"r{i}",
                "text": f"The service was {word} today",
                "label": word,
                "explanation": f"It says {word}.",
                "difficulty": i,
            }
        )
    made[3]["text"] = "The service was good today"
    made[5]["text"] = f"The service was bad {RARE}"
    made[7]["text"] = "The service was bad " + "today " * 12
    del made[9]["label"], made[8]["explanation"], made[4]["difficulty"]
    return row_dataset(made)


def test_length_counts_text_and_explanation(rows):
    score_N = difficulty.length(rows)
    assert score_N.argmax() == 7
    assert score_N[0] == len(rows.table.text_ids(0)) + len(rows.table.explanation_ids(0, 0))
    assert score_N[8] == len(rows.table.text_ids(8))


def test_rarity_is_the_mean_bits_per_token_under_the_rows_own_frequencies(rows):
    score_N = difficulty.rarity(rows)
    assert score_N.argmax() == 5
    counts: dict[int, int] = {}
    for row in range(len(rows)):
        for token in rows.table.text_ids(row).tolist():
            counts[token] = counts.get(token, 0) + 1
    total = sum(counts.values())
    by_hand = np.mean([-math.log2(counts[t] / total) for t in rows.table.text_ids(5).tolist()])
    assert score_N[5] == pytest.approx(by_hand)


def test_margin_finds_the_row_with_a_word_of_the_other_class(rows):
    score_N = difficulty.margin(rows)
    assert np.nanargmax(score_N) == 3 and score_N[3] > 0.5
    assert np.isnan(score_N[9]) and np.isnan(score_N).sum() == 1
    assert np.nanmedian(score_N) < -0.5


def test_margin_is_the_same_computed_by_several_processes(rows, monkeypatch):
    alone = difficulty.margin(rows)
    monkeypatch.setattr(difficulty, "_PARALLEL_FROM", 0)
    assert np.array_equal(difficulty.margin(rows), alone, equal_nan=True)


def test_given_is_the_difficulty_column(rows):
    score_N = difficulty.given(rows)
    assert score_N[10] == 10 and np.isnan(score_N[4])


def test_a_difficulty_that_is_not_a_number_rejects_its_row(row_dataset):
    rows = row_dataset(
        [{"text": "a", "label": "x", "difficulty": "hard"}, {"text": "b", "label": "y", "difficulty": "0.5"}]
    )
    [rejected] = rows.table.rejected()
    assert rejected.reason == "difficulty is not a number: 'hard'"
    assert difficulty.given(rows).tolist() == [0.5]


def test_scores_are_combined_by_weighted_rank_within_each_class():
    label_N = np.array([0, 0, 0, 1, 1, -1])
    scores = {
        "a": np.array([1.0, 2.0, 3.0, 1000.0, 10.0, 7.0]),
        "b": np.array([5.0, np.nan, 1.0, 1.0, 2.0, np.nan]),
    }
    only = difficulty.combine(scores, {"a": 1.0}, label_N)
    assert only == pytest.approx([1 / 6, 3 / 6, 5 / 6, 3 / 4, 1 / 4, 1 / 2])
    both = difficulty.combine(scores, {"a": 1.0, "b": 3.0}, label_N)
    assert both[0] == pytest.approx((1 / 6 + 3 * 3 / 4) / 4)
    assert both[1] == pytest.approx(3 / 6)  # b does not know this row
    assert difficulty.combine({"b": np.full(3, np.nan)}, {"b": 1.0}, label_N[:3]).tolist() == [0.5] * 3


def test_scores_are_computed_once_and_cached_with_the_table(rows, monkeypatch):
    first = difficulty.cached(rows, "length")
    monkeypatch.setitem(difficulty.ROW_SCORERS, "length", lambda rows: pytest.fail("computed again"))
    assert np.array_equal(difficulty.cached(rows, "length"), first)
    assert difficulty.score_file(rows, "length").parent == rows.table.folder / "scores"


# --- scores of the backbone -----------------------------------------------------------------------------------------


def test_backbone_scores_equal_transformers_row_by_row(rows, tiny_backbone):
    import torch
    from transformers import AutoModelForCausalLM

    weights = {"loss_explanation": 1.0, "loss_label": 1.0}
    scores = difficulty_scores(rows, weights, backbone=str(tiny_backbone), compute=True)
    lm = AutoModelForCausalLM.from_pretrained(tiny_backbone)

    def losses(prompt, tokens):
        ids = torch.tensor([[*prompt.tolist(), *tokens]])
        with torch.no_grad():
            logp = lm(ids).logits[0].log_softmax(-1)
        return [-logp[len(prompt) - 1 + k, token].item() for k, token in enumerate(tokens)]

    names = rows.encoder.tokens_of(rows.table.card.labels)
    for row in (0, 3, 7):
        sample = rows.sample(row)
        own = np.mean(losses(sample.prompt, sample.explanation.tolist()))
        assert scores["loss_explanation"][row] == pytest.approx(own, rel=1e-4)
        logp = np.array([-sum(losses(sample.prompt, name)) for name in names])
        by_hand = np.logaddexp.reduce(logp) - logp[rows.label_N[row]]
        assert scores["loss_label"][row] == pytest.approx(by_hand, rel=1e-3, abs=1e-5)
    assert np.isnan(scores["loss_explanation"][8]) and np.isnan(scores["loss_label"][9])


def test_a_probing_run_finds_hard_and_ambiguous_rows():
    rng = np.random.default_rng(0)
    label_N = np.arange(400) % 2
    state_ND = rng.normal(size=(400, 16)).astype(np.float32) * 0.3
    state_ND[:, 0] += 4.0 * (2 * label_N - 1)
    state_ND[7, 0] *= -1  # mislabelled
    state_ND[11, 0] = 0.0  # neither
    confidence_N, variability_N = probing_run([state_ND], np.where(np.arange(400) == 9, -1, label_N))
    assert np.nanargmin(confidence_N) == 7 and confidence_N[7] < 0.4 and np.nanmedian(confidence_N) > 0.7
    assert np.isnan(confidence_N[9]) and np.isnan(variability_N[9])
    assert 0 < variability_N[11] < 0.5 * np.nanmedian(variability_N)
    # The first epoch is scored before it is trained on: probabilities start at a half, so even easy rows are not at 1.
    assert np.nanmax(confidence_N) < 0.99


def test_a_probing_run_over_blocks_of_sorted_rows_gives_similar_scores():
    rng = np.random.default_rng(1)
    label_N = (np.arange(1000) >= 500).astype(int)  # sorted by class, as files often are
    state_ND = rng.normal(size=(1000, 8)).astype(np.float32)
    state_ND[:, 0] += 2.0 * (2 * label_N - 1)
    state_ND[3, 0] = 4.0
    whole_N, _ = probing_run([state_ND], label_N)
    blocks_N, variability_N = probing_run(np.array_split(state_ND, 40), label_N)  # more than are shuffled together
    assert np.corrcoef(whole_N, blocks_N)[0, 1] > 0.95
    assert np.argsort(blocks_N)[:20].tolist().count(3) == 1 and (variability_N >= 0).all()


def test_scoring_resumes_after_a_kill_block_by_block(rows, tiny_backbone, monkeypatch):
    from clsgen_dist.training import backbone_scores as scoring

    monkeypatch.setattr(scoring, "_BLOCK", 16)
    weights = {"loss_explanation": 1.0}
    whole = scoring._Backbone._loss_explanation
    done: list[int] = []

    def dies_at_the_third(self, row_R):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(int(row_R[0]))
        return whole(self, row_R)

    monkeypatch.setattr(scoring._Backbone, "_loss_explanation", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        difficulty_scores(rows, weights, backbone=str(tiny_backbone), compute=True)
    monkeypatch.setattr(
        scoring._Backbone, "_loss_explanation", lambda self, r: (done.append(int(r[0])), whole(self, r))[1]
    )
    scores = difficulty_scores(rows, weights, backbone=str(tiny_backbone), compute=True)
    assert done == [0, 16, 32, 48]
    assert np.isnan(scores["loss_explanation"]).sum() == 1


def test_training_does_not_compute_backbone_scores(rows, tiny_backbone):
    with pytest.raises(DataError, match=r"loss_label .* do not exist yet; compute them once.*clsgen data score"):
        difficulty_scores(rows, {"loss_label": 1.0}, backbone=str(tiny_backbone), compute=False)


def test_a_scorer_without_a_score_for_any_row_is_refused(row_dataset):
    rows = row_dataset([{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(6)])
    with pytest.raises(DataError, match=r"scorer 'given' has no value for any row .* drop it"):
        difficulty_scores(rows, {"length": 1.0, "given": 1.0}, backbone="", compute=False)


def test_an_unknown_scorer_is_refused_with_the_known_ones(rows):
    with pytest.raises(DataError, match=r"names 'lenght', expected scorers among length, rarity, margin, given, loss"):
        difficulty_scores(rows, {"lenght": 1.0}, backbone="", compute=False)


def test_margin_works_on_texts_without_words(row_dataset):
    rows = row_dataset([{"text": "🙂" if i % 2 else "!", "label": "ab"[i % 2]} for i in range(40)])
    assert (difficulty.margin(rows) < 0).all()
    rows = row_dataset([{"text": "好极了吧" if i % 2 else "坏极了吧", "label": "ab"[i % 2]} for i in range(40)])
    assert (difficulty.margin(rows) < 0).all()  # by characters: the sentences have one sign that differs


def test_a_damaged_score_is_computed_again(rows):
    first = difficulty.cached(rows, "length").copy()
    file = difficulty.score_file(rows, "length")
    file.write_bytes(file.read_bytes()[:-50])
    assert np.array_equal(difficulty.cached(rows, "length"), first)
