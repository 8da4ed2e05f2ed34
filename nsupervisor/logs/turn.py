"""How long the event loop's present turn takes already: who has much to do leaves the rest for a later one."""

from __future__ import annotations

import time

import trio

LONG = 0.005
"""Seconds after which a turn is long enough; with what is under way then, it stays far below the promised 0.05."""


class Turn(trio.abc.Instrument):
    """Of the loop in which it is made, for as long as that runs."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        trio.lowlevel.add_instrument(self)

    def after_io_wait(self, timeout: float) -> None:
        """A turn begins."""
        self._began = time.monotonic()

    async def share(self) -> None:
        """Wait for a later turn as long as this one has been long enough."""
        while time.monotonic() - self._began > LONG:
            await trio.lowlevel.checkpoint()
