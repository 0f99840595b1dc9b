"""Rows made right before training: splits without leakage, labels combined from votes.

In: files of rows. Out: files of rows, of the same kind, and what was done as JSON.
"""
