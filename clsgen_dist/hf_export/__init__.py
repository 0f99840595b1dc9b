"""From a sharded checkpoint to a Hugging Face folder that stock engines open, verified by reloading it.

In: a checkpoint and its backbone. Out: the base's own files with the trained weights, the classification head in a
folder beside them, ``clsgen.json``. Costs one read of the backbone and one write; memory of one shard, and the model
once for the check.
"""
