"""The application on a Unix socket, served by hypercorn's trio worker."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from functools import partial
from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

LONGEST_PATH = 107  # bytes, unix(7): sun_path without its final NUL
BACKLOG = 100


async def serve(
    app: Any, socket_path: str | os.PathLike[str], *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the ASGI application on a Unix socket of mode 0600 until cancelled; the socket is removed at the end.

    `task_status.started(path)` is called when connections are accepted. A socket file that nobody answers on, left by a
    supervisor that died, is replaced. No lifespan events, no access log, no signal handlers.

    Raises:
        OSError: the socket cannot be made; the text says which and why. Also when another supervisor answers on it.
    """
    path = os.fspath(socket_path)
    listening = listen(path)
    identity = os.stat(path).st_ino
    try:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        task_status.started(path)
        await accept(app, listener)
    finally:
        listening.close()
        try:
            if os.stat(path).st_ino == identity:  # not one that somebody else has put there since
                os.unlink(path)
        except FileNotFoundError:
            pass


def listen(path: str) -> socket.socket:
    """A listening Unix socket of mode 0600, whatever the umask; a stale file of that name is replaced. OSError."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise OSError(f"{path}: longer than the {LONGEST_PATH} bytes a socket may have; choose a shorter directory")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # bind(2) makes the file with the mode that the socket itself has, so there is no moment with a wider one.
        os.fchmod(listening.fileno(), 0o600)
        try:
            listening.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, error.strerror, path) from None
            _make_way(path)
            listening.bind(path)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _make_way(path: str) -> None:
    """Remove the socket of a supervisor that is gone. OSError when it is alive, or when this is no socket."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(f"{path}: is not a socket; move it away, or choose another directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    raise OSError(f"{path}: another supervisor answers there; stop that one, or give this one another directory")


async def accept(app: Any, listener: trio.SocketListener, most: int | None = None) -> None:
    """Serve the ASGI application on what listens already, until cancelled.

    most: when there are more connections than this, the oldest is cut off.
    """
    config = Config()
    # Only failures of ours are logged; without a handler of its own, logging writes them to stderr.
    config.errorlog = logging.getLogger("nsupervisor.api")
    config.include_server_header = False
    server = partial(TCPServer, wrap_app(app, config.wsgi_max_body_size, "asgi"), config, WorkerContext(None), {})
    connections: dict[trio.SocketStream, None] = {}  # the oldest first

    async def talk(stream: trio.SocketStream) -> None:
        connections[stream] = None
        if most is not None and len(connections) > most:
            _cut_off(next(iter(connections)))
        try:
            await server(cast(Any, stream))  # declared for TLS only, made for both
        finally:
            del connections[stream]

    async with trio.open_nursery() as handlers:
        try:
            await trio.serve_listeners(talk, [listener], handler_nursery=handlers)
        finally:
            # hypercorn sends with cancellation shielded: a client that does not read would keep us here for ever.
            for stream in connections:
                _cut_off(stream)


def _cut_off(stream: trio.SocketStream) -> None:
    try:
        stream.socket.shutdown(trio.socket.SHUT_RDWR)
    except OSError:
        pass
