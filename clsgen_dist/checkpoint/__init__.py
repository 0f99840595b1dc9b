"""Checkpoints that count only when committed: ``folders`` finds them, ``marker`` says what they are, ``saver`` writes
them, ``loading`` goes on from one, ``canary`` proves that the weights arrived.

In: DeepSpeed's engine and the run's state. Out: ``checkpoints/step-00000120/``, whole or not at all. A save costs a
copy of the shard to host memory; writing, flushing and checksums go on beside the steps.
"""
