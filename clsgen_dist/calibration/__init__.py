"""Recalibration of class logits on held-out rows.

In: logits and labels. Out: parameters for ``clsgen.json``. Cost: milliseconds.
"""
