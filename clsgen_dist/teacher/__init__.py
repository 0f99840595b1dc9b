"""Explanations that a larger model writes for rows without any, and paraphrases of those there are.

In: rows with labels, the address of an OpenAI-compatible server, a budget. Out: the rows with the answers that state
the row's label, where they come from, and a journal of every answer that was paid for.
"""
