"""Node health checks before a job trains: chips, disks, speed, links.

In: one task per GPU. Out: ``preflight.jsonl``, ``bad_nodes``, and an exit code. Cost: some seconds at each start.
"""
