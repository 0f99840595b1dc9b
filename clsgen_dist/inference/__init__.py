"""Probability and explanation from one prefill.

In: an exported folder and texts. Out: calibrated probabilities, the decision, the decoded explanation. One prefill for
each text, and one forward pass for each token of its explanation.
"""
