"""inotify(7) by ctypes: be told when files change. Standard library only."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

IN_MODIFY = 0x2
IN_DELETE_SELF = 0x400
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000

_HEADER = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, length of the name that follows
_BUFFER = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """What happened to the watch `wd`. After IN_Q_OVERFLOW (wd -1) events are missing; after IN_IGNORED the watch is
    gone, because it was removed or its file was."""

    wd: int
    mask: int


class Inotify:
    """One inotify instance, non-blocking. `fd` is readable when there are events."""

    def __init__(self) -> None:
        self.fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            # EMFILE is about /proc/sys/fs/inotify/max_user_instances as often as about open files
            raise _error("inotify_init1 (see also /proc/sys/fs/inotify/max_user_instances)")

    def add(self, path: str, mask: int) -> int:
        """Watch a file; returns the watch descriptor, the same one for the same file. OSError; ENOSPC means that
        /proc/sys/fs/inotify/max_user_watches is used up."""
        wd: int = _libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if wd < 0:
            raise _error(path)
        return wd

    def remove(self, wd: int) -> None:
        """End a watch. Events of it that are already queued still come, and an IN_IGNORED. One that is gone is fine."""
        _libc.inotify_rm_watch(self.fd, wd)  # EINVAL: the file was removed, and its watch with it

    def read(self) -> list[Event]:
        """The events so far; empty when there are none. Never blocks."""
        try:
            data = os.read(self.fd, _BUFFER)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at < len(data):
            wd, mask, _, length = _HEADER.unpack_from(data, at)
            events.append(Event(wd, mask))
            at += _HEADER.size + length
        return events

    def close(self) -> None:
        """Close the instance, and with it all watches."""
        os.close(self.fd)


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
