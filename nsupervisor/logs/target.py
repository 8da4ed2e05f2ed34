"""The target of the stream of records, opened so that no write can block the service."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Callable

import attrs

from nsupervisor.linux.trusted_paths import TrustedDirectory, UntrustedPathError
from nsupervisor.logs.log_daemons import Journald, Syslog

PIPE_SIZE = 1024 * 1024  # bytes; the default of /proc/sys/fs/pipe-max-size
MAX_FILE_WRITE = 1024 * 1024  # bytes that a thread writes to a file at once; a batch is hardly ever longer
_TAIL_SIZE = 1024 * 1024  # bytes at the end of a file that are searched for the beginning of its last record
_RECORD_START = b'{"timestamp":'
_OWN_FD = re.compile(r"(?:/dev/fd/|/proc/self/fd/)(\d+)|/dev/(stdout|stderr)")
_STANDARD_FDS = {"stdout": 1, "stderr": 2}
_Write = Callable[["bytes | memoryview"], int]


@attrs.frozen
class Target:
    """An opened output of the stream of records.

    `write` takes bytes and returns how many the kernel took. It raises BlockingIOError if it would have to wait and
    OSError if it cannot write. If `is_blocking`, it may wait instead, and must be called in a thread.
    """

    fd: int
    write: _Write
    is_blocking: bool = False
    max_write: int = 64 * 1024
    """The largest number of bytes in a write that may block: a slow reader's speed shows only at the end of a write."""
    yields_after_write: bool = False
    """Whether each write takes so long that other tasks must run between two writes."""
    _socket: socket.socket | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the output is a terminal."""
        return os.isatty(self.fd)

    def close(self) -> None:
        """Close the descriptor of the output."""
        if self._socket is not None:
            self._socket.close()
        else:
            os.close(self.fd)


def open_target(output: str | int) -> Target:
    """Open `output`: "stdout", a path, "journald", "syslog:SOCKET", or a descriptor.

    A path is created with mode 0640, and appended to. A descriptor stays the caller's. Raises OSError with the path.
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
    try:
        return _open_named(path)
    except UntrustedPathError:
        raise
    except OSError as error:  # its own path is of a part
        raise OSError(error.errno, error.strerror, path) from None


def _open_named(path: str) -> Target:
    if own := _OWN_FD.fullmatch(path):
        return _open_fd(int(own[1] or _STANDARD_FDS[own[2]]))
    folder, name = os.path.split(path)
    with TrustedDirectory(folder, "set supervisor.log_output to another place") as directory:
        flags = os.O_WRONLY | os.O_APPEND
        try:
            if stat.S_ISFIFO(directory.status(name).st_mode):
                # Read and write, so that the pipe and what is in it outlive the collector at its other end: without a
                # reader open(2) would fail (ENXIO), and write(2) too (EPIPE). See fifo(7).
                flags = os.O_RDWR
        except FileNotFoundError:
            pass
        fd = directory.open(name, flags, mode=0o640)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return _make_target(fd)
        try:
            _lock_shared(fd)
            _cut_torn_record(fd, directory.open(name, os.O_RDONLY))
        except OSError:
            os.close(fd)
            raise
    return Target(fd, _RegularFile(path, fd).write, is_blocking=True, max_write=MAX_FILE_WRITE)


class _RegularFile:
    """A file that is created again if another program has removed it. `write` is called in one thread at a time."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._is_at_line_end = True

    def write(self, data: bytes | memoryview) -> int:
        """Append data. Raises OSError."""
        if self._is_at_line_end and not os.fstat(self._fd).st_nlink:
            target = _open_path(self._path)
            os.dup2(target.fd, self._fd, inheritable=False)  # the sink has this descriptor's number
            target.close()
        written = os.write(self._fd, data)
        self._is_at_line_end = data[written - 1] == ord("\n")
        return written


def _lock_shared(fd: int) -> None:
    """Lock the file against `LogFile`, which would rotate it. Raises OSError if a `LogFile` has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "is the log file of a workload; write another path") from None
    except OSError:
        pass  # this file system has no locks


def _cut_torn_record(fd: int, readable: int) -> None:
    """Cut off an incomplete record at the end of the file `fd`; `readable` is a descriptor of it that is closed.

    A supervisor that was killed may have left the first half of a record, which is written again. Only the beginning of
    such a record is removed, nothing that another program wrote.
    """
    with os.fdopen(readable, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = file.seek(max(size - _TAIL_SIZE, 0))
        tail = file.read()
    begin = tail.rfind(b"\n") + 1
    if tail[begin:].startswith(_RECORD_START) or (tail[begin:] and _RECORD_START.startswith(tail[begin:])):
        os.ftruncate(fd, start + begin)


def _open_fd(fd: int) -> Target:
    """Open the file behind `fd` again.

    O_NONBLOCK belongs to the open file description, which a shell, its other children and this process share: set on
    our standard output, it would make their writes fail with EAGAIN. Opening /proc/self/fd/N gives a separate
    description (proc(5)).
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return _open_socket(fd)
    if stat.S_ISREG(mode):
        # A regular file ignores O_NONBLOCK; and the offset in the description must stay shared, otherwise the two
        # streams of `nsupervisor run … >file 2>&1` would overwrite each other.
        return _make_target(os.dup(fd))
    try:
        return _make_target(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        # The pipe or terminal was made by another user before a change of user (EACCES), /proc is not mounted
        # (ENOENT), or it is a named pipe without a reader (ENXIO).
        own = os.dup(fd)
        return Target(own, lambda data: os.write(own, data), is_blocking=True)


def _open_socket(fd: int) -> Target:
    """Use a socket (systemd's standard output) without blocking.

    A socket cannot be opened again, but each send can be non-blocking.
    """
    own = socket.socket(fileno=os.dup(fd))
    if own.type != socket.SOCK_STREAM:
        own.close()
        raise OSError(f"file descriptor {fd} is a socket without a byte stream; records need a stream socket or a pipe")
    return Target(own.fileno(), lambda data: own.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL), socket=own)


def _make_target(fd: int) -> Target:
    try:
        # The event loop writes once a tick; with the 64 KiB that a pipe has at first, even a quick reader is idle for
        # most of a tick while busy workloads fill the buffer. Enlarging may be refused (pipe(7)), which does no harm.
        if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < PIPE_SIZE:
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass
    if stat.S_ISREG(os.fstat(fd).st_mode):
        # A disk has no non-blocking mode: the kernel blocks a writer with too many dirty pages.
        return Target(fd, lambda data: os.write(fd, data), is_blocking=True, max_write=MAX_FILE_WRITE)
    return Target(fd, lambda data: os.write(fd, data))
