"""The order of a stage: each row exactly as often as its rate says, whatever slice is read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clsgen_dist.data.curriculum import order
from clsgen_dist.data.curriculum.order import Band, Segment, StageOrder

edges = st.tuples(st.floats(0, 0.9), st.floats(0.05, 1)).map(lambda e: (e[0], min(1.0, e[0] + e[1])))
bands = st.lists(st.builds(lambda e, share: Band(*e, share), edges, st.floats(0.05, 1)), min_size=1, max_size=3)
segments = st.lists(st.builds(lambda p, b: Segment(p, tuple(b)), st.floats(0.5, 60), bands), min_size=1, max_size=4)


def _order(rows, parts, seed=0):
    positions = max(1, round(sum(p.positions for p in parts)))
    return StageOrder(np.arange(rows) / rows, parts, positions, (seed, 0))


@given(rows=st.integers(1, 60), parts=segments, seed=st.integers(0, 5))
@settings(max_examples=400, deadline=None)
def test_visits_of_a_row_equal_its_rate_rounded_down_or_up(rows, parts, seed):
    try:
        stage = _order(rows, parts, seed)
    except ValueError:
        return  # no row in a segment's bands: refused, see below
    row_p, visit_p = stage.at(0, stage.positions)
    assert len(row_p) == stage.positions
    visited = np.bincount(row_p, minlength=rows)
    assert np.array_equal(visited, stage.visit_counts())
    # A row's visits are numbered 0, 1, 2 ... in order.
    for row in range(rows):
        assert visit_p[row_p == row].tolist() == list(range(visited[row]))
    promised = stage._sum_GJ[:, -2][stage._group_N]
    assert promised.sum() == pytest.approx(stage.positions)
    assert (np.floor(promised - 1e-9) <= visited).all() and (visited <= np.ceil(promised + 1e-9)).all()


@given(rows=st.integers(5, 40), epochs=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_each_epoch_visits_each_row_once_in_a_new_order(rows, epochs, seed):
    stage = _order(rows, [Segment(rows * epochs, (Band(0, 1, 1.0),))], seed)
    row_p, visit_p = stage.at(0, rows * epochs)
    for epoch in range(epochs):
        mine = slice(epoch * rows, (epoch + 1) * rows)
        assert sorted(row_p[mine]) == list(range(rows))
        assert set(visit_p[mine]) == {epoch}
    if epochs > 1 and rows > 12:
        assert row_p[:rows].tolist() != row_p[rows : 2 * rows].tolist()


@given(parts=segments, cuts=st.lists(st.integers(0, 10**6), max_size=6), window=st.sampled_from([5, 17, 64]))
@settings(max_examples=80, deadline=None)
def test_the_stream_does_not_depend_on_slices_or_windows(parts, cuts, window):
    try:
        full = _order(37, parts)
    except ValueError:
        return
    expected = full.at(0, full.positions)
    usual, order._WINDOW = order._WINDOW, window
    try:
        pieces = _order(37, parts)
        bounds = sorted({0, full.positions, *(c % full.positions for c in cuts)})
        found = {a: pieces.at(a, b) for a, b in reversed(list(itertools.pairwise(bounds)))}
    finally:
        order._WINDOW = usual
    for part in (0, 1):
        assert np.array_equal(np.concatenate([found[a][part] for a in sorted(found)]), expected[part])


def test_fractional_visits_are_spread_evenly():
    visited = np.zeros(12)
    for seed in range(300):
        stage = _order(12, [Segment(5, (Band(0, 0.5, 0.3), Band(0.5, 1, 0.7)))], seed)
        visited += stage.visit_counts()
    promised = np.repeat([5 * 0.3 / 6, 5 * 0.7 / 6], 6) * 300
    assert visited.sum() == 1500
    assert (abs(visited - promised) < 4 * np.sqrt(promised)).all()


def test_a_row_on_the_edge_of_two_bands_is_in_the_upper_one():
    quantile_N = np.arange(10, dtype=np.float32) / 10  # 0.7 and 0.9 are a little less in single precision
    for low, rows in ((0.7, [7, 8, 9]), (0.9, [9])):
        stage = StageOrder(quantile_N, [Segment(len(rows), (Band(low, 1, 1.0),))], len(rows), (0, 0))
        assert sorted(stage.at(0, len(rows))[0].tolist()) == rows


def test_bands_get_their_share():
    stage = _order(1000, [Segment(500, (Band(0, 0.2, 0.7), Band(0.2, 1, 0.3)))])
    row_p, _ = stage.at(0, 500)
    assert abs((row_p < 200).mean() - 0.7) < 0.05


def test_the_order_depends_on_seed_and_stage():
    def first(*key):
        return StageOrder(np.arange(50) / 50, [Segment(50, (Band(0, 1, 1.0),))], 50, key).at(0, 50)[0].tolist()

    assert first(0, 0) == first(0, 0)
    assert len({tuple(first(*key)) for key in [(0, 0), (1, 0), (0, 1)]}) == 3


def test_a_segment_without_rows_is_refused():
    with pytest.raises(ValueError, match=r"no row has a difficulty in 0.95-0.99"):
        _order(10, [Segment(5, (Band(0.95, 0.99, 1.0),))])


def test_the_share_of_an_empty_band_goes_to_the_others():
    stage = _order(10, [Segment(20, (Band(0.95, 0.99, 0.5), Band(0, 1, 0.5)))])
    assert stage.at(0, 20)[0].shape == (20,)


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    unlabelled=st.integers(0, 10),
    positions=st.integers(1, 200),
    seed=st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_balanced_classes_are_visited_equally_often(counts, unlabelled, positions, seed):
    class_N = np.repeat(np.arange(-1, len(counts)), [unlabelled, *counts])
    rows = len(class_N)
    everything = [Segment(positions, (Band(0.0, 1.0, 1.0),))]
    stage = StageOrder(np.zeros(rows, dtype=np.float32), everything, positions, (seed, 0), class_N)
    row_p, _ = stage.at(0, positions)
    visited_N = np.bincount(row_p, minlength=rows)
    kept = positions * unlabelled / rows
    promised = {name: (positions - kept) / len(counts) for name in range(len(counts))} | {-1: kept}
    for name in np.unique(class_N):
        of_class = visited_N[class_N == name]
        # Each row as often as its share of the class, rounded down or up; each class within one visit.
        share = promised[int(name)] / len(of_class)
        assert of_class.min() >= np.floor(share - 1e-9) and of_class.max() <= np.ceil(share + 1e-9)
        assert abs(of_class.sum() - promised[int(name)]) <= 1 + 1e-9
    again = StageOrder(np.zeros(rows, dtype=np.float32), everything, positions, (seed, 0), class_N)
    middle = positions // 2
    assert np.array_equal(again.at(middle, positions)[0], row_p[middle:]), "a function of the position alone"
