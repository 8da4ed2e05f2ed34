"""The reading end of a workload's pipe: bytes can be read without taking them, and taken once that is safe."""

from __future__ import annotations

import functools
import os

import trio

from nsupervisor.linux import pipes

PEEK_SIZE = 256 * 1024
"""The number of bytes read at once: more than a new pipe holds, a quarter of what a busy one does."""
BUSY_PIPE_SIZE = 1024 * 1024
"""The size in bytes of a busy workload's pipe: the default of /proc/sys/fs/pipe-max-size."""

_scratch_pipes: list[tuple[int, int, int]] = []
"""Unused empty pipes for reading without taking, each with its size. Threads take from here and put back."""


@functools.cache
def _null() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


class Pipe:
    """The owner of `fd`, which is non-blocking. Methods may be called from any thread, but one at a time."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        """The pipe's inode number: no other pipe has it until the host reboots."""
        self._size = 0  # bytes; read when it first matters, as most programs write little

    def peek(self, max_bytes: int = PEEK_SIZE) -> bytes:
        """Return at most `max_bytes` bytes at the front of the pipe, without taking them; b"" at the end.

        tee(2) lends the pages to a scratch pipe, which is then read. Raises BlockingIOError if the pipe is empty.
        """
        scratch = _scratch_pipes.pop() if _scratch_pipes else _new_scratch()
        try:
            reader, writer, room = scratch
            count = pipes.tee(self.fd, writer, min(max_bytes, room))
            return os.read(reader, count) if count else b""
        finally:
            _scratch_pipes.append(scratch)

    def discard(self, count: int) -> None:
        """Take `count` bytes that `peek` has returned, and discard them."""
        while count:
            count -= os.splice(self.fd, _null(), count, flags=os.SPLICE_F_NONBLOCK)

    def splice_to(self, target: int, count: int) -> int:
        """Splice up to `count` bytes to `target`, at its offset; return how many, 0 at the end.

        splice(2) takes only the bytes that it has written. Raises BlockingIOError if the pipe is empty, OSError if
        `target` cannot be written.
        """
        return os.splice(self.fd, target, count, flags=os.SPLICE_F_NONBLOCK)

    def available_bytes(self) -> int:
        """Return the number of bytes in the pipe."""
        return pipes.available_bytes(self.fd)

    def enlarge(self) -> bool:
        """Enlarge the pipe to the size for a busy workload; return whether it has that size."""
        if self._size < BUSY_PIPE_SIZE:
            self._size = pipes.enlarge(self.fd, BUSY_PIPE_SIZE)
        return self._size >= BUSY_PIPE_SIZE

    async def wait_readable(self) -> None:
        """Wait until the pipe has input, or has ended."""
        await trio.lowlevel.wait_readable(self.fd)

    def stop_waiting(self) -> None:
        """Take the pipe out of epoll: each write to a pipe that epoll watches costs the writer a notification."""
        trio.lowlevel.notify_closing(self.fd)

    def close(self) -> None:
        """Close the pipe's reading end."""
        os.close(self.fd)


def _new_scratch() -> tuple[int, int, int]:
    reader, writer = pipes.create(PEEK_SIZE)
    return reader, writer, pipes.get_capacity(reader)
