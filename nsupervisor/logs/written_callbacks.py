"""Calls when records are in the output: one task for all that wait, as thousands of programs may end at once."""

from collections.abc import Callable

import attrs
import trio

from nsupervisor.logs.journal import Journal


@attrs.define(eq=False)
class WrittenCallbacks:
    """The callbacks that wait for records of one journal."""

    journal: Journal
    nursery: trio.Nursery
    _waiting: list[Callable[[], None]] = attrs.field(init=False, factory=list)
    _has_task: bool = attrs.field(init=False, default=False)

    def add(self, callback: Callable[[], None]) -> None:
        """Call `callback` when all records so far have been written, or are lost."""
        self._waiting.append(callback)
        if not self._has_task:
            self._has_task = True
            self.nursery.start_soon(self._run)

    async def _run(self) -> None:
        # Those that come while this waits are about later records: they are in the next round.
        while self._waiting:
            callbacks, self._waiting = self._waiting, []
            await self.journal.wait_written()
            for callback in callbacks:
                callback()
        self._has_task = False
