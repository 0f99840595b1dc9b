"""DeepSpeed's engine around the dual-head model: processes, ZeRO-3, optimizer, loop, checkpoints."""
