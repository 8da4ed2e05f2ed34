"""Which children of this process are waited for by somebody: process 1, which reaps all others, leaves those alone.

A child has no number before it is forked, and may have ended before anybody has been told of it. So while one is being
forked, nobody at all is reaped; from then on it is known by its number. For the thread of the event loop only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_forking: set["Claim"] = set()
_known: dict["Claim", int] = {}


class Claim:
    """One child; give it to `trio.run_process` as its ``task_status``, which is told once the child is there."""

    def started(self, process: Any) -> None:
        """It has been forked."""
        _forking.discard(self)
        _known[self] = process.pid


@contextmanager
def own_child() -> Iterator[Any]:
    """While a child is forked and waited for in the block, nobody else takes its exit status."""
    claim = Claim()
    _forking.add(claim)
    try:
        yield claim
    finally:
        _forking.discard(claim)
        _known.pop(claim, None)


def spoken_for(pid: int) -> bool:
    """Somebody may be waiting for this child."""
    return bool(_forking) or pid in _known.values()
