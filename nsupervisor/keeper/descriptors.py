"""A child's pipes and channels, both ends, and the numbers that its ends have in the child."""

from __future__ import annotations

import os
import socket

REPORT, BIRTH, STDOUT, STDERR, EXITS = 3, 4, 5, 6, 7
"""In a child: the socket to the keeper, the init's own one while it is made, the log pipes; and the one socket by which
all inits tell how their programs have ended. The keeper leaves these numbers free."""

FIRST_FREE = 8


class Descriptors:
    """Both ends. Ours don't block; -1 is what there is not.

    `report`: by which the set-up is told how it went. `birth`, with an init: by which it says that it is there.
    """

    __slots__ = ("birth", "report", "stderr", "stdout", "theirs")

    def __init__(self, with_init: bool) -> None:
        """Raises OSError (EMFILE), with nothing left open."""
        opened: list[int] = []
        try:
            for _ in (STDOUT, STDERR):
                opened += os.pipe()
                opened.append(_reopened(opened.pop()))
            for _ in (REPORT, BIRTH)[: 1 + with_init]:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                opened += (ours.detach(), theirs.detach())
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        for fd in opened[::2]:
            os.set_blocking(fd, False)
        self.stdout, self.stderr = opened[0], opened[2]
        self.report = channel(opened[4])
        self.birth = channel(opened[6]).detach() if with_init else -1
        self.theirs = dict(zip((STDOUT, STDERR, REPORT, BIRTH), opened[1::2], strict=False))

    def enter_child(self) -> None:
        """In the child: everything to its fixed place, and nothing else stays open."""
        for place, fd in self.theirs.items():
            os.dup2(fd, place, inheritable=False)
        if BIRTH not in self.theirs:
            os.close(BIRTH)
        os.closerange(EXITS, 0x7FFF_FFFF)

    def close_theirs(self) -> None:
        """In the keeper, when the child has them."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def close_ours(self) -> None:
        """When there is no child."""
        self.report.close()
        self.close_birth()
        for fd in (self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)
        self.stdout = self.stderr = -1

    def close_birth(self) -> None:
        """When the init is there, and has been told all that it needs."""
        if self.birth >= 0:
            os.close(self.birth)
            self.birth = -1


class Spare:
    """Descriptors held for when no others are left: two, for a new connection and for what is read about its peer."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: list[int] = []
        try:
            while len(self._fds) < 2:
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:  # the limit has been lowered below what is open
            pass

    def close(self) -> None:
        """Make room for others."""
        while self._fds:
            os.close(self._fds.pop())


def channel(fd: int) -> socket.socket:
    """Ours of two ends, for which the kernel adds to each message by which process it was sent, in our numbers."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return end


def _reopened(fd: int) -> int:
    """The write end of a pipe as one that could be read as well. Who has it counts as a reader of the pipe, so that a
    program gets no SIGPIPE while both the keeper and the supervisor are gone; and its reading is found again there."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(fd)
