"""Measures of explanations: style, agreement with the head, grounding in the input, faithfulness.

In: inputs, explanations, decisions, probabilities, references, and callables that score texts. Out: a value for each
row, its mean and a bootstrap interval, and the places in the input that an explanation names. Word lists are English.
"""
