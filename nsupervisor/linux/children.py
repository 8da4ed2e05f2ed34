"""Children of this process that a task waits for: process 1 reaps all others, but leaves these alone.

A child has no pid before it is forked, and may have ended before any task knows its pid. So while such a child is being
forked, no child at all is reaped; from then on it is known by its pid. For the thread of the event loop only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_being_forked: set["ExpectedChild"] = set()
_pids: dict["ExpectedChild", int] = {}


class ExpectedChild:
    """One expected child; passed to `trio.run_process` as its `task_status`, which is called after the fork."""

    def started(self, process: Any) -> None:
        """Record the pid of the forked child."""
        _being_forked.discard(self)
        _pids[self] = process.pid


@contextmanager
def expect_child() -> Iterator[Any]:
    """While the block forks a child and waits for it, leave the child's exit status to the block."""
    child = ExpectedChild()
    _being_forked.add(child)
    try:
        yield child
    finally:
        _being_forked.discard(child)
        _pids.pop(child, None)


def is_expected(pid: int) -> bool:
    """Return whether a task may be waiting for this child."""
    return bool(_being_forked) or pid in _pids.values()
