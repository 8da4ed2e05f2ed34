"""Send a standby what it needs to become a program: one datagram, with descriptors."""

from __future__ import annotations

import array
import os
import socket

MAX_BYTES = 64 * 1024
"""The socket may lack room for a larger datagram; such content goes through a memfd. `MAX_DATAGRAM` in setup.c."""


def send(report: socket.socket, message: bytes, cgroup: int, content: bytes = b"") -> None:
    """Send `message`, with `cgroup` (a descriptor, or -1) and, if there is `content`, a memfd with it.

    Raises OSError, for instance BrokenPipeError if the standby has been killed.
    """
    fds, memfd = [cgroup] if cgroup >= 0 else [], -1
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
