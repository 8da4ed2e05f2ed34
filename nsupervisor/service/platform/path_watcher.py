"""Looks at files and directories for path triggers, and watches them: inotify(7).

Other users may control the paths. No link of theirs is followed, and nothing is opened for reading but directories, by
their descriptors. A file system that does not answer blocks a look, so looks belong in threads. Each directory on the
way to a path is watched before the next name is looked up in it: so a change is either seen by the look or reported.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

import trio

from nsupervisor.config.paths import PathConfig
from nsupervisor.core.path_triggers import PathLook, counts
from nsupervisor.linux.inotify import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MASK_ADD,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    Inotify,
    InotifyEvent,
)
from nsupervisor.linux.trusted_paths import open_trusted_directory, walk_directories

MAX_ENTRIES = 10_000
"""Names of a directory that a look reads. Of a larger one, the state of the directory itself counts, too."""
_NAMES = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF
_CHANGES = _NAMES | IN_ATTRIB | IN_CLOSE_WRITE
MISSING = "missing"
"""The fingerprint of what does not exist."""
_INSTEAD = "write a path below directories that only root may write to, or make the directory yourself"


class Watch(NamedTuple):
    """A watched directory on the way to a path."""

    wd: int
    name: str | None
    """The name in it that matters; None: all that count (`core.path_triggers.counts`)."""
    is_target: bool
    """Whether an event of that name is about the path itself, and not about a directory or a link on the way."""


class WatchedLook(NamedTuple):
    """The result of a look. With a problem, `look` is None, and `watches` are those that exist all the same."""

    look: PathLook | None
    watches: tuple[Watch, ...]
    problem: str = ""
    cost_s: float = 0.0
    """Seconds of a processor that it took."""


class PathWatcher(Protocol):
    """The seam between path triggers and the operating system."""

    async def wait(self) -> None:
        """Wait until there are events."""

    def read(self) -> list[InotifyEvent]:
        """Return the events so far, without waiting."""

    def look(self, path: PathConfig, own_logs: Sequence[str]) -> WatchedLook:
        """Look at a path, and watch it; called in a thread.

        `own_logs`: names in its directory that do not count.
        """

    def remove(self, wd: int) -> None:
        """End a watch by its descriptor."""

    def close(self) -> None:
        """End all watches, and close the descriptor."""


OpenPathWatcher = Callable[[], PathWatcher]
"""Opens the watcher of the service. Raises OSError."""


class InotifyWatcher:
    """The watcher of this host. Implements `PathWatcher`."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._inotify = Inotify()

    async def wait(self) -> None:
        await trio.lowlevel.wait_readable(self._inotify.fd)

    def read(self) -> list[InotifyEvent]:
        return self._inotify.read()

    def remove(self, wd: int) -> None:
        self._inotify.remove(wd)

    def close(self) -> None:
        self._inotify.close()

    def look(self, path: PathConfig, own_logs: Sequence[str]) -> WatchedLook:
        began_at = time.thread_time()
        found = self._look(path, own_logs)
        return found._replace(cost_s=time.thread_time() - began_at)

    def _look(self, path: PathConfig, own_logs: Sequence[str]) -> WatchedLook:
        watches: list[Watch] = []
        changes = _CHANGES | (IN_MODIFY if path.path_modified is not None else 0)

        def watch_name(fd: int, name: str, is_target: bool) -> None:
            try:
                wd = self._add(fd, changes if is_target and not path.is_level else _NAMES)
            except PermissionError:
                if is_target:
                    raise
            else:
                watches.append(Watch(wd, name, is_target))

        try:
            if path.make_directory:
                os.close(open_trusted_directory(path.path, _INSTEAD, mode=0o755, by_name=False))
            fd = walk_directories(path.watched_path, watch_name)
            try:
                status = os.fstat(fd)
                if path.condition != "path_exists" and stat.S_ISDIR(status.st_mode):
                    watches.append(Watch(self._add(fd, _NAMES if path.is_level else changes), None, True))
                    look, is_complete = _look_into(fd, status, path, own_logs)
                    if path.is_level and not look.holds and not is_complete:
                        return WatchedLook(None, tuple(watches), _too_large(path))
                else:
                    is_there = path.condition == "path_exists"
                    look = PathLook(is_there, _fingerprint_of(status))
            finally:
                os.close(fd)
        except (FileNotFoundError, NotADirectoryError):
            return WatchedLook(PathLook(False, MISSING), tuple(watches))
        except OSError as error:
            return WatchedLook(None, tuple(watches), _describe(error, path))
        return WatchedLook(look, tuple(watches))

    def _add(self, fd: int, mask: int) -> int:
        return self._inotify.add(f"/proc/self/fd/{fd}", mask | IN_ONLYDIR | IN_MASK_ADD)


def _too_large(path: PathConfig) -> str:
    return (
        f"cannot watch {path.path}: its directory has more than {MAX_ENTRIES} names, and none of those that were read "
        "counts; remove the others, or use a directory of its own"
    )


def _describe(error: OSError, path: PathConfig) -> str:
    if error.errno == errno.ENOSPC:
        return f"cannot watch {path.path}: raise fs.inotify.max_user_watches, sysctl(8)"
    text = str(error) if error.filename is None else error.strerror
    return f"cannot watch {path.path}: {text}"


def _fingerprint_of(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def _look_into(
    directory: int, status: os.stat_result, path: PathConfig, own_logs: Sequence[str]
) -> tuple[PathLook, bool]:
    """Look at the names in a directory that count, and their files; not at what links lead to.

    The second result is whether all names were read.
    """
    found: list[str] = []
    is_complete = True
    fd = os.open(f"/proc/self/fd/{directory}", os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with os.scandir(fd) as entries:
            for number, entry in enumerate(entries):
                if number == MAX_ENTRIES:
                    is_complete = False
                    break
                if counts(path, entry.name, own_logs):
                    try:
                        found.append(f"{entry.name}\0{_fingerprint_of(entry.stat(follow_symlinks=False))}")
                    except FileNotFoundError:
                        continue
    finally:
        os.close(fd)
    digest = blake2b("\0".join(sorted(found)).encode(errors="surrogateescape"), digest_size=12).hexdigest()
    suffix = "" if is_complete else f" {_fingerprint_of(status)}"
    return PathLook(bool(found), f"{len(found)} {digest}{suffix}"), is_complete
