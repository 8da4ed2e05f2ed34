"""The clock of the service: the kernel's monotonic one as it is, so that times can outlive the process.

trio's own clock adds a number drawn by chance, so that nobody takes its times for those of another process. Here they
are meant to be taken for that: a deadline that one supervisor has set is kept by the next.
"""

import time

import trio


class Monotonic(trio.abc.Clock):
    """CLOCK_MONOTONIC, in seconds."""

    def start_clock(self) -> None:
        """Nothing to do: it runs since the boot."""

    def current_time(self) -> float:
        """The seconds since some moment at the boot."""
        return time.monotonic()

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """How long to sleep until then."""
        return deadline - time.monotonic()
