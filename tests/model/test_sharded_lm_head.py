"""An LM head in shards on three ranks, against the whole weight: rows, look-ups, gradients, wherever the cuts fall."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clsgen_dist.engine.lm_head import HeadTraffic, stays_sharded
from clsgen_dist.errors import SettingsError
from clsgen_dist.model.lm_head import LMHead
from clsgen_dist.model.reference_divergence import reference_divergence
from clsgen_dist.model.sharded_lm_head import cannot_shard
from tests.model import sharded_lm_head_ranks as ranks

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def found(free_port, tmp_path_factory):
    """What each rank computed, by vocabulary."""
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    script = Path(ranks.__file__)
    started = [
        subprocess.Popen([sys.executable, str(script), str(rank), port, str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(ranks.RANKS)
    ]
    messages = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * ranks.RANKS, "\n".join(messages)
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks.RANKS)]


@pytest.fixture(params=ranks.VOCABULARIES)
def parts(request, found):
    """What each rank computed with one vocabulary."""
    return [of_rank[request.param] for of_rank in found]


def test_each_row_is_on_one_rank_and_complete(parts):
    assert torch.equal(torch.cat([part["rows"] for part in parts]), parts[0]["weight"])
    assert parts[0]["starts"][-1] == len(parts[0]["weight"])
    assert min(len(part["rows"]) for part in parts) >= 1
    whole = LMHead.of(ranks.LM(parts[0]["weight"], tied=True))
    assert torch.equal(torch.cat([part["bias"] for part in parts]), whole.bias_V)


def test_rows_of_a_tied_embedding_come_from_their_owners(parts):
    for part, tokens in zip(parts, ranks.TOKENS, strict=True):
        assert torch.equal(part["embedded"], 2 * part["weight"][tokens])
        whole, names = LMHead.of(ranks.LM(part["weight"], tied=True)), [len(part["weight"]) - 1, 0, 5]
        assert torch.equal(part["name_rows"], part["weight"][names]) and torch.equal(
            part["name_bias"], whole.bias_V[names]
        )
        assert torch.equal(part["name_logits"], whole.logits_of(part["states"][0], names))
        assert part["untied"] is None


def test_the_gradient_of_each_partition_is_the_mean_over_ranks(parts):
    """Of both uses of the weight, the padding token's look-up left out; what is padding of the partition gets zeros."""
    weight = parts[0]["weight"].clone().requires_grad_()
    embedded = [2 * F.embedding(torch.tensor(tokens, dtype=torch.int64), weight, 3) for tokens in ranks.TOKENS]
    (sum(e.sum() for e in embedded) + (weight * parts[0]["upstream"]).sum()).backward()
    size = -(-weight.numel() // ranks.RANKS)
    padded = F.pad(weight.grad.view(-1) / ranks.RANKS, (0, size * ranks.RANKS - weight.numel()))
    got = [part["deposits"] for part in parts]
    assert [len(deposits) for deposits in got] == [1] * ranks.RANKS
    torch.testing.assert_close(torch.cat([deposits[0] for deposits in got]), padded, rtol=1e-12, atol=1e-12)
    assert not any(part["frozen_leaf"] for part in parts)


def test_the_divergence_of_a_reference_is_that_of_the_whole_vocabulary(parts):
    for part in parts:
        hidden = part["hidden"].clone().requires_grad_()
        whole = LMHead.of(ranks.LM(part["weight"], tied=True))
        divergence = reference_divergence(hidden, hidden.detach() + 0.5, whole)
        divergence.sum().backward()
        torch.testing.assert_close(part["divergence"], divergence.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(part["gradient"], hidden.grad, rtol=1e-12, atol=1e-13)


class _Mixed(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids).roll(1, 0)


def test_an_embedding_that_does_more_than_look_up_is_named():
    lm = ranks.LM(torch.ones(5, 2), tied=True)
    assert cannot_shard(lm) is None
    lm.config.get_text_config(decoder=True).hidden_size_per_layer_input = 8
    assert cannot_shard(lm) == "LM looks tokens up in every layer, and the sharded embedding hands over its rows alone"
    lm.config.get_text_config(decoder=True).hidden_size_per_layer_input = 0
    lm.embedding = _Mixed(5, 2)
    assert cannot_shard(lm) is None  # it is another weight
    lm.embedding.weight = lm.head.weight
    assert cannot_shard(lm) == "its input embedding, which is the same weight, is a _Mixed, not a plain lookup"


def test_auto_gathers_where_a_rank_would_have_no_row():
    lm, zero = ranks.LM(torch.ones(9, 4), tied=False), {"zero_optimization": {}}
    less = HeadTraffic(gathered=2.0, sharded=1.0)
    assert stays_sharded("auto", lm, zero, less, 4) and not stays_sharded("auto", lm, zero, less, 8)
    with pytest.raises(SettingsError, match="its 9 rows leave none to some of 8 ranks; set it to gathered"):
        stays_sharded("sharded", lm, zero, less, 8)
    mics = {"zero_optimization": {"mics_shard_size": 2}}
    with pytest.raises(SettingsError, match="mics_shard_size"):
        stays_sharded("sharded", lm, mics, less, 4)
