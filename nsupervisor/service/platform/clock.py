"""The clock of the service: the kernel's monotonic clock unchanged, so that times outlive the process.

The default clock of trio adds a random offset, so that its times cannot be mistaken for those of another process. This
service needs the opposite: the next supervisor keeps the deadlines that the present one has set.
"""

import time

import trio


class MonotonicClock(trio.abc.Clock):
    """CLOCK_MONOTONIC of clock_gettime(2), in seconds."""

    def start_clock(self) -> None:
        """Do nothing: the clock has been running since the boot."""

    def current_time(self) -> float:
        """Return the seconds since an unspecified moment at the boot."""
        return time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how many seconds to sleep until `deadline`."""
        return deadline - time.monotonic()
