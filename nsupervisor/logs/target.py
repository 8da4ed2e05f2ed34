"""Where the stream of records goes, opened so that no write can hold up the service."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Callable

import attrs

from .daemons import Journald, Syslog

PIPE_SIZE = 1024 * 1024  # bytes; the default of /proc/sys/fs/pipe-max-size
FILE_WRITE = 1024 * 1024  # bytes handed to a thread at once, to be written to a file; a batch is hardly ever longer
_TAIL = 1024 * 1024  # how far back from a file's end the beginning of its last record is looked for
_RECORD = b'{"timestamp":'
_Write = Callable[["bytes | memoryview"], int]


@attrs.frozen
class Target:
    """An opened output.

    `write` takes bytes and returns how many the kernel took, raises BlockingIOError when it would have to wait and
    OSError when it cannot. When `blocking`, it may wait instead, and belongs into a thread.
    """

    fd: int
    write: _Write
    blocking: bool = False
    most: int = 64 * 1024
    """Bytes of a write that may wait: how quickly a slow reader reads shows only at its end."""
    turns: bool = False
    """Each write takes so long that others should have their turn between two."""
    _socket: socket.socket | None = None

    @property
    def is_terminal(self) -> bool:
        return os.isatty(self.fd)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)


def open_target(output: str | int) -> Target:
    """Open `output`: "stdout", a path (created with mode 0640, appended to), "journald", "syslog:SOCKET", or a
    descriptor, which stays the caller's.

    Raises OSError when that cannot be done, with the path in it.
    """
    if output == "stdout":
        return _open_fd(1)
    if isinstance(output, int):
        return _open_fd(output)
    if output == "journald":
        return Journald()  # type: ignore[return-value]
    if output.startswith("syslog:"):
        return Syslog(output.removeprefix("syslog:"))  # type: ignore[return-value]
    return _open_path(output)


def _open_path(path: str) -> Target:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            # Read and write, so that the pipe and what is in it outlive the collector at its other end: without a
            # reader open(2) would fail (ENXIO), and write(2) too (EPIPE). See fifo(7).
            flags = os.O_RDWR
    except FileNotFoundError:
        pass
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o640)
    _cut_torn_record(path, fd)
    return _plain(fd)


def _cut_torn_record(path: str, fd: int) -> None:
    """A supervisor that was killed may have left the first half of a record, which comes again. Only such a one is
    taken away, nothing that is not ours."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(size - _TAIL, 0))
        tail = file.read()
    begin = tail.rfind(b"\n") + 1
    if tail[begin:].startswith(_RECORD) or (tail[begin:] and _RECORD.startswith(tail[begin:])):
        os.ftruncate(fd, start + begin)


def _open_fd(fd: int) -> Target:
    """Open again what `fd` refers to.

    O_NONBLOCK belongs to the open file description, which a shell, its other children and we share: set on our standard
    output it would make theirs fail with EAGAIN. Opening /proc/self/fd/N gives a description of our own (proc(5)).
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _open_socket(fd)
    if stat.S_ISREG(mode):
        # Nothing to wait for, so nothing to set; and the offset in the description must stay shared, otherwise
        # `nsupervisor run … >file 2>&1` would have the two streams overwrite each other.
        return _plain(os.dup(fd))
    try:
        return _plain(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        # Not ours to open: the pipe or terminal was made by another user before a change of user (EACCES), /proc is
        # not there (ENOENT), or it is a named pipe that nobody reads just now (ENXIO).
        own = os.dup(fd)
        return Target(own, lambda data: os.write(own, data), blocking=True)


def _open_socket(fd: int) -> Target:
    """A socket (as systemd gives for standard output) cannot be opened again, but be told per call not to wait."""
    own = socket.socket(fileno=os.dup(fd))
    if own.type != socket.SOCK_STREAM:
        own.close()
        raise OSError(f"file descriptor {fd} is a socket without a byte stream; records need a stream socket or a pipe")
    return Target(own.fileno(), lambda data: own.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL), socket=own)


def _plain(fd: int) -> Target:
    try:
        # The loop writes once a turn; with the 64 KiB that a pipe has at first, even a quick reader sits idle for most
        # of a turn while busy workloads fill the buffer. Not granted to everybody (pipe(7)), and then does no harm.
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_SIZE:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass
    if stat.S_ISREG(os.fstat(fd).st_mode):
        # Nothing makes a disk not wait: the kernel holds up whoever has written too much of what is not on it yet.
        return Target(fd, lambda data: os.write(fd, data), blocking=True, most=FILE_WRITE)
    return Target(fd, lambda data: os.write(fd, data))
