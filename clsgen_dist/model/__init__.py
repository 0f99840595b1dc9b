"""The backbone, its classification head, and what can be done with either.

In: a folder or hub id of a causal language model. Out: a model whose forward gives both losses, partitioned under
ZeRO-3; a clear refusal of what cannot be trained, packed or exported, before the first step. Costs the loading.
"""
