"""Descriptors that other processes have sent: which are harmless to hold, and how to close the others.

A workload can send any descriptor. close(2) of a file on a FUSE file system waits for the process that serves it, also
if other descriptors of the file remain, and so do fstat(2) and most other calls. So nothing is done with a descriptor
before it is known what it is. That is read from /proc/self/fd, which asks no file system.

Closing the last descriptor of a socket may wait for SO_LINGER, socket(7), so that is switched off first.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
from contextlib import suppress

from nsupervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_F_GET_SEALS = 1034
_F_DUPFD_QUERY = 1027  # Linux 6.10
_NO_LINGER = struct.pack("ii", 0, 0)  # struct linger, socket(7)
_FAMILIES = (
    *(socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET),
    *((socket.AF_VSOCK,) if hasattr(socket, "AF_VSOCK") else ()),
)
_SAFE_KINDS = (
    *("pipe:[", "pidfd:[", "anon_inode:[eventfd]", "anon_inode:[timerfd]", "anon_inode:[signalfd]"),
    *("anon_inode:[pidfd]", "anon_inode:[eventpoll]", "anon_inode:inotify"),
)
_POLLED_KINDS = ("socket:[", "pipe:[")
STORABLE = (
    "sockets, pipes, memory (memfd_create), files of a tmpfs, eventfds, timerfds, signalfds, pidfds, epoll, inotify"
)
"""The kinds that can be held without ever waiting for another process, in words."""


def find_refusal(fd: int) -> str:
    """Return why a descriptor must not be held, or "" if it may be."""
    kind = _kind(fd)
    if kind.startswith(_SAFE_KINDS):
        return ""
    if kind.startswith("socket:["):
        with _duplicate(fd) as sock:
            family = sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN)
        return "" if family in _FAMILIES else f"it is a socket of the address family {family}"
    try:
        fcntl.fcntl(fd, _F_GET_SEALS)  # only files in memory have seals, and the file system is not asked
    except OSError:
        return f"it is {kind[:64]!r}, and only these can be stored: {STORABLE}"
    return ""


def is_same(one: int, other: int) -> bool:
    """Return whether two descriptors are duplicates of each other, as far as the kernel says: kcmp(2)."""
    try:
        return syscalls.kcmp_file(one, other)
    except OSError:
        try:
            return fcntl.fcntl(one, _F_DUPFD_QUERY, other) == 1
        except OSError:
            return False


def discard(fds: Sequence[int]) -> int:
    """Close descriptors that were received, without waiting; return how many of them are of no harmless kind.

    Those are closed in a thread each: the caller limits how many it receives.
    """
    others = 0
    for fd in fds:
        if find_refusal(fd):
            others += 1
            threading.Thread(target=os.close, args=(fd,), daemon=True, name="close").start()
            continue
        if _kind(fd).startswith("socket:["):
            with _duplicate(fd) as sock, suppress(OSError):  # a kind of socket without it
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        os.close(fd)
    return others


class HangupPoll:
    """Reports descriptors whose other end is closed, or that have an error: EPOLLHUP and EPOLLERR of epoll(7)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def add(self, fd: int) -> None:
        """Watch a descriptor, if it can have another end."""
        if _kind(fd).startswith(_POLLED_KINDS):
            with suppress(OSError):  # ENOSPC: the limit on watches, epoll(7); it is not watched then
                self._epoll.register(fd, 0)

    def remove(self, fd: int) -> None:
        """Watch a descriptor no longer; before it is closed, as a duplicate would stay in the epoll."""
        with suppress(OSError):  # it is not watched
            self._epoll.unregister(fd)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a hangup waits."""
        return self._epoll.fileno()

    def read(self) -> list[int]:
        """Return the descriptors with a hangup; each has to be removed."""
        return [fd for fd, _ in self._epoll.poll(0)]

    def close(self) -> None:
        """Stop watching, and close the epoll."""
        self._epoll.close()


def _kind(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _duplicate(fd: int) -> socket.socket:
    """Return an object for the options of a socket. With family and type given, Python asks for neither."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(fd))
