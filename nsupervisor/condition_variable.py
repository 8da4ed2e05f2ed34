"""A condition variable for tasks of one trio event loop."""

from __future__ import annotations

from collections.abc import Callable

import trio


class ConditionVariable:
    """Lets tasks wait until a predicate over shared state is true, as `asyncio.Condition` does.

    It has no lock: the tasks share one thread, so nothing changes between the check of a predicate and the wait.
    A task that changes the state calls `notify`. Not for other threads.
    """

    def __init__(self) -> None:
        self._waiting_tasks = trio.lowlevel.ParkingLot()

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Return once `predicate()` is true. It is checked now and after each `notify`; it must not block.

        Returns without a checkpoint if the predicate is true already. When this returns, the predicate is true: it is
        checked again by the waiting task, because another task may have run between `notify` and that.
        """
        while not predicate():
            await self._waiting_tasks.park()

    def notify(self) -> None:
        """Let every waiting task check its predicate again. Never blocks."""
        self._waiting_tasks.unpark_all()
