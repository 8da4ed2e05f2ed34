"""Serve only the metrics, on TCP, for a Prometheus that cannot open a Unix socket."""

from __future__ import annotations

import os
import socket

import trio

from nsupervisor.api.application import metrics_response
from nsupervisor.api.control import Control
from nsupervisor.api.http.errors import TCP, ConnectionErrors
from nsupervisor.api.http.hosts import AllowedHosts
from nsupervisor.api.http.limits import TCP_CONNECTIONS
from nsupervisor.api.http.listener import serve_connections
from nsupervisor.api.http.messages import Request, Response
from nsupervisor.api.http.routing import Endpoint, Router
from nsupervisor.config.units import format_address


async def serve_metrics(
    control: Control,
    address: tuple[str, int],
    *,
    errors: ConnectionErrors | None = None,
    connections: int = TCP_CONNECTIONS,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer GET /metrics at an IP address and port until cancelled.

    `task_status.started(address)` is called when connections are accepted; the address has the real port if port 0 was
    given. errors: counts errors of connections. connections: the maximum number of connections at a time.

    Raises:
        OSError: it is not possible to listen there; the text says where and why.
    """
    with listen(address) as listening:
        bound = listening.getsockname()[:2]
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        task_status.started(bound)
        await serve_connections(
            _MetricsRouter(control),
            listener,
            name=TCP,
            connections=connections,
            errors=errors or ConnectionErrors(),
            hosts=AllowedHosts(bound[0]),
        )


def listen(address: tuple[str, int]) -> socket.socket:
    """Open a socket that listens at an IP address and port.

    Raises:
        OSError: it is not possible; the text says where, why, and what to do instead.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)  # the text itself has the address again
        raise OSError(
            f"supervisor.metrics: cannot listen at {format_address(address)}: {why}; choose another address or port"
        ) from None


class _MetricsRouter(Router):
    """Answers GET /metrics. Errors are JSON, as on the Unix socket."""

    def __init__(self, control: Control) -> None:
        super().__init__([Endpoint("GET", "/metrics", self._metrics)])
        self._control = control

    async def _metrics(self, request: Request) -> Response:
        return await metrics_response(self._control, request)
