"""Descriptors that programs have sent, as the service uses them."""

from collections.abc import Sequence
from typing import Protocol

import trio

from nsupervisor.linux import received_descriptors
from nsupervisor.linux.received_descriptors import HangupPoll


class Hangups(Protocol):
    """Watches descriptors until their other end is closed."""

    def add(self, fd: int) -> None: ...
    def remove(self, fd: int) -> None: ...

    async def wait(self) -> list[int]:
        """Return descriptors with a hangup, each of which the caller removes; none after `close`."""

    def close(self) -> None: ...


class ReceivedDescriptors(Protocol):
    """The functions of `nsupervisor.linux.received_descriptors`."""

    def find_refusal(self, fd: int) -> str: ...
    def is_same(self, one: int, other: int) -> bool: ...
    def discard(self, fds: Sequence[int]) -> int: ...
    def open_hangups(self) -> Hangups: ...


class LinuxHangups:
    """The hangups of this host."""

    def __init__(self) -> None:
        self._poll = HangupPoll()
        self.add, self.remove = self._poll.add, self._poll.remove

    async def wait(self) -> list[int]:
        """Wait for hangups, as `Hangups` says."""
        try:
            await trio.lowlevel.wait_readable(self._poll.fileno())
        except trio.ClosedResourceError:
            return []
        return self._poll.read()

    def close(self) -> None:
        """Stop watching; a task that waits ends."""
        trio.lowlevel.notify_closing(self._poll.fileno())
        self._poll.close()


class LinuxReceivedDescriptors:
    """The descriptors of this process."""

    find_refusal = staticmethod(received_descriptors.find_refusal)
    is_same = staticmethod(received_descriptors.is_same)
    discard = staticmethod(received_descriptors.discard)
    open_hangups = LinuxHangups
