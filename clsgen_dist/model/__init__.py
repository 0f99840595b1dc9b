"""The backbone and its classification head.

In: a folder or hub id of a causal language model. Out: a model whose forward returns both losses, partitioned under
ZeRO-3. Models that cannot be trained or exported are refused before the first step. Cost: loading the weights once.
"""
