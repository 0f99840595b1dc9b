"""Work in processes: in order, a few items ahead, and a killed process is an error."""

from __future__ import annotations

import os

import pytest

from clsgen_dist.data.tables.workers import map_in_order, worker_count
from clsgen_dist.errors import DataError


def test_results_come_in_order_and_items_are_read_a_few_ahead():
    read = []

    def items():
        for item in range(30):
            read.append(item)
            yield item

    results = map_in_order(hex, items(), 2)
    assert next(results) == "0x0"
    assert len(read) < 8
    assert list(results) == [hex(item) for item in range(1, 30)]


def test_a_killed_process_is_an_error_that_says_so():
    with pytest.raises(DataError, match="a process that read rows was killed"):
        list(map_in_order(os._exit, [1, 2], 2))


def test_a_few_items_are_not_worth_a_process():
    assert worker_count(0) == worker_count(7) == 1
    assert worker_count(10**6) == len(os.sched_getaffinity(0))
