"""Dual-head training of large language models: a probability one can act on, and a reason one can read."""
