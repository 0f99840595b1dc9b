"""Rows made right before training: what is wrong with them, sorted by it, divided into splits, votes combined.

In: files of rows, the recipe's thresholds and severities. Out: issues with a stable code for each row, and files of
rows of the same kind that add up to the input. Several passes over a file, in memory that does not grow with it.
"""
