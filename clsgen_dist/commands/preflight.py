"""``clsgen preflight``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clsgen_dist.io.value_ranges import PositiveInt


def run(output_dir: str, timeout_s: PositiveInt = 300) -> None:
    """Look at every node for some seconds before a job trains on it: chips and their errors, disks, speed, links.

    Writes a line per node to OUTPUT_DIR/preflight.jsonl, and bad nodes with their reasons to OUTPUT_DIR/bad_nodes.

    Args:
        output_dir: The run's folder; must be writable from every node.
        timeout_s: Seconds after which a rank that has not answered makes its node a bad one.
    """
    from clsgen_dist.preflight.run import preflight

    preflight(output_dir, timeout_s)
