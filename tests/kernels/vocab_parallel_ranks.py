"""One rank of the vocabulary-parallel test: its share of the tokens and of the rows, results to a file."""

from __future__ import annotations

import sys
from collections import Counter

import torch
import torch.distributed as dist
from cases import cast, make_case, run
from clsgen_kernels import GenerationOptions, VocabShards

TOKENS = [[9, 0, 11, 3], [0, 0, 23, 0], [0, 0, 0, 0]]
ROWS = [13, 60, 1, 55]
OPTIONS = GenerationOptions(label_smoothing=0.1, z_loss=1e-3, softcap=5.0, logit_scale=0.3)
COLLECTIVES = ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor")


def share(case, rank, tokens):
    """The rank's part of a case over all ranks: every rank keeps all hidden states, and its own supervised ones."""
    tensors, indices, (up_n, up_SC, up_S) = case
    mine = slice(sum(tokens[:rank]), sum(tokens[: rank + 1]))
    rows = slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))
    tensors = {**tensors, **{k: tensors[k][rows] for k in ("lm_weight_VD", "lm_bias_V")}}
    indices = {**indices, **{k: indices[k][mine] for k in ("supervised_index_n", "target_n")}}
    return tensors, indices, (up_n[mine], up_SC, up_S)


def main(rank: int, port: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(ROWS))
    calls: Counter[str] = Counter()

    def counted(name, original):
        def call(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(name, getattr(dist, name)))
    results = []
    shards = VocabShards.of(torch.empty(ROWS[rank], 1))
    for tokens in TOKENS:
        for inner, dtype in (("torch", torch.float64), ("triton", torch.float32)):
            tensors, *rest = share(make_case(vocabulary=sum(ROWS), supervised=sum(tokens), bias=True), rank, tokens)
            calls.clear()
            tensors = cast(tensors, dtype)
            got, grads = run(tensors, *rest, impl=inner, vocab_shards=shards, generation=OPTIONS)
            results.append((got, grads, dict(calls)))
    try:
        VocabShards.of(torch.empty(0 if rank == 2 else 5, 1))
        results.append("no error")
    except ValueError as error:
        results.append(str(error))
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
