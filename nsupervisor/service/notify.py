"""sd_notify(3): what a program says of itself, over a Unix datagram socket of its own.

Each generation gets a new socket. So nothing that an earlier one said can be taken for a later one's word, and nobody
has to guess from a pid who is speaking, which fails for short-lived helpers (``systemd-notify``, a shell's ``nc``) that
are gone before one can ask the kernel about them. The socket belongs to the program's user, mode 0600: no other user
can speak for it.
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
"""Bytes of one datagram that are looked at; systemd's own limit is a page, too."""


@contextmanager
def notify_socket(
    directory: Path, id_: str, owner: tuple[int, int] | None, fd: int = -1
) -> Iterator[trio.socket.SocketType]:
    """A socket at ``directory/ID``, removed at the end; ``owner`` is the (uid, gid) on the host that may speak.

    ``fd``: the socket itself, where an earlier supervisor has made it; it belongs to this function from now on. Raises
    OSError.
    """
    directory.mkdir(mode=0o711, exist_ok=True)
    path = directory / id_
    if fd >= 0:
        ours = stdlib_socket.socket(fileno=fd)
    else:
        path.unlink(missing_ok=True)
        ours = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM | stdlib_socket.SOCK_CLOEXEC)
    with ours:
        if fd < 0:
            # Nobody but us can connect before the mode is set: bind(2) takes the umask into account.
            umask = os.umask(0o177)
            try:
                ours.bind(str(path))
            finally:
                os.umask(umask)
        try:
            if owner is not None and fd < 0:
                os.chown(path, *owner)
            yield trio.socket.from_stdlib_socket(ours)
        finally:
            path.unlink(missing_ok=True)


async def messages(socket: trio.socket.SocketType) -> dict[str, str]:
    """The next datagram's assignments: ``{"READY": "1", "STATUS": "…"}``. What is not of that form is passed over."""
    data = await socket.recv(MAXIMUM)
    lines = data.decode(errors="replace").splitlines()
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}


async def attend(
    socket: trio.socket.SocketType, scope: trio.CancelScope, watchdog_sec: float, said: Callable[[str, str], None]
) -> None:
    """Listen until ``scope`` is cancelled. What is heard goes to ``said``: ("READY", ""), ("STATUS", text), and
    ("WATCHDOG", why) where the program says so itself or has not said that it is well for ``watchdog_sec`` (0: it need
    not)."""
    limit = watchdog_sec or math.inf
    with scope:
        while True:
            # A time limit that begins anew with each sign of life, and only with that.
            with trio.move_on_after(limit) as patience:
                while True:
                    heard = await messages(socket)
                    if heard.get("READY") == "1":
                        said("READY", "")
                    if "STATUS" in heard:
                        said("STATUS", heard["STATUS"])
                    if heard.get("WATCHDOG") == "trigger":
                        said("WATCHDOG", "said WATCHDOG=trigger")
                    elif heard.get("WATCHDOG") == "1":
                        break
            if patience.cancelled_caught:
                said("WATCHDOG", f"no WATCHDOG=1 for {limit:g} s")


def host_owner(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    """The (uid, gid) on the host that the program will have; None where they are our own."""

    def outside(id_: int | None, mappings: list[list[int]]) -> int:
        for inside, host, size in mappings:
            if inside <= (id_ or 0) < inside + size:
                return host + (id_ or 0) - inside
        return -1 if id_ is None else id_  # -1: leave it as it is (chown(2))

    owner = outside(spec["uid"], spec["uid_mappings"]), outside(spec["gid"], spec["gid_mappings"])
    return None if owner == (-1, -1) else owner
