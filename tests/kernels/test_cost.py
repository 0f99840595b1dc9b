"""The cost model: identities of its formulas, and the figures that docs/kernel.md quotes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clsgen_kernels import cost

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernel.md"
N, SUPERVISED, VOCABULARY = 8192, 2048, 128256
METHODS = {
    "naive, all tokens": lambda width: cost.naive(N, width, VOCABULARY),
    "naive, supervised rows indexed first": lambda width: cost.naive(SUPERVISED, width, VOCABULARY),
    "Liger, all tokens": lambda width: cost.liger(N, width, VOCABULARY),
    "cut-cross-entropy, exact": lambda width: cost.cce(SUPERVISED, width, VOCABULARY),
    "**clsgen**": lambda width: cost.ours(SUPERVISED, width, VOCABULARY),
    "clsgen, recomputed": lambda width: cost.ours(SUPERVISED, width, VOCABULARY, store_bytes=0),
}


@pytest.mark.parametrize("method", METHODS)
def test_the_docs_quote_the_cost_model(method):
    section = PAGE.read_text().partition("## What it costs: a model")[2]
    row = next(line for line in section.splitlines() if line.startswith(f"| {method} | "))
    quoted = [[float(x) for x in re.findall(r"[\d.]+", cell)] for cell in row.strip("|").split("|")[1:]]
    wide, narrow = METHODS[method](8192), METHODS[method](4096)
    for cell, c in zip(quoted, (wide, narrow), strict=False):
        milliseconds = c.seconds(790e12, 3e12) * 1e3
        assert cell == pytest.approx([c.flops / 1e12, c.moved_bytes / 1e9, milliseconds], abs=0.51)
    assert quoted[2] == pytest.approx([wide.extra_bytes / 1e6], abs=0.51)


SIZES = (2048, 16384, 65536)
BY_SIZE = {
    "indexing, naive; torch": cost.naive,
    "Liger, Triton": cost.liger,
    "Liger, CuTe for Hopper": lambda n, width, vocabulary: cost.chunked(n, width, vocabulary, 1024),
    "quack, chunked": lambda n, width, vocabulary: cost.chunked(n, width, vocabulary, 4096),
    "cut-cross-entropy": cost.cce,
    "**clsgen, default**": cost.ours,
    "clsgen, all logits stored": lambda *shape: cost.ours(*shape, store_bytes=2**40),
}


@pytest.mark.parametrize("method", BY_SIZE)
def test_the_docs_quote_the_cost_model_by_size(method):
    section = PAGE.read_text().partition("The same model by the number of supervised tokens")[2]
    row = next(line for line in section.splitlines() if line.startswith(f"| {method} | "))
    wide, narrow, last = ([float(x) for x in re.findall(r"[\d.]+", c)] for c in row.strip("|").split("|")[2:])
    for cell, width in ((wide, 8192), (narrow, 4096)):
        costs = [BY_SIZE[method](n, width, VOCABULARY) for n in SIZES]
        assert cell == pytest.approx([c.seconds(790e12, 3e12) * 1e3 for c in costs], abs=0.51)
    largest = BY_SIZE[method](SIZES[-1], 8192, VOCABULARY)
    assert last == pytest.approx([largest.moved_bytes / 1e9, largest.extra_bytes / 1e9], abs=0.51)


def test_stored_logits_save_one_pass_and_take_no_memory_while_the_gradient_has_room():
    recomputed, stored = (cost.ours(SUPERVISED, 4096, VOCABULARY, store_bytes=s) for s in (0, 1))
    assert recomputed.flops - stored.flops == 2.0 * SUPERVISED * 4096 * VOCABULARY
    assert stored.extra_bytes - recomputed.extra_bytes == 4 * SUPERVISED * 501  # an offset a row and tile
    partly, wholly = (cost.ours(16384, 8192, VOCABULARY, store_bytes=s) for s in (1, 2**40))
    one_pass = 2.0 * 16384 * 8192 * VOCABULARY
    assert partly.flops == pytest.approx((3 + 9 / 16) * one_pass) and wholly.flops == 3 * one_pass
    assert wholly.extra_bytes - partly.extra_bytes == 16 * 2 * 16384 * 8192


def test_a_roofline_adds_compute_and_memory():
    assert cost.Cost(2e12, 3e9, 0).seconds(1e12, 1e9) == 5.0
