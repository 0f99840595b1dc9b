"""What a run will need and cost, before a GPU is asked for: memory, traffic, time, checkpoints, faults."""
