"""The FIFO through which workloads report events with their times; see c/report.h."""

import os
import select
import time
from pathlib import Path

from benchmarks.processes import reap


class Reports:
    """Lines "NS NAME WORD…" from many programs through one FIFO."""

    def __init__(self, path: Path) -> None:
        """Create the FIFO; every user may write to it."""
        self.path = str(path)
        os.mkfifo(path)
        path.chmod(0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # O_RDWR: no end of file without a writer
        self._rest = b""

    def some(self, timeout: float) -> list[list[str]]:
        """Return the next lines, each as words; none after `seconds`."""
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
        """Return at least `count` lines; fewer if the time is over."""
        end = time.monotonic() + timeout
        lines: list[list[str]] = []
        while len(lines) < count and time.monotonic() < end:
            lines += self.some(end - time.monotonic())
        return lines

    def close(self) -> None:
        """Close the FIFO; its directory is removed later."""
        os.close(self._fd)
