"""How a run survives: its folder, one run at a time in it, restarts, signals, hangs, spikes, slow ranks.

In: what happens around the steps. Out: an orderly end with a status that schedulers understand, or another try. Each
costs a few system calls a step, and no collective of its own.
"""
