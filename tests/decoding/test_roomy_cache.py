"""A cache with room holds what transformers' own does, whatever happens to it."""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from clsgen_dist.decoding import roomy_cache
from clsgen_dist.decoding.roomy_cache import RoomyLayer, make_room


def states(rows, tokens):
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 4)


def test_tokens_rows_and_cuts_are_those_of_the_plain_cache(monkeypatch):
    monkeypatch.setattr(roomy_cache, "_ROOM", 3)
    plain, roomy = DynamicCache(), DynamicCache()
    first = states(3, 5)
    for cache in (plain, roomy):
        cache.update(*first, 0)
    make_room(roomy)
    assert type(roomy.layers[0]) is RoomyLayer
    rows, in_place = 3, 0
    for step in range(12):
        if step == 4:
            for cache in (plain, roomy):
                cache.reorder_cache(torch.tensor([2, 0, 0, 1]))
            rows = 4
        if step == 7:
            for cache in (plain, roomy):
                cache.crop(-2)
        new, before = states(rows, 1), roomy.layers[0].keys.data_ptr()
        expected, found = plain.update(*new, 0), roomy.update(*new, 0)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        in_place += before == roomy.layers[0].keys.data_ptr()
    assert in_place >= 7 and roomy.get_seq_length() == plain.get_seq_length() == 15


def test_only_plain_layers_that_hold_something_get_room():
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4), DynamicLayer()]
    for number in (0, 1):
        cache.update(*states(1, 2), number)
    make_room(cache)
    assert [type(layer) for layer in cache.layers] == [RoomyLayer, DynamicSlidingWindowLayer, DynamicLayer]
