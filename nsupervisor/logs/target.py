"""The target of the stream of records, opened so that no write can block the service."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import attrs

from nsupervisor.linux.trusted_paths import TrustedDirectory, UntrustedPathError
from nsupervisor.logs.log_daemons import Journald, Syslog
from nsupervisor.logs.log_file import NO_ROTATION, STREAM_FILE, LogFile, Rotation

PIPE_SIZE = 1024 * 1024  # bytes; the default of /proc/sys/fs/pipe-max-size
MAX_FILE_WRITE = 1024 * 1024  # bytes that a thread writes to a file at once; a batch is hardly ever longer
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
    log_file: LogFile | None = None
    """The regular file that it writes to, if it was opened by its path: `fd` is -1 then."""
    _socket: socket.socket | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the output is a terminal."""
        return os.isatty(self.fd)

    def close(self) -> None:
        """Close the descriptor of the output."""
        if self._socket is not None:
            self._socket.close()
        elif self.log_file is not None:
            if self.log_file.lock.acquire(blocking=False):  # else a thread uses it, and may wait for its disk
                try:
                    self.log_file.close()
                finally:
                    self.log_file.lock.release()
        else:
            os.close(self.fd)


def open_target(output: str | int, rotation: Rotation = NO_ROTATION) -> Target:
    """Open `output`: "stdout", a path, "journald", "syslog:SOCKET", or a descriptor.

    A path is created with mode 0640, appended to, and rotated. A descriptor stays the caller's. Raises OSError with the
    path.
    """
    if output == "stdout":
        return _open_fd(1)
    if isinstance(output, int):
        return _open_fd(output)
    if output == "journald":
        return Journald()  # type: ignore[return-value]
    if output.startswith("syslog:"):
        return Syslog(output.removeprefix("syslog:"))  # type: ignore[return-value]
    return _open_path(output, rotation)


def _open_path(path: str, rotation: Rotation) -> Target:
    try:
        return _open_named(path, rotation)
    except UntrustedPathError:
        raise
    except OSError as error:  # its own path is of a part
        raise OSError(error.errno, error.strerror, path) from None


def _open_named(path: str, rotation: Rotation) -> Target:
    if own := _OWN_FD.fullmatch(path):
        return _open_fd(int(own[1] or _STANDARD_FDS[own[2]]))
    folder, name = os.path.split(path)
    with TrustedDirectory(folder, STREAM_FILE.instead) as directory:
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
        os.close(fd)
    file = LogFile(Path(path), rotation, use=STREAM_FILE)
    file.apply_settings()  # opens it

    def write(data: bytes | memoryview) -> int:
        source = data.obj if isinstance(data, memoryview) else data
        # Without a copy, unless it is a part of a batch.
        return file.append_part(source if isinstance(source, bytes) and len(source) == len(data) else bytes(data))

    return Target(-1, write, is_blocking=True, max_write=MAX_FILE_WRITE, log_file=file)


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
