"""Limit how many records the status texts of a program write (`STATUS=`, sd_notify(3)).

A program may send thousands of texts a second. The latest one matters: it is reported at most once a second.
"""

from collections.abc import Callable

import trio

REPORT_INTERVAL_S = 1.0
"""Minimum seconds between two reports of one program's status text."""


class StatusTexts:
    """The latest status text of a program, reported if it has changed and at most once in `REPORT_INTERVAL_S`.

    `report` is called with a text and the number of texts since the previous report that were not reported.
    """

    def __init__(self, nursery: trio.Nursery, report: Callable[[str, int], None]) -> None:
        self._nursery = nursery
        self._report = report
        self._reported: str | None = None
        self._pending: str | None = None
        self._suppressed = 0
        self._next_report_at = trio.current_time()
        self._is_waiting = False

    def offer(self, text: str) -> None:
        """Report a text at once if the interval has passed; otherwise report it later, or a later one in its place."""
        if self._pending is not None:
            self._suppressed += 1
        if text == self._reported:
            self._pending = None
            self._suppressed += 1
            return
        self._pending = text
        if self._is_waiting:
            return
        if trio.current_time() >= self._next_report_at:
            self.flush()
        else:
            self._is_waiting = True
            self._nursery.start_soon(self._report_later)

    async def _report_later(self) -> None:
        await trio.sleep_until(self._next_report_at)
        self._is_waiting = False
        self.flush()

    def flush(self) -> None:
        """Report the text that waits, if there is one."""
        if self._pending is None:
            return
        text, suppressed = self._pending, self._suppressed
        self._reported, self._pending, self._suppressed = text, None, 0
        self._next_report_at = trio.current_time() + REPORT_INTERVAL_S
        self._report(text, suppressed)
