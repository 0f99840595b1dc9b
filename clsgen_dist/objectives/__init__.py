"""A step's loss: each term normalised over all ranks and micro-batches, and the terms' weights.

In: sums and counts of this rank. Out: one scalar whose gradient is that of the global means. One all-reduce of a few
numbers for each step.
"""
