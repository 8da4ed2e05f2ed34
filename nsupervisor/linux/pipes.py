"""Pipe operations that Python 3.11 does not wrap: tee(2), the size, and the number of available bytes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import termios

from nsupervisor.linux.syscalls import last_error, libc

_SPLICE_F_NONBLOCK = 2


def tee(source: int, target: int, count: int) -> int:
    """Duplicate up to `count` bytes of pipe `source` into pipe `target`, without copying or taking them.

    Returns how many; 0 at the end of `source`. Raises BlockingIOError if `source` is empty or `target` is full.
    """
    while True:
        teed = libc.tee(source, target, ctypes.c_size_t(count), _SPLICE_F_NONBLOCK)
        if teed >= 0:
            return int(teed)
        error = last_error("tee")
        # A signal may arrive during the call: for an empty pipe, the kernel looks for signals first. Python repeats
        # its own system calls then (PEP 475); ctypes does not.
        if error.errno != errno.EINTR:
            raise error


def get_capacity(fd: int) -> int:
    """Return the capacity of the pipe in bytes, if it is filled with whole pages (pipe(7))."""
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def enlarge(fd: int, new_size: int) -> int:
    """Enlarge the pipe to `new_size` bytes, or as far as permitted; return its capacity."""
    capacity = get_capacity(fd)
    while new_size > capacity:
        try:
            return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, new_size)
        except OSError:  # above pipe-max-size, or the user's pipe-user-pages-soft is used up: try half
            new_size //= 2
    return capacity


def available_bytes(fd: int) -> int:
    """Return the number of bytes that can be read now."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))
    return int(count)


def create(new_size: int) -> tuple[int, int]:
    """Make a non-blocking pipe with a capacity of `new_size` bytes, if permitted."""
    pipe_ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    enlarge(pipe_ends[0], new_size)
    return pipe_ends
