"""Metrics with intervals, and the report.

In: probabilities, labels, explanations. Out: AUROC, F1, ECE and their bootstrap intervals, beside baselines.
"""
