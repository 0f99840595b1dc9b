"""Monitoring of a run: TensorBoard, progress line, throughput, reliability diagram, sampled rows.

In: metrics of a step or an evaluation. Out: event files, a line on the terminal, ``rows.jsonl``. Rank 0 writes.
"""
