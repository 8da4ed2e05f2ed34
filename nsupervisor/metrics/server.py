"""The metrics, and nothing else, on TCP: for a Prometheus that cannot open a Unix socket."""

from __future__ import annotations

import os
import socket

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nsupervisor.api.application import metrics_response
from nsupervisor.api.control import Control
from nsupervisor.api.server import accept
from nsupervisor.config.units import format_address

CONNECTIONS = 32
"""When there are more, the oldest is closed: whoever can connect must not be able to use up our descriptors."""


async def serve_metrics(
    control: Control,
    address: tuple[str, int],
    *,
    task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer GET /metrics at an IP address and port until cancelled.

    `task_status.started(address)` is called when connections are accepted; port 0 has become a real one there.

    Raises:
        OSError: nobody can listen there; the text says where and why.
    """
    with listen(address) as listening:
        bound = listening.getsockname()[:2]
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        task_status.started(bound)
        await accept(_app(control), listener, CONNECTIONS)


def listen(address: tuple[str, int]) -> socket.socket:
    """A socket that listens at an IP address and port. OSError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)  # the text itself has the address again
        raise OSError(
            f"supervisor.metrics: cannot listen at {format_address(address)}: {why}; choose another address or port"
        ) from None


def _app(control: Control) -> Starlette:
    async def metrics(request: Request) -> Response:
        return await metrics_response(control, request)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return PlainTextResponse("there is only GET /metrics here\n", error.status_code, headers=error.headers)

    return Starlette(routes=[Route("/metrics", metrics)], exception_handlers={HTTPException: refused})
