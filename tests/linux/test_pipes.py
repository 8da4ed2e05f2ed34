"""The pipe operations, on real pipes and on a C library whose calls are interrupted."""

import ctypes
import errno
import os

import pytest

from nsupervisor.linux import pipes


class InterruptedLibrary:
    """A C library whose first `interruptions` calls of tee(2) end with EINTR."""

    def __init__(self, interruptions: int) -> None:
        self.left = interruptions

    def tee(self, *arguments: int) -> int:
        if self.left:
            self.left -= 1
            ctypes.set_errno(errno.EINTR)
            return -1
        return ctypes.PyDLL(None, use_errno=True).tee(*arguments)


@pytest.fixture
def two_pipes():
    fds = [*os.pipe2(os.O_NONBLOCK), *os.pipe2(os.O_NONBLOCK)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_tee_duplicates_without_taking(two_pipes):
    source, source_writer, target, target_writer = two_pipes
    os.write(source_writer, b"abc")
    assert pipes.tee(source, target_writer, 10) == 3
    assert (os.read(target, 10), os.read(source, 10)) == (b"abc", b"abc")


def test_tee_is_repeated_when_a_signal_interrupts_it(two_pipes, monkeypatch):
    source, source_writer, _target, target_writer = two_pipes
    os.write(source_writer, b"abc")
    monkeypatch.setattr(pipes, "libc", InterruptedLibrary(2))
    assert pipes.tee(source, target_writer, 10) == 3


def test_tee_of_an_empty_pipe_would_block_also_after_an_interruption(two_pipes, monkeypatch):
    monkeypatch.setattr(pipes, "libc", InterruptedLibrary(1))
    with pytest.raises(BlockingIOError):
        pipes.tee(two_pipes[0], two_pipes[3], 10)
