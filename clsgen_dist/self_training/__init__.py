"""Rounds of self-training: an exported model labels the rows of which it is sure, within what a held-out guard allows.

In: a calibrated model, unlabelled rows, labelled guard rows. Out: the rows to train on next, with label, explanation
and provenance, or a refusal that says why. Training itself is ``clsgen train``.
"""
