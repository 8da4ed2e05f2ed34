"""A child's pipes and sockets: both ends, and the fixed descriptor numbers of the child's ends."""

from __future__ import annotations

import fcntl
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

REPORT_FD, STARTED_FD, STDOUT_FD, STDERR_FD, EXITS_FD = 3, 4, 5, 6, 7
"""Descriptor numbers in a child: the set-up's socket to the keeper, the init's own socket during its start, the log
pipes, and the single socket on which all inits report exit statuses. The keeper leaves these numbers free. `clone.c`
knows `STARTED_FD` and `EXITS_FD`."""

FIRST_FREE_FD = 8

_LOG_PIPE_MODE = 0o622
"""Every user may write: a program that starts as root and becomes another user opens /dev/stderr by its name, too.
The only name of a pipe is /proc/PID/fd/N, which only a process with rights over that process may follow (proc(5))."""


class Descriptors:
    """Both ends of a child's pipes and sockets. The keeper's ends do not block; -1 means that there is none.

    `report`: the socket on which the set-up reports its result. `started_fd`: the socket on which an init reports that
    it has started.
    """

    __slots__ = ("child_fds", "report", "started_fd", "stderr", "stdout")

    def __init__(self, with_init: bool) -> None:
        """Open everything. Raises OSError (EMFILE), with nothing left open."""
        opened: list[int] = []
        try:
            for _ in (STDOUT_FD, STDERR_FD):
                opened += os.pipe()
                opened.append(_reopen_read_write(opened.pop()))
            for _ in (REPORT_FD, STARTED_FD)[: 1 + with_init]:
                keeper_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                opened += (keeper_end.detach(), child_end.detach())
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        for fd in opened[::2]:
            os.set_blocking(fd, False)
        for fd in opened[:3:2]:
            os.fchmod(fd, _LOG_PIPE_MODE)
        self.stdout, self.stderr = opened[0], opened[2]
        self.report = credentials_socket(opened[4])
        self.started_fd = credentials_socket(opened[6]).detach() if with_init else -1
        self.child_fds = dict(zip((STDOUT_FD, STDERR_FD, REPORT_FD, STARTED_FD), opened[1::2], strict=False))

    def give_output_to(self, owner: tuple[int, int]) -> None:
        """Make (uid, gid) the owner of the log pipes, so that the program may open its /dev/stdout and /dev/stderr."""
        for fd in (self.stdout, self.stderr):
            try:
                os.fchown(fd, *owner)
            except PermissionError:  # without CAP_CHOWN; the mode is enough to write
                pass

    def enter_child(self, kept: Sequence[int] = ()) -> None:
        """Move the child's ends to their fixed numbers, and close everything else but `kept`. Called in the child."""
        for number, fd in self.child_fds.items():
            os.dup2(fd, number, inheritable=False)
        if STARTED_FD not in self.child_fds:
            os.close(STARTED_FD)
        first = EXITS_FD
        for fd in sorted(kept):
            os.closerange(first, fd)
            first = fd + 1
        os.closerange(first, 0x7FFF_FFFF)

    def close_child_ends(self) -> None:
        """Close the child's ends in the keeper, when the child has them."""
        for fd in self.child_fds.values():
            os.close(fd)
        self.child_fds = {}

    def close_keeper_ends(self) -> None:
        """Close the keeper's ends, when there is no child."""
        self.report.close()
        self.close_started()
        for fd in (self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.stdout = self.stderr = -1

    def close_started(self) -> None:
        """Close the init's socket, when the init has started and has received all that it needs."""
        if self.started_fd >= 0:
            os.close(self.started_fd)
            self.started_fd = -1


class ReserveFds:
    """Two reserved descriptors for when no others are free: for a new connection, and for reading about its peer."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: list[int] = []
        try:
            while len(self._fds) < 2:
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:  # the limit has been lowered below the number of open files
            pass

    def close(self) -> None:
        """Close the reserved descriptors, so that others can be opened."""
        while self._fds:
            os.close(self._fds.pop())


def gather(fds: Sequence[int], first: int, inheritable: bool = False) -> list[int]:
    """Duplicate descriptors to consecutive numbers from `first` on, and return these; what had them is closed.

    Raises OSError: EMFILE or EINVAL if the limit on open files is too low.
    """
    # Above all targets first, so that no dup2 overwrites the source of another one.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first + len(fds)) for fd in fds]
    for number, copy in enumerate(copies, first):
        os.dup2(copy, number, inheritable=inheritable)
        os.close(copy)
    return list(range(first, first + len(fds)))


def open_readiness_pipe() -> tuple[int, int]:
    """Return the read end, which does not block, and the program's end of the pipe for the newline of readiness."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return reader, _reopen_read_write(writer)


def credentials_socket(fd: int) -> socket.socket:
    """Wrap the keeper's end, and have the kernel add the sender's pid to each message (SO_PASSCRED, unix(7))."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return end


def _reopen_read_write(fd: int) -> int:
    """Reopen the write end of a pipe for reading and writing; `fd` is closed.

    The program then counts as a reader of its own pipe, so it gets no SIGPIPE while neither the keeper nor the
    supervisor runs, and a supervisor can reopen the read end through the program's descriptor.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(fd)
