"""A wrapper of inotify(7) by ctypes: notifications when files change. Standard library only."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x01000000
IN_MASK_ADD = 0x20000000

_HEADER = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, length of the name that follows
_BUFFER_SIZE = 65536

_libc = ctypes.CDLL(None, use_errno=True)


class InotifyEvent(NamedTuple):
    """An event of the watch `wd`.

    After IN_Q_OVERFLOW (wd -1) events are missing; after IN_IGNORED the watch is gone, because it was removed or its
    file was.
    """

    wd: int
    mask: int
    name: str = ""
    """The name of the file in a watched directory; "": the event is about the watched file itself."""


class Inotify:
    """One inotify instance, non-blocking. `fd` is readable when there are events."""

    def __init__(self) -> None:
        self.fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            # EMFILE means the limit in /proc/sys/fs/inotify/max_user_instances as often as the one on open files
            raise _last_error("inotify_init1 (see also /proc/sys/fs/inotify/max_user_instances)")

    def add(self, path: str, mask: int) -> int:
        """Watch a file; return the watch descriptor, the same one for the same file.

        Raises OSError; ENOSPC means that /proc/sys/fs/inotify/max_user_watches is used up.
        """
        wd: int = _libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask))
        if wd < 0:
            raise _last_error(path)
        return wd

    def remove(self, wd: int) -> None:
        """End a watch. A watch that is gone already is no error.

        Its queued events still arrive, and an IN_IGNORED.
        """
        _libc.inotify_rm_watch(self.fd, wd)  # EINVAL: the file was removed, and its watch with it

    def read(self) -> list[InotifyEvent]:
        """Return the events so far; empty if there are none. Never blocks."""
        try:
            data = os.read(self.fd, _BUFFER_SIZE)
        except BlockingIOError:
            return []
        events = []
        offset = 0
        while offset < len(data):
            wd, mask, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0")) if length else ""
            events.append(InotifyEvent(wd, mask, name))
            offset += length
        return events

    def close(self) -> None:
        """Close the instance, and all its watches."""
        os.close(self.fd)


def _last_error(operation: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), operation)
