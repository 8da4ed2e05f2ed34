"""The keeper's side of the connection to a supervisor."""

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

MAX_QUEUE = 10_000
"""Messages queued for a client that does not read. A client that connects again is sent all that matters."""


class ClientConnection:
    """The connection to a supervisor. Sends without waiting, and queues what the socket cannot take yet."""

    __slots__ = ("_queue", "polled_events", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.polled_events: int = select.EPOLLIN
        """The epoll events that the keeper waits for at present."""
        self._queue: collections.deque[tuple[bytes, list[int]]] = collections.deque()

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send or queue a message. Raises OSError if the client has closed, or its queue is full."""
        body = protocol.encode(message)
        if not self._queue:
            try:
                protocol.send(self.sock, body, fds)
                return
            except BlockingIOError:
                pass
        if len(self._queue) >= MAX_QUEUE:
            raise OSError(errno.ENOBUFS, "the client does not read")
        duplicates: list[int] = []  # since the originals may be closed before the message is sent
        try:
            for fd in fds:
                duplicates.append(os.dup(fd))  # noqa: PERF401 - the ones before a failure are closed
        except OSError:
            protocol.close_all(duplicates)
            raise
        self._queue.append((body, duplicates))

    def flush(self) -> None:
        """Send queued messages until the socket is full. Raises OSError if the client has closed."""
        while self._queue:
            body, fds = self._queue[0]
            try:
                protocol.send(self.sock, body, fds)
            except BlockingIOError:
                return
            self._queue.popleft()
            protocol.close_all(fds)

    @property
    def epoll_events(self) -> int:
        """The epoll events to wait for."""
        return select.EPOLLIN | select.EPOLLOUT if self._queue else select.EPOLLIN

    def close(self) -> None:
        """Close the connection and discard the queue."""
        for _, fds in self._queue:
            protocol.close_all(fds)
        self._queue.clear()
        self.sock.close()
