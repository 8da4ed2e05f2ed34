"""Detect that the other end of a socket has closed, without reading from it.

End of file is not sufficient: a client may have shut down only its sending side, and wait for the response. epoll(7)
reports EPOLLHUP for a socket with both directions shut down, and EPOLLERR for a reset one, even if no events are
requested. A Unix socket hangs up as soon as the other end is closed; a TCP socket only when something is sent to it.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class HangupWatcher:
    """Watches any number of sockets with one descriptor. `run` must run at the same time."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, trio.CancelScope] = {}

    @contextmanager
    def watch(self, stream: trio.abc.Stream) -> Iterator[trio.CancelScope]:
        """Cancel the block when the other end closes. A stream that is neither a socket nor TLS over one is ignored."""
        scope = trio.CancelScope()
        descriptor = _descriptor(stream)
        if descriptor is None:
            with scope:
                yield scope
            return
        self._epoll.register(descriptor, select.EPOLLONESHOT)
        self._watched[descriptor] = scope
        try:
            with scope:
                yield scope
        finally:
            del self._watched[descriptor]
            if (closed := _descriptor(stream)) == descriptor:
                self._epoll.unregister(closed)  # closing a descriptor unregisters it as well

    async def run(self) -> None:
        """Serve `watch` until cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, _ in self._epoll.poll(0):
                    if (scope := self._watched.get(descriptor)) is not None:
                        scope.cancel()
        finally:
            self._epoll.close()


def _descriptor(stream: trio.abc.Stream) -> int | None:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if not isinstance(stream, trio.SocketStream):
        return None
    descriptor = stream.socket.fileno()
    return descriptor if descriptor >= 0 else None
