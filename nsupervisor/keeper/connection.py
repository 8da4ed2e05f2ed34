"""The keeper's end of the connection to a supervisor."""

from __future__ import annotations

import collections
import errno
import os
import select

from nsupervisor.keeper import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

MAX_QUEUE = 10_000  # messages for a client that does not read; it hears of all that matters when it connects again


class Client:
    """The connection to a supervisor: sends without waiting, keeping what the socket can't take yet."""

    __slots__ = ("_queue", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._queue: collections.deque[tuple[bytes, list[int]]] = collections.deque()

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send or queue; raises OSError when the client is gone, or so slow that it has to be dropped."""
        body = protocol.encode(message)
        if not self._queue:
            try:
                protocol.send(self.sock, body, fds)
                return
            except BlockingIOError:
                pass
        if len(self._queue) >= MAX_QUEUE:
            raise OSError(errno.ENOBUFS, "the client does not read")
        # Duplicates, since the originals may be closed before their turn comes.
        self._queue.append((body, [os.dup(fd) for fd in fds]))

    def flush(self) -> None:
        """Send from the queue what can be sent; raises OSError when the client is gone."""
        while self._queue:
            body, fds = self._queue[0]
            try:
                protocol.send(self.sock, body, fds)
            except BlockingIOError:
                return
            self._queue.popleft()
            protocol.close_all(fds)

    @property
    def interest(self) -> int:
        """The epoll events to wait for."""
        return select.EPOLLIN | select.EPOLLOUT if self._queue else select.EPOLLIN

    def close(self) -> None:
        """Drop the connection and what was still to be sent."""
        for _, fds in self._queue:
            protocol.close_all(fds)
        self._queue.clear()
        self.sock.close()
