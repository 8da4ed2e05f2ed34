"""State of a capture whose file cannot be written: the next attempt, the lines that are missing, and the reports."""

from __future__ import annotations

from typing import Any

import attrs

from nsupervisor.terminal.numbers import format_past

RETRY_MIN_S, RETRY_MAX_S = 0.05, 2.0
"""The first and the longest delay in seconds between attempts at a file that cannot be written."""


@attrs.define(eq=False)
class WriteFailures:
    """Times are those of the monotonic clock, in seconds. Any thread may use it, one at a time."""

    gap_lines: int = 0
    """Lines that were dropped since the last successful write."""
    reason: str = ""
    """Why the last write that failed did."""
    is_failing: bool = False
    retry_at: float = 0.0
    """The time from which the file may be tried again."""
    is_reported: bool = False
    """Whether the last report was that it is failing."""
    _retry_delay: float = RETRY_MIN_S
    _dropped_before: int = 0  # the lines that had been dropped when writing began to fail

    def add(self, error: OSError, now: float, dropped: int) -> None:
        """Note that a write failed, and when to try again. `dropped`: the lines that have been dropped until now."""
        if not self.is_failing:
            self.is_failing, self._dropped_before = True, dropped
        self.reason = error.strerror or str(error)
        self.retry_at = now + self._retry_delay
        self._retry_delay = min(2 * self._retry_delay, RETRY_MAX_S)

    def end(self) -> None:
        """Note that a write succeeded."""
        self.is_failing, self._retry_delay = False, RETRY_MIN_S

    def take_report(self, path: str, blocks: bool, dropped: int) -> tuple[str, dict[str, Any]]:
        """Return the level and the fields of a report of the present state, which counts as reported then."""
        self.is_reported = self.is_failing
        if self.is_failing:
            consequence = "the workload waits once its pipe is full" if blocks else "its lines are dropped"
            return "error", {"message": f"cannot write {path}: {self.reason}; {consequence}"}
        lost_lines = dropped - self._dropped_before
        message = f"{path} can be written again; {format_past(lost_lines, 'line', 'dropped')}"
        return "warning", {"message": message, "lines": lost_lines}

    def final_report(self, path: str, dropped: int) -> tuple[str, dict[str, Any]] | None:
        """Return the level and the fields of a report of what the file will lack for good; None if that is nothing."""
        lost_lines = dropped - self._dropped_before
        if not self.is_failing or not lost_lines:
            return None
        message = f"{format_past(lost_lines, 'line', 'dropped')}: cannot write {path}: {self.reason}"
        return "warning", {"message": message, "lines": lost_lines}
