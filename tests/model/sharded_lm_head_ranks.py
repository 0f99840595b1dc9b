"""One rank of test_sharded_lm_head.py: what it computes with its rows of a small LM head; results to a file."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from clsgen_kernels import Ranks
from torch import nn

from clsgen_dist.model import reference_divergence as reference_divergence_module
from clsgen_dist.model.reference_divergence import reference_divergence
from clsgen_dist.model.sharded_lm_head import ShardedLMHead

WIDTH, RANKS = 5, 3
VOCABULARIES = {"no row is cut": 12, "rows are cut, one element of padding": 13, "two elements": 11}
TOKENS = [[3, 7, 0, 10, 10], [9], []]
"""Ids that each rank looks up; 3 is the padding token."""


class LM(nn.Module):
    """As much of a causal LM as the LM head reads; its embedding scales, as Gemma's does, its logits are capped."""

    def __init__(self, weight, tied):
        super().__init__()
        self.embedding = nn.Embedding(*weight.shape, padding_idx=3)
        self.embedding.embed_scale = torch.tensor(2.0)
        self.head = nn.Linear(weight.shape[1], weight.shape[0])
        self.head.weight = nn.Parameter(weight.clone())
        self.head.bias = nn.Parameter(torch.linspace(-1, 1, len(weight), dtype=weight.dtype))
        text = SimpleNamespace(model_type="gemma2", final_logit_softcapping=3.0, logit_scale=0.5)
        self.config = SimpleNamespace(get_text_config=lambda decoder: text)
        if tied:
            self.embedding.weight = self.head.weight

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.head


def partition(parameter, rank):
    """As ZeRO-3 partitions it, the padding filled with NaN."""
    size = -(-parameter.numel() // RANKS)
    flat = F.pad(parameter.detach().view(-1), (0, size * RANKS - parameter.numel()), value=torch.nan)
    parameter.ds_shape, parameter.ds_tensor = parameter.shape, flat[size * rank : size * (rank + 1)].clone()
    parameter.ds_tensor.ds_numel = size


def measure(vocabulary, rank):
    """What this rank computes with its rows."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, WIDTH, generator=generator, dtype=torch.float64)
    found = SimpleNamespace(weight=weight, deposits=[])
    lm = LM(weight, tied=True)
    partition(lm.head.weight, rank)
    head = ShardedLMHead(lm, Ranks(), found.deposits.append, torch.device("cpu"))
    head.begin()
    states = torch.randn(RANKS, 4, WIDTH, generator=generator, dtype=torch.float64)
    upstream = torch.randn(vocabulary, WIDTH, generator=generator, dtype=torch.float64)
    found.starts, found.rows = head.shards.starts, head.weight_VD.detach().clone()
    assert head.weight_VD is head.weight_VD
    found.embedded = head.embed(torch.tensor(TOKENS[rank], dtype=torch.int64))
    first = head.shards.first_row
    (found.embedded.sum() + (head.weight_VD * upstream[first : first + head.shards.held]).sum()).backward()
    found.embedded, found.upstream = found.embedded.detach(), upstream
    found.name_rows, found.name_bias = head.rows([vocabulary - 1, 0, 5])
    found.bias, found.name_logits = head.bias_V.detach(), head.logits_of(states[0], [vocabulary - 1, 0, 5])
    hidden = states[rank, : len(TOKENS[rank])].clone().requires_grad_()
    reference_divergence_module._BLOCK_ELEMENTS = 9  # two tokens of the ranks with 4 rows, one of those with 5
    divergence = reference_divergence(hidden, hidden.detach() + 0.5, head)
    divergence.sum().backward()
    found.hidden, found.divergence, found.gradient = hidden.detach(), divergence.detach(), hidden.grad
    lm.head.weight.requires_grad_(False)
    found.frozen_leaf = head.weight_VD.requires_grad
    untied = LM(weight, tied=False)
    partition(untied.head.weight, rank)
    found.untied = ShardedLMHead(untied, Ranks(), found.deposits.append, torch.device("cpu")).embed(torch.tensor([1]))
    found.states = states
    return vars(found)


def main(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    torch.save({name: measure(rows, rank) for name, rows in VOCABULARIES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
