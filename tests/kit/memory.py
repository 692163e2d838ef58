"""What a real engine of a test takes of this host's memory, which others need as well."""

from __future__ import annotations

from installer.base.host import Host
from installer.checks.facts import node_memory

ENOUGH, LITTLE = 2.4, 1.2  # GiB, of which the engine itself takes one


def share(gibibytes: float = ENOUGH) -> str:
    """For --gpu-memory-utilization, which without a GPU is a share of a node's memory."""
    return f"{gibibytes * 2**30 / node_memory(Host()):.2f}"
