"""Serve the API on its Unix socket: permissions, and the replacement of a stale socket."""

from __future__ import annotations

import errno
import os
import socket
import stat

import trio

from nsupervisor.api.http.errors import UNIX, ConnectionErrors
from nsupervisor.api.http.limits import UNIX_CONNECTIONS
from nsupervisor.api.http.listener import Admit, serve_connections
from nsupervisor.api.http.messages import Application

MAX_PATH_BYTES = 107  # bytes, unix(7): sun_path without its final NUL
BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn, listen(2). When it is full,
non-blocking clients fail with EAGAIN: a process that connects in a loop, and is refused, must not fill it."""


async def serve(
    app: Application,
    socket_path: str | os.PathLike[str],
    *,
    admit: Admit | None = None,
    errors: ConnectionErrors | None = None,
    connections: int = UNIX_CONNECTIONS,
    identity_connections: int | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the application on a Unix socket of mode 0600 until cancelled; then remove the socket.

    `task_status.started(path)` is called when connections are accepted. The socket file of a dead supervisor is
    replaced. There is no access log, and there are no signal handlers.

    admit: identifies the peer of each new connection, or refuses it. errors: counts errors of connections.
    connections: the maximum number of connections at a time. identity_connections: those of one workload or uid.

    Raises:
        OSError: the socket cannot be created, or another supervisor answers on it; the text says which and why.
    """
    path = os.fspath(socket_path)
    listening = listen(path)
    identity = os.stat(path).st_ino
    try:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        task_status.started(path)
        await serve_connections(
            app,
            listener,
            name=UNIX,
            connections=connections,
            identity_connections=identity_connections,
            errors=errors or ConnectionErrors(),
            admit=admit,
        )
    finally:
        listening.close()
        try:
            if os.stat(path).st_ino == identity:  # not a socket that another process has created there since
                os.unlink(path)
        except FileNotFoundError:
            pass


def listen(path: str) -> socket.socket:
    """Open a listening Unix socket of mode 0600, whatever the umask; a stale socket of that name is replaced.

    Raises:
        OSError: it cannot be created, or another supervisor answers on it; the text says what to do instead.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise OSError(f"{path}: longer than the {MAX_PATH_BYTES} bytes a socket may have; choose a shorter directory")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # bind(2) creates the file with the socket's own mode, so the mode is never wider.
        os.fchmod(listening.fileno(), 0o600)
        try:
            listening.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, error.strerror, path) from None
            _remove_stale_socket(path)
            listening.bind(path)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_stale_socket(path: str) -> None:
    """Remove the socket of a dead supervisor. Raises OSError if the supervisor runs, or the file is not a socket."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(f"{path}: is not a socket; move it away, or choose another directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full: the supervisor runs
    raise OSError(f"{path}: another supervisor answers there; stop that one, or give this one another directory")
