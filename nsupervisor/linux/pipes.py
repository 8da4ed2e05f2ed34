"""What Python 3.11 does not wrap of pipes: tee(2), their size, and how much waits in one."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import termios

from nsupervisor.linux.syscalls import fail, libc

_SPLICE_F_NONBLOCK = 2


def tee(source: int, target: int, count: int) -> int:
    """Put up to `count` bytes that wait in pipe `source` into pipe `target`, too, without copying or taking them.

    Returns how many; 0 at the end of `source`. Raises BlockingIOError when there is nothing to take or no room for it.
    """
    done = libc.tee(source, target, ctypes.c_size_t(count), _SPLICE_F_NONBLOCK)
    if done < 0:
        raise fail("tee")
    return int(done)


def size(fd: int) -> int:
    """How many bytes the pipe holds at most, if they come in whole pages (pipe(7))."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def enlarge(fd: int, wanted: int) -> int:
    """Make the pipe hold `wanted` bytes, or as many as we may have; what it holds then."""
    has = size(fd)
    while wanted > has:
        try:
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, wanted)
        except OSError:  # above pipe-max-size, or the user's pipe-user-pages-soft is used up
            wanted //= 2
    return has


def waiting(fd: int) -> int:
    """How many bytes can be read now."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


def make(wanted: int) -> tuple[int, int]:
    """A pipe of our own that does not block, and holds `wanted` bytes where we may."""
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    enlarge(ends[0], wanted)
    return ends
