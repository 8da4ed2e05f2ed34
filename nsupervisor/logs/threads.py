"""Threads for operations that may wait for a disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio

_T = TypeVar("_T")
_limiters: dict[Path, trio.CapacityLimiter] = {}


async def run_in_thread(directory: Path, work: Callable[..., _T], *arguments: Any) -> _T:
    """Call `work` in a thread: eight at a time for each directory.

    So a disk that does not answer delays only the work on that disk. On cancellation the thread is abandoned.
    """
    limiter = _limiters.setdefault(directory, trio.CapacityLimiter(8))
    return await trio.to_thread.run_sync(work, *arguments, limiter=limiter, abandon_on_cancel=True)
