"""Near duplicates: the same pairs as by comparing all, the effect of a template, and bounded work."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import DisjointSet

from clsgen_dist.data.checks.near_duplicates import (
    Sketches,
    Template,
    _Groups,
    jaccard,
    near_duplicates,
    normalised,
    shingles,
    text_hash,
)
from tests.work import instructions

WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "market",
    "engine",
    "shadow",
    "copper",
    "violin",
    "harbour",
    "meadow",
    "lantern",
    "saddle",
]


def _sentences(count, words, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=words)) for _ in range(count)]


def _sketched(texts, template=None):
    sketches = Sketches(template or Template.none())
    for text in texts:
        sketches.add(normalised(text))
    return sketches


def _true_jaccard(a, b):
    one, other = ({t[i : i + 5] for i in range(max(1, len(t) - 4))} for t in (normalised(a), normalised(b)))
    return len(one & other) / len(one | other)


def test_case_space_and_unicode_form_are_ignored():
    same = ["Ein  Käse\tKOSTET", "ein käse kostet", "ein ka\u0308se\u00a0kostet\n"]
    assert len({text_hash(normalised(text)) for text in same}) == 1
    assert text_hash(normalised("ein kase kostet")) != text_hash(normalised(same[0]))


def test_similarity_is_the_jaccard_index_of_the_shingles():
    a, b = _sentences(2, 20)
    b = a.replace("river", "brook") + b[:30]
    assert jaccard(*(s[:256] for s in (shingles(normalised(a)), shingles(normalised(b))))) == pytest.approx(
        _true_jaccard(a, b)
    )


def test_similarity_of_long_texts_is_estimated_within_its_error():
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(2000)]
    a = " ".join(words)
    b = " ".join(words[:1600] + words[100:500])
    assert len(shingles(a)) > 5000
    assert jaccard(shingles(a)[:256], shingles(b)[:256]) == pytest.approx(_true_jaccard(a, b), abs=0.1)


def test_pairs_match_a_brute_force_comparison():
    rng = random.Random(2)
    texts = _sentences(150, 12)
    for text in texts[:60]:
        words = text.split()
        words[rng.randrange(12)] = rng.choice(["violet", "bread", "is"])
        texts.append(" ".join(words))
    splits = [i % 3 for i in range(len(texts))]
    found = near_duplicates(_sketched(texts), splits, 3, 0.8)
    expected = np.zeros((len(texts), 3), dtype=bool)
    for i, j in itertools.combinations(range(len(texts)), 2):
        if _true_jaccard(texts[i], texts[j]) >= 0.8:
            expected[i, splits[j]] = expected[j, splits[i]] = True
    is_found = found.partner_RS >= 0
    assert expected.sum() > 40
    assert not (is_found & ~expected).any()
    # Bands of MinHash miss a pair at the threshold itself one time in twenty.
    assert (is_found & expected).sum() >= 0.93 * expected.sum()
    for text, split in zip(*np.nonzero(is_found), strict=True):
        other = found.partner_RS[text, split]
        assert splits[other] == split and found.group_R[other] == found.group_R[text]
        assert found.jaccard_RS[text, split] == pytest.approx(_true_jaccard(texts[text], texts[other]))


def test_texts_without_spaces_are_compared_by_shorter_shingles():
    a = "我昨天在图书馆里看了一本很有意思的小说然后回家做饭"
    b = a.replace("小说", "杂志")
    c = "今天的天气非常好我们决定去公园散步并且吃一顿午餐吧"
    found = near_duplicates(_sketched([a, b, c]), [0, 0, 1], 2, 0.7)
    assert found.partner_RS.tolist() == [[1, -1], [0, -1], [-1, -1]]


def test_a_long_common_instruction_does_not_make_all_rows_alike():
    instruction = (
        "You are a careful reviewer of short statements. Read what is written below twice, ask yourself who could have "
        "output so, weigh each word, do not guess at facts you cannot know, and decide if it is plausible. Statement: "
    )
    texts = [instruction + text for text in _sentences(200, 4)]
    texts.append(texts[0] + " x")
    assert (near_duplicates(_sketched(texts), [0] * 201, 1, 0.8).partner_RS >= 0).mean() > 0.9
    template = Template.of(normalised(text) for text in texts)
    assert template.share > 0.7
    found = near_duplicates(_sketched(texts, template), [0] * 201, 1, 0.8).partner_RS[:, 0]
    assert found[[0, 200]].tolist() == [200, 0]
    assert (found >= 0).mean() < 0.1


def test_rows_that_are_only_template_keep_their_shingles():
    template = Template.of([f"the very same words stand in each of these rows {i}" for i in range(60)])
    bare = shingles("the very same words stand in each of these rows")
    assert template.share > 0.5
    assert template.without(bare).tolist() == bare.tolist()


def test_ten_thousand_near_duplicates_are_all_counted_in_seconds():
    text = " ".join(_sentences(1, 60))
    texts = [f"{text} {i}" for i in range(10_000)]
    start = time.process_time()
    found = near_duplicates(_sketched(texts), [0] * 10_000, 1, 0.8)
    assert time.process_time() - start < 30
    assert (found.partner_RS >= 0).all()
    assert len(set(found.group_R.tolist())) == 1


def test_a_leak_is_found_inside_a_bucket_that_the_other_split_fills():
    text = " ".join(_sentences(1, 60))
    texts = [f"{text} {i}" for i in range(3000)] + [f"{text} test"]
    found = near_duplicates(_sketched(texts), [0] * 3000 + [1], 2, 0.8)
    assert found.partner_RS[3000, 0] >= 0
    assert found.partner_RS[3000, 1] == -1


@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20))
@settings(max_examples=200, deadline=None)
def test_groups_are_those_of_a_disjoint_set(links):
    groups, expected = _Groups(12), DisjointSet(range(12))
    for first, second in links:
        groups.merge(first, second)
        expected.merge(first, second)
    lowest = [min(expected.subset(text)) for text in range(12)]
    assert [groups.lowest(text) for text in range(12)] == lowest
    assert groups.lowest_R().tolist() == lowest == groups.lowest_R().tolist()


def test_texts_without_near_duplicates_cost_no_loop_over_them():
    sketches = [_sketched([f"{n:x} {n * n} {n**3} {n**5:o}" for n in range(count)]) for count in (200, 1600)]
    few, many = (instructions(lambda s=s: near_duplicates(s, [0] * len(s), 1, 0.8)) for s in sketches)
    assert many < 1.5 * few, "each band looked at each text in turn"
