"""Notifications of changed files, for the watcher: an interface, and the kernel's inotify(7)."""

from __future__ import annotations

from typing import Protocol

import trio

from nsupervisor.linux.inotify import Inotify, InotifyEvent


class Notifications(Protocol):
    """An inotify instance; `nsupervisor.linux.inotify.Inotify` documents the methods and their errors."""

    def add(self, path: str, mask: int) -> int: ...
    def remove(self, wd: int) -> None: ...
    def read(self) -> list[InotifyEvent]: ...
    def close(self) -> None: ...
    async def wait(self) -> None:
        """Wait until `read` has something to return."""


class KernelNotifications(Inotify):
    """The notifications of the kernel, with inotify(7)."""

    async def wait(self) -> None:
        """Wait until `read` has something to return."""
        await trio.lowlevel.wait_readable(self.fd)
