"""The FIFO by which workloads say what they did and when; see c/report.h."""

import os
import select
import time
from pathlib import Path

from benchmarks.processes import reap


class Reports:
    """Lines "NS NAME WORD…" from many programs through one FIFO."""

    def __init__(self, path: Path) -> None:
        """Make the FIFO; everybody may write to it."""
        self.path = str(path)
        os.mkfifo(path)
        path.chmod(0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # also for writing: so there is no end when nobody writes
        self._rest = b""

    def some(self, timeout: float) -> list[list[str]]:
        """The next lines, each as words; none when the time (seconds) is over."""
        end = time.monotonic() + timeout
        while b"\n" not in self._rest:
            left = end - time.monotonic()
            if left <= 0:
                return []
            if select.select([self._fd], [], [], min(left, 0.02))[0]:
                self._rest += os.read(self._fd, 65536)
            else:
                reap()  # some products look for a process that has ended by its number: it must not stay a zombie
        lines, _, self._rest = self._rest.rpartition(b"\n")
        return [line.decode().split() for line in lines.split(b"\n")]

    def take(self, count: int, timeout: float) -> list[list[str]]:
        """At least `count` lines; fewer when the time is over."""
        end = time.monotonic() + timeout
        lines: list[list[str]] = []
        while len(lines) < count and time.monotonic() < end:
            lines += self.some(end - time.monotonic())
        return lines

    def close(self) -> None:
        """The file goes with its directory."""
        os.close(self._fd)
