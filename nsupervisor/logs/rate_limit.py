"""Limit how much output of a workload is recorded in a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from nsupervisor.logs.framing import count_newlines

WINDOW_S = 1.0
"""Seconds for which a limit counts. A window begins with the first output after the end of the previous one.

So output is dropped in one piece, and needs one record for that, unlike with a bucket that fills all the time.
"""


class RateLimiter:
    """The limit of one workload instance, for both of its streams, whose captures may run in two threads."""

    def __init__(
        self, max_bytes: int | None, max_lines: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Allow this many bytes and lines in a second; None: any number."""
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._clock = clock
        self._lock = threading.Lock()
        self._window_began_at = float("-inf")
        self._bytes = 0
        self._lines = 0

    def configure(self, max_bytes: int | None, max_lines: int | None) -> None:
        """Use other limits, also for the present second."""
        self._max_bytes, self._max_lines = max_bytes, max_lines

    def allowed_length(self, data: bytes) -> int:
        """Return how much of `data` may be recorded now: whole lines, if it has line ends; 0: it is to be dropped.

        A line that is longer than the limit is allowed as the only one of its second.
        """
        with self._lock:
            now = self._clock()
            if now - self._window_began_at >= WINDOW_S:
                self._window_began_at, self._bytes, self._lines = now, 0, 0
            length = len(data)
            if self._max_lines is not None:
                lines_left = self._max_lines - self._lines
                if lines_left <= 0:
                    return 0
                if count_newlines(data) > lines_left:
                    length = _end_of_line(data, lines_left)
            if self._max_bytes is not None and length > (bytes_left := self._max_bytes - self._bytes):
                if end := data.rfind(b"\n", 0, max(bytes_left, 0)) + 1:
                    return end
                return 0 if self._bytes else data.find(b"\n") + 1 or length
            return length

    def charge(self, size: int, lines: int) -> None:
        """Count what has been recorded."""
        with self._lock:
            self._bytes += size
            self._lines += lines

    @property
    def remaining_sec(self) -> float:
        """Seconds until the end of the present window; 0 if it has ended."""
        return max(self._window_began_at + WINDOW_S - self._clock(), 0)


def _end_of_line(data: bytes, number: int) -> int:
    """Return where line `number`, from 1 on, ends; `data` has that many."""
    end = 0
    for _ in range(number):
        end = data.index(b"\n", end) + 1
    return end
