"""Real datasets that ship with scikit-learn, put into words: for the demo, the tests and the benchmarks.

In: a name like ``demo:breast-cancer/train``. Out: a JSONL file in the user's cache. Built once, in a second.
"""
