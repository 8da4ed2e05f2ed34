"""Pressure triggers (PSI): a notification when the tasks of a cgroup were stalled for too long within a window."""

from __future__ import annotations

import errno
import math
import os
import select
from collections.abc import Callable

import attrs
import trio

from nsupervisor.cgroups.cgroup import Cgroup
from nsupervisor.cgroups.errors import CgroupError, CgroupGoneError
from nsupervisor.cgroups.parsing import HOST_FILES
from nsupervisor.cgroups.readings import Reading

_UNPRIVILEGED_WINDOW_US = (
    2_000_000  # without CAP_SYS_RESOURCE windows are multiples of 2 s (psi_trigger_create in kernel/sched/psi.c)
)


@attrs.define(eq=False)
class Trigger:
    """One trigger in the kernel. stall_us, window_us: the values in force, in microseconds.

    Each trigger has its own epoll instance. Polling a pressure file consumes the event, and waiting on a nested epoll
    polls its files, so a shared epoll could no longer report which trigger fired. An event during the callback can be
    lost the same way; while pressure lasts, the next window brings another.
    """

    cgroup: Cgroup
    file: str
    kind: str
    stall_us: int
    window_us: int
    _fd: int
    _epoll: select.epoll
    is_closed: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, cgroup: Cgroup, file: str, kind: str, stall_us: int, window_us: int) -> Trigger:
        """Set the trigger, with a wider window if the process lacks CAP_SYS_RESOURCE.

        Raises CgroupError if the kernel refuses it.
        """
        path = HOST_FILES.get(file) or f"{cgroup.directory(file)}/{file}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CgroupError(f"cannot watch {file} of {cgroup.name}: {error.strerror}") from error
        epoll = select.epoll()
        try:
            try:
                _write_trigger(fd, kind, stall_us, window_us)
            except OSError as error:
                wider_us = -(-window_us // _UNPRIVILEGED_WINDOW_US) * _UNPRIVILEGED_WINDOW_US
                if error.errno not in (errno.EINVAL, errno.EPERM) or wider_us == window_us:
                    raise
                stall_us, window_us = stall_us * wider_us // window_us, wider_us
                _write_trigger(fd, kind, stall_us, window_us)
            epoll.register(fd, select.EPOLLPRI)
        except OSError as error:
            epoll.close()
            os.close(fd)
            raise CgroupError(
                f"cannot watch {file} of {cgroup.name} for {kind} {stall_us} us in {window_us} us: {error.strerror} "
                "(the window is 500000 to 10000000 us, the stall less)"
            ) from error
        return cls(cgroup, file, kind, stall_us, window_us, fd, epoll)

    async def run(self, on_trigger: Callable[[Reading], None]) -> None:
        """Call on_trigger whenever the trigger fires, until it is closed or the cgroup is removed."""
        while not self.is_closed:
            try:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            except trio.ClosedResourceError:
                return
            if self.is_closed:
                return
            # The event is consumed already. Only POLLERR is left, which a removed cgroup reports permanently.
            if any(mask & (select.EPOLLERR | select.EPOLLHUP) for _, mask in self._epoll.poll(0)):
                self.close()
                return
            try:
                reading = Reading(self.file, self.cgroup.read_cached(self.file))
            except CgroupGoneError:
                self.close()
                return
            on_trigger(reading)

    def close(self) -> None:
        """Remove the trigger. No callback comes after this."""
        if not self.is_closed:
            self.is_closed = True
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fd)


@attrs.define(eq=False)
class StallPoller:
    """A sampler job that replaces a trigger: it reads the file's total once a window (seconds) and compares."""

    cgroup: Cgroup
    file: str
    kind: str
    stall_us: int
    window_s: float
    on_stall: Callable[[Reading], None]
    previous_total: float | None = None

    def __call__(self) -> float:
        """Compare the totals; return the seconds until the next comparison."""
        try:
            reading = Reading(self.file, self.cgroup.read_cached(self.file))
        except CgroupGoneError:
            return math.inf
        previous_total, self.previous_total = self.previous_total, reading.values[f"{self.kind} total"]
        if previous_total is not None and self.previous_total - previous_total > self.stall_us:
            self.on_stall(reading)
        return self.window_s


def _write_trigger(fd: int, kind: str, stall_us: int, window_us: int) -> None:
    # The kernel overwrites the last byte that it is given, hence the NUL.
    os.write(fd, f"{kind} {stall_us} {window_us}\0".encode())
