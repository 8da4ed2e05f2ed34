"""Fairness between tasks: how long the event loop's current tick takes already, and when to yield to other tasks."""

from __future__ import annotations

import time

import trio

LONG_TICK_S = 0.005
"""Seconds after which a tick is long; with the work in progress then, it stays far below the promised 0.05."""


class LoopTick(trio.abc.Instrument):
    """Tracks when the current tick of this event loop began."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        trio.lowlevel.add_instrument(self)

    def after_io_wait(self, timeout: float) -> None:
        """Note the beginning of a tick."""
        self._started_at = time.monotonic()

    async def yield_if_long(self) -> None:
        """Yield to other tasks until the current tick is not a long one."""
        while time.monotonic() - self._started_at > LONG_TICK_S:
            await trio.lowlevel.checkpoint()
