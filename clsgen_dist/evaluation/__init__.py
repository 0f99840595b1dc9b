"""Metrics with intervals, and the report.

In: probabilities, labels, explanations. Out: AUROC, F1, ECE and NLL with intervals, compared with baselines.
"""
