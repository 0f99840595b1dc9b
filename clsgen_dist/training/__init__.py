"""The loop: settings → datasets → sampling plan → steps → evaluation → checkpoints.

In: a settings tree. Out: checkpoints and curves in the run's folder. Two all-reduces of a few numbers for each step,
besides ZeRO-3's own traffic.
"""
