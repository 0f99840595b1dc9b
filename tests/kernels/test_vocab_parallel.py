"""The sharded LM head on four ranks, ragged and with a rank without tokens, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import vocab_parallel_ranks as ranks
from cases import ALONE, Alone, assert_close, make_case, run
from clsgen_kernels import Execution, VocabShards, dual_head_loss

HERE = Path(__file__).parent


@pytest.mark.dist
def test_four_ranks_equal_one_process(free_port, tmp_path):
    port = free_port()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "vocab_parallel_ranks.py"), str(rank), port, str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(len(ranks.ROWS))
    ]
    messages = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(messages)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(ranks.ROWS))]
    # A rank without rows is refused on every rank alike: none hangs.
    assert {result.pop() for result in results} == {
        "4 ranks hold [5, 5, 0, 5] vocabulary rows, expected at least one each; use fewer ranks"
    }
    for place, tokens in enumerate(ranks.TOKENS):
        case = make_case(vocabulary=sum(ranks.ROWS), supervised=sum(tokens), bias=True)
        truth, truth_grads = run(*case, impl="reference", generation=ranks.OPTIONS)
        for at, tolerance in ((2 * place, 1e-12), (2 * place + 1, 1e-6)):
            parts = [result[at] for result in results]
            got = {k: torch.cat([part[0][k] for part in parts]) for k in ("generation_loss", "token_hit")}
            assert_close(got, {k: truth[k] for k in got}, tolerance)
            for name in ("lm_weight_VD", "lm_bias_V"):
                assert_close({name: torch.cat([part[1][name] for part in parts])}, {name: truth_grads[name]}, tolerance)
            # Every rank's hidden gradient has its own tokens', and the classification head's, which each computed.
            only_class = run(*_without_tokens(case), impl="reference", generation=ranks.OPTIONS)[1]["hidden_ND"]
            hidden = sum(part[1]["hidden_ND"].double() - only_class for part in parts) + only_class
            assert_close({"dH": hidden}, {"dH": truth_grads["hidden_ND"]}, tolerance)
            counts = {"all_gather_into_tensor": 4, "all_reduce": 2, "reduce_scatter_tensor": 1}
            assert [part[2] for part in parts] == [counts] * len(parts)


def _without_tokens(case):
    tensors, indices, (up_n, *rest) = case
    return tensors, indices, (up_n * 0, *rest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 69}, "69 rows, expected the 70 that vocab_shards"),
        ({"impl": "reference"}, "'reference' with vocab_shards"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(options, message):
    impl = options.pop("impl", "torch")
    tensors, indices, _ = make_case(**{"vocabulary": 70} | options)
    with pytest.raises(ValueError, match=message):
        dual_head_loss(**tensors, **indices, impl=impl, execution=Execution(vocab_shards=ALONE))


def test_each_token_has_one_owner():
    shards = VocabShards(Alone(), (0, 70))
    assert shards.owners(torch.tensor([0, 69])).tolist() == [0, 0]
    ranks = Alone()
    ranks.rank, ranks.size = 2, 4
    shards = VocabShards(ranks, (0, 13, 73, 74, 129))
    assert shards.owners(torch.tensor([0, 12, 13, 72, 73, 74, 128])).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert (shards.first_row, shards.held, shards.vocabulary) == (73, 1, 129)
