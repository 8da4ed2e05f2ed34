"""The titles by which an init shows whose it is: a supervisor without cgroups finds its workloads by them."""

from __future__ import annotations

import hashlib

INIT_COMMAND = "nsupervisor-ini"
"""The name of each init's command, /proc/PID/comm."""
INIT_TITLE = "nsupervisor: init "
"""The beginning of the title of an init that has a program."""
_MAX_BYTES = 100
"""The longest path in a title; an init has room for 126 bytes."""


def tree_title(path: str) -> str:
    """Return how the title of an init names the process tree `path`: as it is, or by a digest if it is too long."""
    data = path.encode("utf-8", "surrogateescape")
    if len(data) <= _MAX_BYTES:
        return path
    return f"#{hashlib.blake2b(data, digest_size=16).hexdigest()}"
