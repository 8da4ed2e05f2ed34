"""Fairness between tasks: how long the event loop's current tick takes already, and when to yield to other tasks."""

from __future__ import annotations

import time

import trio

LONG_TICK_S = 0.005
"""Seconds after which a tick is long; with the work in progress then, it stays far below the promised 0.05."""
_WAKE_COUNT = 16
"""Waiting tasks that continue together after a long tick. Each then wakes one more, until a tick is long again."""


class LoopTick(trio.abc.Instrument):
    """Tracks when the current tick of this event loop began."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._has_yielding_task = False
        self._waiting = trio.lowlevel.ParkingLot()
        trio.lowlevel.add_instrument(self)

    def after_io_wait(self, timeout: float) -> None:
        """Note the beginning of a tick."""
        self._started_at = time.monotonic()

    async def yield_if_long(self) -> None:
        """Yield to other tasks until the current tick is not a long one.

        One task yields, and the others wait for it in a queue. If each yielded by itself, then with thousands of tasks
        the tick in which they all look again would be a long one, and the next, and the loop would do little else.
        """
        has_waited = False
        while self._is_long():
            has_waited = True
            if self._has_yielding_task:
                await self._waiting.park()
                continue
            self._has_yielding_task = True
            try:
                while self._is_long():
                    await trio.lowlevel.checkpoint()
            finally:
                self._has_yielding_task = False
                self._waiting.unpark(count=_WAKE_COUNT)
        if has_waited:  # while tasks wait there is a yielding task, or a woken one, which wakes the next
            self._waiting.unpark()

    def _is_long(self) -> bool:
        return time.monotonic() - self._started_at > LONG_TICK_S
