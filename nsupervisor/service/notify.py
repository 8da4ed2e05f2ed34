"""Readiness and status that a program reports with sd_notify(3), over a Unix datagram socket of its own.

Each generation gets a new socket, so that no message of an earlier one can be taken for that of a later one. The sender
need not be identified by its pid, which fails for short-lived helpers (`systemd-notify`, a shell's `nc`) that end
before the kernel can be asked about them. The socket belongs to the program's user, mode 0600: no other user can send
to it.
"""

import math
import os
import socket as stdlib_socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

MAXIMUM = 4096
"""Most bytes of a datagram that are read; systemd's limit is a page, too."""


@contextmanager
def notify_socket(
    directory: Path, id_: str, owner: tuple[int, int] | None, fd: int = -1
) -> Iterator[trio.socket.SocketType]:
    """Open a socket at `directory/ID`, and remove it at the end; `owner` is the (uid, gid) on the host that may send.

    `fd` is the socket itself if an earlier supervisor has made it; this function then owns the descriptor. Raises
    OSError.
    """
    directory.mkdir(mode=0o711, exist_ok=True)
    path = directory / id_
    if fd >= 0:
        sock = stdlib_socket.socket(fileno=fd)
    else:
        path.unlink(missing_ok=True)
        sock = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM | stdlib_socket.SOCK_CLOEXEC)
    with sock:
        if fd < 0:
            # No other process can connect before the mode is set: bind(2) applies the umask.
            umask = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(umask)
        try:
            if owner is not None and fd < 0:
                os.chown(path, *owner)
            yield trio.socket.from_stdlib_socket(sock)
        finally:
            path.unlink(missing_ok=True)


async def messages(socket: trio.socket.SocketType) -> dict[str, str]:
    """Receive the next datagram's assignments: `{"READY": "1", "STATUS": "…"}`. Other lines are ignored."""
    data = await socket.recv(MAXIMUM)
    lines = data.decode(errors="replace").splitlines()
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}


async def attend(
    socket: trio.socket.SocketType, scope: trio.CancelScope, watchdog_sec: float, said: Callable[[str, str], None]
) -> None:
    """Pass reports of the program to `on_notification` until `scope` is cancelled.

    The reports are ("READY", ""), ("STATUS", text) and ("WATCHDOG", reason). The last one means that the program
    triggered the watchdog itself, or sent no keep-alive for `watchdog_sec` (0: none required).
    """
    limit = watchdog_sec or math.inf
    with scope:
        while True:
            # The time limit restarts with each WATCHDOG=1, and only with that.
            with trio.move_on_after(limit) as watchdog:
                while True:
                    assignments = await messages(socket)
                    if assignments.get("READY") == "1":
                        said("READY", "")
                    if "STATUS" in assignments:
                        said("STATUS", assignments["STATUS"])
                    if assignments.get("WATCHDOG") == "trigger":
                        said("WATCHDOG", "said WATCHDOG=trigger")
                    elif assignments.get("WATCHDOG") == "1":
                        break
            if watchdog.cancelled_caught:
                said("WATCHDOG", f"no WATCHDOG=1 for {limit:g} s")


def host_owner(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (uid, gid) on the host that the program will have; None if they are the supervisor's own."""

    def outside(id_: int | None, mappings: list[list[int]]) -> int:
        for inside, host, size in mappings:
            if inside <= (id_ or 0) < inside + size:
                return host + (id_ or 0) - inside
        return -1 if id_ is None else id_  # -1: unchanged (chown(2))

    owner = outside(spec["uid"], spec["uid_mappings"]), outside(spec["gid"], spec["gid_mappings"])
    return None if owner == (-1, -1) else owner
