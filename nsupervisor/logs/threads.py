"""Threads for operations that may wait: for a disk, or for the kernel."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import trio

_T = TypeVar("_T")
ThreadRunner = Callable[..., Awaitable[Any]]
"""Calls a function elsewhere, as `trio.to_thread.run_sync` does, with the same keyword arguments."""
THREAD_RUNNER: trio.lowlevel.RunVar[ThreadRunner] = trio.lowlevel.RunVar("THREAD_RUNNER", trio.to_thread.run_sync)
"""The thread runner of this run of trio. A deterministic run has no threads, and sets another one."""
_limiters: dict[Path, trio.CapacityLimiter] = {}


async def run_in_thread(directory: Path, work: Callable[..., _T], *arguments: Any) -> _T:
    """Call `work` in a thread: eight at a time for each directory.

    So a disk that does not answer delays only the work on that disk. On cancellation the thread is abandoned.
    """
    limiter = _limiters.setdefault(directory, trio.CapacityLimiter(8))
    return await call_in_thread(work, *arguments, limiter=limiter, abandon_on_cancel=True)


async def call_in_thread(
    work: Callable[..., _T],
    *arguments: Any,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> _T:
    """Call `work` in a thread, as `trio.to_thread.run_sync` does."""
    run = THREAD_RUNNER.get()
    result: _T = await run(work, *arguments, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
    return result
