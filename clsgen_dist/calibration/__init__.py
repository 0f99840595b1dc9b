"""Recalibration of class logits on rows that were never trained on.

In: logits and labels. Out: parameters for ``clsgen.json``. Costs milliseconds.
"""
