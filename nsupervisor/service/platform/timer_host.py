"""The host as timers use it: the wall clock, time zones, the machine's id, and files that outlive a stop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import tzinfo
from typing import Protocol

import attrs
import trio

from nsupervisor.linux.timerfd import WallTimer
from nsupervisor.linux.trusted_paths import TrustedDirectory
from nsupervisor.service.platform.timer_zones import find_zone, local_zone

_INSTEAD = "set supervisor.state_directory to another place"
_MAX_STAMP = 64


class WallClock(Protocol):
    """The wall clock, while a task waits for it."""

    async def sleep_until(self, wall: float | None) -> bool:
        """Sleep until a time, in seconds since 1970, or until the clock is set; return whether it was."""


class Stamps(Protocol):
    """The last times of persistent timers, one file each."""

    def read(self, workload: str) -> float | None:
        """Return until when the occurrences of this timer were handled; None if that is not known. Raises OSError."""

    def write(self, workload: str, handled_until: float) -> None:
        """Remember it on the disk. Raises OSError."""


class TimerHost(Protocol):
    """The seam between timers and the operating system."""

    def now(self) -> float:
        """Return the wall clock, in seconds since 1970."""

    def open_clock(self) -> AbstractContextManager[WallClock]: ...

    def zone(self, name: str) -> tzinfo:
        """Return a time zone, that of the host for "". Raises LookupError."""

    def machine_id(self) -> str: ...

    def stamps(self, directory: str, service: str) -> Stamps: ...


@attrs.define(eq=False)
class TimerFdClock:
    """The wall clock of the kernel."""

    timer: WallTimer

    async def sleep_until(self, wall: float | None) -> bool:
        """Implement `WallClock`. The timer counts the time in which the host is suspended, too."""
        if self.timer.set(wall):
            return True
        await trio.lowlevel.wait_readable(self.timer.fd)
        return self.timer.read()


@attrs.define(eq=False)
class StampFiles:
    """Files NAME.stamp in a directory of the state directory, each with a number of seconds."""

    directory: str

    def read(self, workload: str) -> float | None:
        """Implement `Stamps`. A damaged file counts as none."""
        try:
            with (
                TrustedDirectory(self.directory, _INSTEAD) as directory,
                os.fdopen(directory.open(f"{workload}.stamp", os.O_RDONLY), "rb") as file,
            ):
                value = float(file.read(_MAX_STAMP))
        except (FileNotFoundError, ValueError):
            return None
        return value if 0 <= value < 1e11 else None

    def write(self, workload: str, handled_until: float) -> None:
        """Implement `Stamps`, with a flushed file."""
        with TrustedDirectory(self.directory, _INSTEAD, mode=0o755) as directory:
            directory.replace(f"{workload}.stamp", b"%r\n" % handled_until)


class LinuxTimerHost:
    """The host that this process runs on. Implements `TimerHost`."""

    def now(self) -> float:
        import time

        return time.time()

    @contextmanager
    def open_clock(self) -> Iterator[WallClock]:
        timer = WallTimer()
        try:
            yield TimerFdClock(timer)
        finally:
            timer.close()

    def zone(self, name: str) -> tzinfo:
        return find_zone(name) if name else local_zone()

    def machine_id(self) -> str:
        """Return the id of machine-id(5); "" without one, so that the host does not matter."""
        try:
            with open("/etc/machine-id", encoding="ascii") as file:
                return file.read(64).strip()
        except (OSError, ValueError):
            return ""

    def stamps(self, directory: str, service: str) -> Stamps:
        return StampFiles(f"{directory}/timers/{service}")
