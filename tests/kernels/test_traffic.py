"""Bytes to and from memory, counted in the interpreter through a model of the L2 cache.

The interpreter runs programs one after another; a GPU runs many at once. So each program's loads are recorded and then
replayed in step: all resident programs make a load in turn, and the next program takes the place of one that is done.
They share one least-recently-used cache of 128-byte lines. It holds the hidden states and one column tile of each split
that runs at once, and a quarter more: as the 50 MB of an H100 do up to some 1600 rows of D=8192, or 3200 of D=4096, in
bf16. Past that, row tiles run in groups.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from clsgen_kernels import fused
from clsgen_kernels.inputs import ClassOptions, GenerationOptions, HeadInputs, LMInputs
from clsgen_kernels.launch import Launch, Tile

LINE = 128
n, D, V, S, C = 64, 64, 512, 2, 2
TILE = Tile(16, 32, 16, 1, 1)
HIDDEN, WEIGHT = n * D * 4, V * D * 4
SPLITS, SLAB = 2, 64
LAUNCH = Launch(TILE, TILE, TILE, TILE, TILE, programs=8, workspace_bytes=n * SLAB * 4)
L2 = (HIDDEN + SPLITS * TILE.columns * D * 4) * 5 // 4


class Traffic:
    """Loads and stores of every launch, by program."""

    def __init__(self) -> None:
        self.launches: list[dict[tuple[int, int, int], list[np.ndarray]]] = []
        self.stored = 0

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        from triton.runtime.interpreter import interpreter_builder as builder

        load, store, start = builder.create_masked_load, builder.create_masked_store, builder.set_grid_dim

        def watched_load(ptrs, mask, other, *rest):
            touched = np.unique(ptrs.data[mask.data] // LINE)
            self.launches[-1].setdefault(tuple(builder.grid_idx), []).append(touched)
            return load(ptrs, mask, other, *rest)

        def watched_store(ptrs, value, mask, *rest):
            self.stored += int(mask.data.sum()) * value.data.itemsize
            return store(ptrs, value, mask, *rest)

        def watched_start(*grid):
            self.launches.append({})
            return start(*grid)

        patch.setattr(builder, "create_masked_load", watched_load)
        patch.setattr(builder, "create_masked_store", watched_store)
        patch.setattr(builder, "set_grid_dim", watched_start)

    def loaded(self, cache_bytes: int, resident: int, of: torch.Tensor | None = None) -> int:
        """Bytes that miss the cache, of all tensors or of one."""
        missed, first, end = 0, 0, 2**60
        if of is not None:
            first, end = of.data_ptr() // LINE, (of.data_ptr() + of.nbytes) // LINE
        for programs in self.launches:
            cache: OrderedDict[int, None] = OrderedDict()
            # As a GPU numbers them.
            waiting = iter([iter(programs[at]) for at in sorted(programs, key=lambda at: at[::-1])])
            running = list(itertools.islice(waiting, resident))
            while running:
                for slot, program in enumerate(running):
                    lines = next(program, None)
                    while lines is None and program is not None:
                        program = next(waiting, None)
                        lines = None if program is None else next(program, None)
                    running[slot] = program
                    for line in () if lines is None else lines:
                        missed += line not in cache and first <= line < end
                        cache[line] = None
                        cache.move_to_end(line)
                        if len(cache) > cache_bytes // LINE:
                            cache.popitem(last=False)
                running = [program for program in running if program is not None]
        return missed * LINE


@pytest.fixture
def inputs():
    return _inputs(n)


def _inputs(rows, S=S):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    target = torch.randint(0, V, (rows,), generator=generator)
    lm = LMInputs(normal(rows, D), normal(V, D), target, None, GenerationOptions(), V)
    classes = HeadInputs(normal(S, D), normal(C, D), normal(C), torch.zeros(S, dtype=torch.int64), ClassOptions())
    return lm, classes


def test_forward_moves_little_more_than_each_input_once(inputs, monkeypatch, capsys):
    traffic = Traffic()
    traffic.watch(monkeypatch)
    fused.forward(*inputs, launch=LAUNCH)
    assert len(traffic.launches) == 1 and len(traffic.launches[0]) == SPLITS * n // TILE.rows + 1
    moved = traffic.loaded(L2, resident=9) + traffic.stored
    outputs = n * (4 + 4 + 1) + S * C * 4 + S * 4
    bound = HIDDEN + WEIGHT + n * 8 + (S + C) * D * 4 + outputs
    uncached = traffic.loaded(0, resident=9) + traffic.stored
    with capsys.disabled():
        print(f"\nforward: {moved / bound:.2f} of the lower bound ({uncached / bound:.1f} were there no cache)")
    assert 1 <= moved / bound <= 1.3
    assert uncached / bound > 3  # the model of the cache is not vacuous


@pytest.mark.parametrize("kernel", ["forward", "gradient"])
def test_many_row_tiles_run_in_groups_that_read_the_hidden_states_once(kernel, monkeypatch, capsys):
    lm, classes = _inputs(256, S=0)
    lm = lm._replace(weight_VD=lm.weight_VD[:256], target_n=lm.target_n % 256, vocabulary=256)
    hidden_bytes, group = lm.hidden_nD.nbytes, 64 * D * 4
    # A wave is four row tiles by four splits: a group's states and the column tiles in flight, and a quarter more.
    cache = (group + 4 * TILE.columns * D * 4) * 5 // 4

    def read(group_bytes):
        launch = replace(LAUNCH, programs=16, group_bytes=group_bytes)
        traffic = Traffic()
        with monkeypatch.context() as patch:
            traffic.watch(patch)
            if kernel == "forward":
                fused.forward(lm, classes, launch=launch)
            else:
                ones = torch.ones(256)
                fused.gradient_of_logits(lm, ones, ones, None, torch.empty(256, 256), 0, launch)
        return [traffic.loaded(cache, 16, of) / of.nbytes for of in (lm.hidden_nD, lm.weight_VD)]

    hidden, weights = read(group)
    hidden_before, weights_before = read(hidden_bytes)
    with capsys.disabled():
        print(f"\n{kernel}, states read {hidden:.1f} times in groups, {hidden_before:.1f} in one; ", end="")
        print(f"weights {weights:.1f} and {weights_before:.1f}")
    assert hidden < 2.5 and hidden_before > 3 * hidden
    assert weights <= 256 / 64 + 0.5  # once a group


def test_backward_moves_the_bytes_of_its_stated_passes(inputs, monkeypatch, capsys):
    lm, classes = inputs
    out = fused.forward(lm, classes, launch=LAUNCH)
    traffic = Traffic()
    traffic.watch(monkeypatch)
    fused.backward(lm, out.lm.lse_n, torch.ones(n), None, weight_grad_VD=torch.empty_like(lm.weight_VD), launch=LAUNCH)
    slabs = V // SLAB
    assert len(traffic.launches) == 3 * slabs  # the gradient of the logits, dW, dH
    moved = traffic.loaded(L2, resident=8) + traffic.stored
    workspace = n * SLAB * 4
    # A slab: H and W in, G out; G and H in, dW out; G and W in, dH in and out.
    stated = slabs * (2 * HIDDEN + 3 * workspace + 2 * HIDDEN) + 2 * WEIGHT + WEIGHT
    bound = HIDDEN + WEIGHT + WEIGHT + HIDDEN
    with capsys.disabled():
        print(f"\nbackward: {moved / stated:.2f} of the stated passes, {moved / bound:.2f} of the lower bound")
    assert moved <= 1.05 * stated + n * 3 * 4 * slabs
    written = traffic.stored
    monkeypatch.undo()
    frozen = Traffic()
    frozen.watch(monkeypatch)
    fused.backward(lm, out.lm.lse_n, torch.ones(n), None, launch=LAUNCH)
    assert len(frozen.launches) == 2 * slabs and frozen.stored == written - WEIGHT
