"""Find out which parts of the kernel's traffic control are there: tc(8), rtnetlink(7).

Each is asked for in a network namespace that ends at once, so that nothing of the host changes. The kernel loads a
module for it if there is one, as it would for the plugin that uses it. The module ifb, which the plugin needs as well,
is not asked for: it makes two devices in the network of the host when it is loaded.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading

from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import NAMESPACES

_NETLINK_ROUTE = 0
_RTM_NEWQDISC = 36
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_TC_H_ROOT, _TC_H_INGRESS = 0xFFFF_FFFF, 0xFFFF_FFF1
_TCA_KIND = 1
_HEADER = struct.Struct("=IHHII")
_LOOPBACK = 1
"""The index of the loopback device in a new network namespace."""


def find_missing_limiter() -> str | None:
    """Return the part of the kernel that the plugin `bandwidth` needs and that is missing, in words; None: none is.

    Raises OSError if it cannot be found out, for instance without CAP_SYS_ADMIN.
    """
    found: list[str | OSError | None] = []

    def probe() -> None:
        try:
            syscalls.unshare(NAMESPACES["network"].flag)
            found.append(_find_missing())
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=probe, name="traffic control", daemon=True)  # which stays in its namespace
    thread.start()
    thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]


def _find_missing() -> str | None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as netlink:
        # Without the parameters of a tbf the kernel refuses it (EINVAL), but only after it has found its code.
        if _request(netlink, _RTM_NEWQDISC, _queue(_TC_H_ROOT, b"tbf")) == errno.ENOENT:
            return "the queueing discipline tbf (module sch_tbf)"
        if _request(netlink, _RTM_NEWQDISC, _queue(_TC_H_INGRESS, b"ingress")) == errno.ENOENT:
            return "the queueing discipline ingress (module sch_ingress)"
    return None


def _queue(parent: int, kind: bytes) -> bytes:
    return struct.pack("=BxxxiIII", 0, _LOOPBACK, 0, parent, 0) + _attribute(_TCA_KIND, kind + b"\0")


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _request(netlink: socket.socket, kind: int, body: bytes) -> int:
    """Send a request; return the number of its error, 0 for none. Raises OSError if the request is not possible."""
    flags = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_EXCL | _NLM_F_CREATE
    netlink.sendto(_HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body, (0, 0))
    answer = netlink.recv(65536)
    _, answer_kind, _, _, _ = _HEADER.unpack_from(answer)
    if answer_kind != _NLMSG_ERROR:
        return 0
    number = -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
    if number in (errno.EPERM, errno.EACCES):
        raise OSError(number, os.strerror(number))
    return number
