"""The checks of ``clsgen data check``: ``check`` runs them on what ``measure`` reads; ``report`` and ``page`` show it.

In: files of rows, the tokenizer and limits of a recipe. Out: findings with a stable code, every affected row and a
remedy. About 20 s for 100,000 short rows on one core; numbers and hashes are kept, no texts.
"""
