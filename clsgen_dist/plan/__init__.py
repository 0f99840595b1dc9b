"""What a recipe needs and costs on a cluster, before you request a GPU.

In: settings, a cluster file, rows or their number. Out: memory, traffic, time, GPU-hours with ranges, and advice.
It runs the training code itself on torch's meta device: seconds for 70B.
"""
