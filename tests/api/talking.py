"""Connections without sockets: bytes in, bytes out, and what was counted and logged."""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
import trio.testing

from nsupervisor.api.application import app
from nsupervisor.api.http.connection import BufferBudget, Connection, ListenerState
from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.api.http.hangup import HangupWatcher
from nsupervisor.api.http.hosts import AllowedHosts
from nsupervisor.api.http.messages import Application, Request, Response, Stream, json_response
from nsupervisor.api.http.routing import Endpoint, Router
from nsupervisor.linux.peers import Peer
from tests.api.standin import Standin

HOST = b"Host: x\r\n"
INFO = b"GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n"
Records = list[tuple[str, Mapping[str, Any]]]


class Talk:
    """A connection to an application, over memory or over a given pair of streams (client, server)."""

    def __init__(
        self,
        application: Application | None = None,
        *,
        hosts: AllowedHosts | None = None,
        buffered: BufferBudget | None = None,
        peer: Peer | None = None,
        identity: str = "uid 0",
        listener: str = "unix",
        streams: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
    ) -> None:
        self.client, server = streams or trio.testing.memory_stream_pair()
        self.records: Records = []
        self.errors = ConnectionErrors(lambda level, fields: self.records.append((level, fields)))
        site = ListenerState(
            application or app(Standin()), listener, self.errors, HangupWatcher(), hosts, buffered or BufferBudget()
        )
        self.connection = Connection(server, site, peer=peer, identity=identity)

    async def __call__(self, data: bytes, *, half_close: bool = True) -> bytes:
        """Send bytes, by default shut down the sending side, and return all that comes until the server closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.connection.run)
            await self.client.send_all(data)
            if half_close:
                await self.client.send_eof()
            return b"".join([piece async for piece in self.client])

    @property
    def kinds(self) -> dict[str, int]:
        """How many errors of each kind were counted."""
        return {kind: count for (_, kind), count in self.errors.counts.items()}


def statuses(answer: bytes) -> list[int]:
    """The status of each response in `answer`."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def application(handler: Callable[[Request], Awaitable[Response | Stream]], body_limit: int = 1 << 20) -> Router:
    """An application with one handler, for GET / and POST /."""
    return Router([Endpoint(method, "/", handler, body_limit) for method in ("GET", "POST")])


async def echo(request: Request) -> Response:
    """Answer what was understood of a request."""
    return json_response({"method": request.method, "body": request.body.decode("latin-1")})


def post(path: str, body: bytes, more: bytes = b"") -> bytes:
    """A POST request; `more` are further header lines."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %s HTTP/1.1\r\n%s%s%s\r\n%s" % (path.encode(), HOST, length, more, body)


def body_of(answer: bytes) -> Any:
    """The JSON of a response."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])
