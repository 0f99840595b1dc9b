"""Nodes looked at before a job trains on them: chips, disks, speed, links.

In: one task for each GPU. Out: ``preflight.jsonl``, ``bad_nodes``, and a status. Some seconds at each start.
"""
