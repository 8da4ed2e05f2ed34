"""The Unix datagram socket over which the program of one generation reports, sd_notify(3)."""

import fcntl
import os
import socket as stdlib_socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import trio

MAX_DATAGRAM_BYTES = 4096
"""Most bytes of a datagram that are read; systemd's limit is a page, too."""
BACKLOG_LIMIT = 1000
"""Messages that are taken from an earlier supervisor's socket without looking at their senders."""
DIRECTORY = "notify"
"""In the runtime directory."""
SOCKET = "socket"
_UCRED = struct.Struct("iII")  # struct ucred, unix(7): pid, uid, gid
_FD = struct.Struct("i")
SIOCUNIXFILE = 0x89E0
"""Opens the file of a bound socket, with O_PATH: include/uapi/linux/un.h."""


MAX_BACKLOG_FDS = 128
"""The most descriptors that are taken from an earlier supervisor's socket at once; further messages stay in it."""
_BACKLOG_ROOM = 64
"""The most descriptors of one of these messages."""
Ancillary = list[tuple[int, int, bytes]]


class Datagram(NamedTuple):
    """One message as it was sent, with its descriptors, which belong to the caller that takes it."""

    data: bytes
    fds: tuple[int, ...] = ()
    pid: int = 0
    """The sender; 0 if it is not known."""
    was_cut: bool = False
    """Whether it came with more descriptors than there was room for."""


def ancillary_bytes(descriptors: int) -> int:
    """Return the room for the credentials of a sender and a number of descriptors, or one more.

    The kernel closes further ones, unix(7).
    """
    return stdlib_socket.CMSG_SPACE(_UCRED.size) + (
        stdlib_socket.CMSG_SPACE(descriptors * _FD.size) if descriptors else 0
    )


def sender_of(ancillary: Ancillary) -> int:
    """Return the pid of the sender of a datagram; 0 if it is not known."""
    for level, kind, data in ancillary:
        if level == stdlib_socket.SOL_SOCKET and kind == stdlib_socket.SCM_CREDENTIALS:
            return int(_UCRED.unpack_from(data)[0])
    return 0


def descriptors_in(ancillary: Ancillary) -> tuple[int, ...]:
    """Return the descriptors that came with a datagram."""
    return tuple(
        fd
        for level, kind, data in ancillary
        if level == stdlib_socket.SOL_SOCKET and kind == stdlib_socket.SCM_RIGHTS
        for (fd,) in _FD.iter_unpack(data[: len(data) - len(data) % _FD.size])
    )


@attrs.define(eq=False)
class NotifySocket:
    """An open socket. `backlog`: what arrived while no supervisor ran."""

    path: Path
    socket: trio.socket.SocketType
    receive_now: Callable[[int, int, int], tuple[bytes, list[tuple[int, int, bytes]], int, Any]]
    """`recvmsg` of the same socket without waiting. Raises BlockingIOError if no message waits."""
    backlog: deque[Datagram] = attrs.field(factory=deque)


def socket_path(directory: Path, id_: str, token: str, again: bool = False) -> Path:
    """The place of a generation's socket in the runtime directory.

    `again`: its program runs already. If version 0.1.0 started it, the socket was `notify/ID`, and the program sends
    there.
    """
    old = directory / DIRECTORY / id_
    return old if again and os.path.lexists(old) else directory / DIRECTORY / token / SOCKET


@contextmanager
def notify_socket(path: Path, owner: tuple[int, int] | None, fd: int = -1) -> Iterator[NotifySocket]:
    """A socket at `path`, removed at the end; `owner` is the (uid, gid) on the host that may speak.

    `fd`: the socket itself, if an earlier supervisor has made it; it belongs to this function from now on, and stays
    where it is, unless it was removed from there: then there is a new one. Raises OSError.
    """
    backlog: deque[Datagram] = deque()
    if fd >= 0:
        ours = stdlib_socket.socket(fileno=fd)
        path = Path(os.fsdecode(ours.getsockname()))
        backlog = _waiting(ours)
        removed, owner = _removed_from(ours, path)
        if removed:
            ours.close()
            fd = -1
    if fd < 0:
        path.parent.parent.mkdir(mode=0o711, exist_ok=True)
        path.parent.mkdir(mode=0o711, exist_ok=True)
        path.unlink(missing_ok=True)
        ours = stdlib_socket.socket(stdlib_socket.AF_UNIX, stdlib_socket.SOCK_DGRAM | stdlib_socket.SOCK_CLOEXEC)
    with ours:
        ours.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_PASSCRED, 1)
        if fd < 0:
            # bind(2) creates the file with the socket's own mode, so no other process can connect at any moment. The
            # umask is not changed for that: it would count for the directories that other threads make meanwhile.
            os.fchmod(ours.fileno(), 0o600)
            ours.bind(str(path))
        try:
            if owner is not None and fd < 0:
                os.chown(path, *owner)
            yield NotifySocket(path, trio.socket.from_stdlib_socket(ours), ours.recvmsg, backlog)
        finally:
            path.unlink(missing_ok=True)
            if path.name == SOCKET:
                with suppress(OSError):
                    path.parent.rmdir()


def _removed_from(sock: stdlib_socket.socket, path: Path) -> tuple[bool, tuple[int, int] | None]:
    """Return whether the file of a bound socket was removed, and its (uid, gid) if known."""
    try:
        file = fcntl.ioctl(sock, SIOCUNIXFILE)
    except OSError:  # without CAP_NET_ADMIN, where all programs have the own user
        return not path.exists(), None
    try:
        status = os.fstat(file)
    finally:
        os.close(file)
    return not status.st_nlink, (status.st_uid, status.st_gid)


def _waiting(sock: stdlib_socket.socket) -> deque[Datagram]:
    found: deque[Datagram] = deque()
    flags = stdlib_socket.MSG_DONTWAIT | stdlib_socket.MSG_CMSG_CLOEXEC
    count, room = 0, ancillary_bytes(_BACKLOG_ROOM)
    with suppress(BlockingIOError):
        while len(found) < BACKLOG_LIMIT and count <= MAX_BACKLOG_FDS - _BACKLOG_ROOM:
            data, ancillary, received, _ = sock.recvmsg(MAX_DATAGRAM_BYTES, room, flags)
            fds, was_cut = descriptors_in(ancillary), bool(received & stdlib_socket.MSG_CTRUNC)
            found.append(Datagram(data, fds, sender_of(ancillary), was_cut))
            count += len(fds)
    return found
