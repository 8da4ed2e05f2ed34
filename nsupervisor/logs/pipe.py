"""The reading end of a workload's pipe: look at what waits in it, and take it only once that is safe."""

from __future__ import annotations

import functools
import os

from nsupervisor.linux import pipes

CHUNK = 256 * 1024
"""Bytes looked at at once: more than a pipe holds at first, a quarter of what a busy one gets."""
LARGE = 1024 * 1024
"""Bytes that the pipe of a busy workload is made to hold; the default of /proc/sys/fs/pipe-max-size."""

_scratch: list[tuple[int, int, int]] = []
"""Empty pipes to look through, each with its size; several threads take from here and put back."""


@functools.cache
def _null() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


class Pipe:
    """`fd`, non-blocking, belongs to this object, whose methods may be called from any thread, but one at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        """Which no other pipe has, until the host starts anew."""
        self._size = pipes.size(fd)

    def peek(self, most: int = CHUNK) -> bytes:
        """What waits at the front, at most `most` bytes, without taking it; b"" at the end.

        tee(2) lends the pages to a pipe of ours, and that one is read. Raises BlockingIOError when there is nothing.
        """
        scratch = _scratch.pop() if _scratch else _new_scratch()
        try:
            reader, writer, room = scratch
            count = pipes.tee(self.fd, writer, min(most, room))
            return os.read(reader, count) if count else b""
        finally:
            _scratch.append(scratch)

    def drop(self, count: int) -> None:
        """Take `count` bytes that `peek` has shown, and throw them away."""
        while count:
            count -= os.splice(self.fd, _null(), count, flags=os.SPLICE_F_NONBLOCK)

    def move(self, target: int, count: int) -> int:
        """Take up to `count` bytes by writing them to `target`, at its offset: splice(2) takes what it has written,
        not more. How many; 0 at the end. Raises BlockingIOError when there is nothing, OSError when it cannot write."""
        return os.splice(self.fd, target, count, flags=os.SPLICE_F_NONBLOCK)

    def waiting(self) -> int:
        """How many bytes wait."""
        return pipes.waiting(self.fd)

    def widen(self) -> bool:
        """Let the pipe hold as much as a busy workload should have; whether it does."""
        if self._size < LARGE:
            self._size = pipes.enlarge(self.fd, LARGE)
        return self._size >= LARGE

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


def _new_scratch() -> tuple[int, int, int]:
    reader, writer = pipes.make(CHUNK)
    return reader, writer, pipes.size(reader)
