"""A step's loss: a sum of named terms, each normalised over all ranks and micro-batches, and the terms' weights.

    L = Σ_terms  weight(step) · sum over all ranks and micro-batches / count over all ranks and micro-batches

In: what the forward pass gives on this rank. Out: one scalar whose gradient is that of L. Cost: three all-reduces of a
few numbers for each step, as long as there are terms. docs/objectives.md shows how to add one.
"""
