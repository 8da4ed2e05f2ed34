"""Send a standby what it needs to become a program: one datagram, with descriptors."""

from __future__ import annotations

import array
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_BYTES = 64 * 1024
"""The socket may lack room for a larger datagram; such content goes through a memfd. `MAX_DATAGRAM` in setup.c."""


def send(report: socket.socket, message: bytes, descriptors: Iterable[int], content: bytes = b"") -> None:
    """Send `message`, with those of `descriptors` that are not -1 and, if there is `content`, a memfd with it.

    Raises OSError, for instance BrokenPipeError if the standby has been killed.
    """
    fds, memfd = [fd for fd in descriptors if fd >= 0], -1
    try:
        if content:
            memfd = os.memfd_create("content", os.MFD_CLOEXEC)
            fds.append(memfd)
            with open(memfd, "wb", closefd=False) as file:
                file.write(content)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        report.sendmsg([message], rights)
    finally:
        if memfd >= 0:
            os.close(memfd)
