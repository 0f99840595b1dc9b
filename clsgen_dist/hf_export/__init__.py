"""From a sharded checkpoint to a Hugging Face folder that stock engines open, verified by reloading it.

In: a checkpoint and its backbone. Out: the base's own files with the trained weights, the classification head in a
folder, ``clsgen.json``. Cost: one read and one write of the backbone; memory for one shard, and for the full model
during verification.
"""
