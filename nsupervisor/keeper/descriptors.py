"""A child's pipes and channels, both ends, and the numbers that its ends have in the child."""

from __future__ import annotations

import os
import socket

REPORT, EXITS, STDOUT, STDERR = 3, 4, 5, 6
"""In a child: the socket to the keeper, the init's own one, the log pipes. The keeper leaves these numbers free."""

FIRST_FREE = 7


class Descriptors:
    """Both ends. Ours don't block; -1 is what there is not.

    `report`: by which the set-up is told how it went. `exits`, with an init: by which the init tells the program's end.
    """

    __slots__ = ("exits", "report", "stderr", "stdout", "theirs")

    def __init__(self, with_init: bool) -> None:
        """Raises OSError (EMFILE), with nothing left open."""
        opened: list[int] = []
        try:
            for _ in (STDOUT, STDERR):
                opened += os.pipe()
                opened.append(_reopened(opened.pop()))
            for _ in (REPORT, EXITS)[: 1 + with_init]:
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
        self.exits = channel(opened[6]).detach() if with_init else -1
        self.theirs = dict(zip((STDOUT, STDERR, REPORT, EXITS), opened[1::2], strict=False))

    def enter_child(self) -> None:
        """In the child: everything to its fixed place, and nothing else stays open."""
        for place, fd in self.theirs.items():
            os.dup2(fd, place, inheritable=False)
        if EXITS not in self.theirs:
            os.close(EXITS)
        os.closerange(FIRST_FREE, 0x7FFF_FFFF)

    def close_theirs(self) -> None:
        """In the keeper, when the child has them."""
        for fd in self.theirs.values():
            os.close(fd)
        self.theirs = {}

    def close_ours(self) -> None:
        """When there is no child."""
        self.report.close()
        for fd in (self.stdout, self.stderr, self.exits):
            if fd >= 0:
                os.close(fd)
        self.stdout = self.stderr = self.exits = -1


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
