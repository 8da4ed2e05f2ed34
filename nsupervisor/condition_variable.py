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
        self._waiting: dict[trio.lowlevel.Task, Callable[[], object]] = {}

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Return once `predicate()` is true. It is checked now and after each `notify`; it must not block.

        Returns without a checkpoint if the predicate is true already. When this returns, the predicate is true: it is
        checked again by the waiting task, because another task may have run between `notify` and that.
        """
        while not predicate():
            task = trio.lowlevel.current_task()
            self._waiting[task] = predicate

            def abort(_: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                del self._waiting[task]
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)

    def notify(self) -> None:
        """Wake every waiting task whose predicate is true. Never blocks.

        Most changes concern none of the tasks that wait, and to wake one costs more than to check its predicate.
        """
        for task in [task for task, predicate in self._waiting.items() if predicate()]:
            del self._waiting[task]
            trio.lowlevel.reschedule(task)
