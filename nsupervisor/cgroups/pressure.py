"""Pressure triggers (PSI): be told when the tasks of a cgroup were stalled for too long within a window."""

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

_UNPRIVILEGED = (
    2_000_000  # without CAP_SYS_RESOURCE windows are multiples of 2 s (psi_trigger_create in kernel/sched/psi.c)
)


@attrs.define(eq=False)
class Trigger:
    """One trigger that the kernel has. stall_us, window_us: what is in force, in microseconds.

    Each has an epoll of its own. Polling a pressure file takes the event away, and waiting on a nested epoll polls what
    is in it, so that by the time one could ask a common epoll which trigger fired, nobody would know any more. An event
    during the callback can be lost the same way; while pressure lasts, the next window brings another.
    """

    cgroup: Cgroup
    file: str
    kind: str
    stall_us: int
    window_us: int
    _fd: int
    _epoll: select.epoll
    closed: bool = attrs.field(default=False, init=False)

    @classmethod
    def open(cls, cgroup: Cgroup, file: str, kind: str, stall_us: int, window_us: int) -> Trigger:
        """Set the trigger. CgroupError when the kernel refuses it."""
        path = HOST_FILES.get(file) or f"{cgroup.directory(file)}/{file}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise CgroupError(f"cannot watch {file} of {cgroup.name}: {error.strerror}") from error
        epoll = select.epoll()
        try:
            try:
                _set(fd, kind, stall_us, window_us)
            except OSError as error:
                wider = -(-window_us // _UNPRIVILEGED) * _UNPRIVILEGED
                if error.errno not in (errno.EINVAL, errno.EPERM) or wider == window_us:
                    raise
                stall_us, window_us = stall_us * wider // window_us, wider
                _set(fd, kind, stall_us, window_us)
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
        while not self.closed:
            try:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            except trio.ClosedResourceError:
                return
            if self.closed:
                return
            # Nothing is left to be told here but POLLERR, which a removed cgroup says for ever.
            if any(mask & (select.EPOLLERR | select.EPOLLHUP) for _, mask in self._epoll.poll(0)):
                self.close()
                return
            try:
                reading = Reading(self.file, self.cgroup.read(self.file))
            except CgroupGoneError:
                self.close()
                return
            on_trigger(reading)

    def close(self) -> None:
        """Take the trigger away. No callback comes after this."""
        if not self.closed:
            self.closed = True
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fd)


@attrs.define(eq=False)
class Stalled:
    """What a trigger does, without one: a job that reads the file's total once a window (seconds), and compares."""

    cgroup: Cgroup
    file: str
    kind: str
    stall_us: int
    window: float
    on_stall: Callable[[Reading], None]
    total: float | None = None

    def __call__(self) -> float:
        """Compare; after how many seconds to do so again."""
        try:
            reading = Reading(self.file, self.cgroup.read(self.file))
        except CgroupGoneError:
            return math.inf
        before, self.total = self.total, reading.values[f"{self.kind} total"]
        if before is not None and self.total - before > self.stall_us:
            self.on_stall(reading)
        return self.window


def _set(fd: int, kind: str, stall_us: int, window_us: int) -> None:
    # The kernel overwrites the last byte that it is given, hence the NUL.
    os.write(fd, f"{kind} {stall_us} {window_us}\0".encode())
