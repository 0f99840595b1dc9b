"""Recalibration of class logits on held-out rows, and decisions on the calibrated probabilities.

In: logits and labels. Out: the method that suits them, fitted, thresholds, sets and more, as parameters for
``clsgen.json``. Cost: milliseconds a fit, seconds for a choice among all methods and for bootstrap intervals.
"""
