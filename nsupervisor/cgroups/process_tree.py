"""Workloads without cgroups: process trees that look like cgroups to the rest of this package.

`ProcessTreeFiles` implements `CgroupFiles` without a cgroup file system. Its directories exist in memory. The processes
of a directory are the descendants of the workload's init, which is a subreaper (or PID 1 of a PID namespace): a process
whose parent ends becomes a child of the init, so no process leaves the tree as long as the init lives, and the init
lives as long as it has a child. So a directory is populated exactly while its init runs, which a pidfd reports.

**What it lacks.** There are no limits, no counters, no pressure, and no freezing. `Host.locate` says so for each file.
A kill is not one operation of the kernel: processes are stopped until a round finds no other one, and then killed.

**After a crash.** The keeper reports the pid of each init when it starts one (`track`). A supervisor that has lost its
predecessor and the keeper finds the inits in /proc by their titles, which have the paths of the directories. A digest
of the runtime directory is part of each path, so that two services do not find each other's.

**Pids are reused.** An init is identified by pid and start time, and pinned by a pidfd. A descendant is pinned before
its parent is read again; only then is it signalled.
"""

from __future__ import annotations

import errno
import hashlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

import attrs

from nsupervisor.cgroups.filesystem import KERNEL_FILES, CgroupFiles
from nsupervisor.cgroups.mounts import Hierarchy
from nsupervisor.linux import processes
from nsupervisor.linux.inotify import IN_MODIFY, InotifyEvent
from nsupervisor.linux.process_titles import INIT_COMMAND, INIT_TITLE, tree_title
from nsupervisor.linux.processes import ProcessEntry

_FIRST_FD = 1 << 30
"""The first number of a virtual descriptor: no real one is as large (fs.nr_open)."""
_FILES = {
    "cgroup.controllers": "",
    "cgroup.events": "",
    "cgroup.freeze": "0\n",
    "cgroup.kill": "",
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "cgroup.type": "domain\n",
}
"""The files of each directory, with the texts of those that do not change."""
_MAX_KILL_ROUNDS = 100
_SEARCH_TIMEOUT_S = 1.0
"""How long `search` waits for an init that has lost its keeper in the middle of a start: it ends, or has a title."""
_SEARCH_DELAY_S = 0.001
_KEEPER_COMMAND = "nsupervisor-kee"


class ProcessTable(Protocol):
    """Facts about processes: functions of `nsupervisor.linux.processes`."""

    def process_table(self) -> Mapping[int, ProcessEntry]: ...
    def start_time(self, pid: int) -> int | None: ...
    def parent_pid(self, pid: int) -> int | None: ...
    def command_name(self, pid: int) -> str: ...
    def title(self, pid: int) -> str: ...
    def real_uid(self, pid: int) -> int | None: ...
    def is_namespace_init(self, pid: int) -> bool: ...
    def pin(self, pid: int) -> int: ...
    def open_pidfd(self, pid: int, start_ticks: int) -> int: ...
    def has_ended(self, pidfd: int) -> bool: ...
    def send_signal(self, pidfd: int, signum: int) -> None: ...
    def close(self, fd: int) -> None: ...


def tree_root(runtime_directory: str) -> str:
    """Return the root of the paths of a service: it identifies the runtime directory."""
    path = os.path.realpath(runtime_directory)
    return f"/{hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()}"


def tree_hierarchy(root: str) -> Hierarchy:
    """Return what `Host.core` is without cgroups: a hierarchy that is mounted nowhere."""
    return Hierarchy(2, frozenset(), root, root, False)


@attrs.define(eq=False)
class _Init:
    """The init of a workload. `pidfd` is -1 if no descriptor was free."""

    pid: int
    start_ticks: int
    pidfd: int


@attrs.define(eq=False)
class _Directory:
    path: str
    children: dict[str, _Directory] = attrs.field(factory=dict)
    init: _Init | None = None
    is_killed: bool = False
    """Whether it has been killed. That stays in force until it is empty, as a kill may miss a process that forks."""
    is_removed: bool = False

    def subtree(self) -> Iterator[_Directory]:
        yield self
        for child in self.children.values():
            yield from child.subtree()


class ProcessTreeFiles:
    """`CgroupFiles` on process trees; see the module. Paths that are not below `root` are those of the real files."""

    def __init__(self, root: str, table: ProcessTable = processes, real: CgroupFiles = KERNEL_FILES) -> None:
        self._root, self._table, self._real = root, table, real
        self._directories: dict[str, _Directory] = {}
        self._fds: dict[int, tuple[_Directory, str]] = {}
        self._last_fd = _FIRST_FD
        self._inits: dict[int, _Directory] = {}
        """The directories with an init, by its pidfd."""
        self._found: dict[str, tuple[int, int]] = {}
        """The inits that `search` has found and no directory has, by title: pid and start time."""
        self.ends = select.epoll()
        """Readable when an init has ended: see `take_ended`."""
        self._make(root)
        self.search()

    # ---- the inits

    def track(self, path: str, pid: int) -> None:
        """Note the init of a directory, which the keeper has started or has reported."""
        directory = self._directories.get(path)
        start_ticks = self._table.start_time(pid)
        if directory is not None and start_ticks is not None:
            self._track(directory, pid, start_ticks)

    def _track(self, directory: _Directory, pid: int, start_ticks: int) -> None:
        present = directory.init
        if present is not None and (present.pid, present.start_ticks) == (pid, start_ticks):
            return
        try:
            pidfd = self._table.open_pidfd(pid, start_ticks)
        except OSError:  # no descriptor is free: its end is then seen by the watcher's backstop
            pidfd = -1
        else:
            if pidfd < 0:  # it has ended
                return
        self._forget(directory)
        directory.init, directory.is_killed = _Init(pid, start_ticks, pidfd), False
        if pidfd >= 0:
            self._inits[pidfd] = directory
            self.ends.register(pidfd, select.EPOLLIN)

    def _forget(self, directory: _Directory) -> None:
        if directory.init is not None and directory.init.pidfd >= 0:
            self.ends.unregister(directory.init.pidfd)
            del self._inits[directory.init.pidfd]
            self._table.close(directory.init.pidfd)
        directory.init = None

    def take_ended(self) -> list[str]:
        """Return the directories whose inits have ended since the last call, each with those around it."""
        paths: dict[str, None] = {}
        for pidfd, _ in self.ends.poll(0):
            directory = self._inits[pidfd]
            self._forget(directory)
            path = directory.path
            while path.startswith(self._root):
                paths[path] = None
                path = os.path.dirname(path)
        return list(paths)

    def search(self) -> None:
        """Find inits that nothing has reported: of an earlier supervisor, or of a keeper that died in a start."""
        deadline = time.monotonic() + _SEARCH_TIMEOUT_S
        while self._search() and time.monotonic() < deadline:
            self.sleep(_SEARCH_DELAY_S)

    def _search(self) -> bool:
        """Look once; return whether an init without a keeper may get a program yet."""
        is_pending, uid = False, os.getuid()
        for pid, entry in self._table.process_table().items():
            if entry.is_zombie or self._table.command_name(pid) != INIT_COMMAND or self._table.real_uid(pid) != uid:
                continue
            started, title = self._table.start_time(pid), self._table.title(pid)
            if started is None:
                continue
            if not title.startswith(INIT_TITLE):
                is_pending |= self._table.command_name(entry.parent) != _KEEPER_COMMAND
                continue
            name = title.removeprefix(INIT_TITLE)
            if name.startswith(f"{self._root}/"):
                self._track(self._make(name), pid, started)
            elif name.startswith("#"):
                self._found[name] = pid, started
                for path in [path for path in self._directories if tree_title(path) == name]:
                    self._attach_found(self._directories[path])
        return is_pending

    def _attach_found(self, directory: _Directory) -> None:
        title = tree_title(directory.path)
        if title.startswith("#") and (identity := self._found.pop(title, None)) is not None:
            self._track(directory, *identity)

    def instance_of(self, pid: int) -> str:
        """Return the instance that a process is part of: the name of its directory; "" if it is in none."""
        roots = {
            directory.init.pid: directory for directory in self._directories.values() if directory.init is not None
        }
        seen = set()
        while pid > 1 and pid not in seen:
            if (directory := roots.get(pid)) is not None and self._has_init(directory):
                return os.path.basename(directory.path)
            seen.add(pid)
            pid = self._table.parent_pid(pid) or 0
        return ""

    def is_part_of(self, pid: int, instance: str, _tree: str = "") -> bool:
        """Return whether a process is part of an instance; also True if it has ended."""
        found = self.instance_of(pid)
        return found == instance or (not found and self._table.start_time(pid) is None)

    # ---- the processes

    def _has_init(self, directory: _Directory) -> bool:
        init = directory.init
        if init is None:
            return False
        if init.pidfd >= 0:
            return not self._table.has_ended(init.pidfd)
        return self._table.start_time(init.pid) == init.start_ticks

    def _is_populated(self, directory: _Directory) -> bool:
        return any(map(self._has_init, directory.subtree()))

    def _descendants(self, directory: _Directory) -> dict[int, ProcessEntry]:
        """Return the processes below the directory's init."""
        init = directory.init
        if init is None:
            return {}
        table = self._table.process_table()
        children: dict[int, list[int]] = {}
        for pid, entry in table.items():
            children.setdefault(entry.parent, []).append(pid)
        below: dict[int, ProcessEntry] = {}
        waiting = [init.pid]
        while waiting:
            for pid in children.get(waiting.pop(), ()):
                if pid not in below:
                    below[pid] = table[pid]
                    waiting.append(pid)
        # The init has lived all the time if it lives now, so its pid was its own.
        return below if self._has_init(directory) else {}

    def _kill(self, directory: _Directory) -> None:
        """Kill all processes. Raises OSError if one may not be signalled; the others have been."""
        refused: OSError | None = None
        for each in directory.subtree():
            try:
                self._kill_tree(each)
            except OSError as error:
                refused = error
        if refused is not None:
            raise refused

    def _kill_tree(self, directory: _Directory) -> None:
        init = directory.init
        if init is None or not self._has_init(directory):
            return
        directory.is_killed = True
        if init.pidfd >= 0 and self._table.is_namespace_init(init.pid):
            self._table.send_signal(init.pidfd, signal.SIGKILL)
            return
        pinned: dict[int, int] = {}
        refused: OSError | None = None
        try:
            # A process that is stopped does not fork: after a round that finds no other one, all of them are stopped.
            for _ in range(_MAX_KILL_ROUNDS):
                found = {pid: entry for pid, entry in self._descendants(directory).items() if pid not in pinned}
                if not found:
                    break
                for pid, entry in found.items():
                    try:
                        pinned[pid] = self._pin(pid, (entry.parent, init.pid))
                        self._table.send_signal(pinned[pid], signal.SIGSTOP)
                    except ProcessLookupError:
                        pass
                    except PermissionError as error:
                        refused = error
            for pidfd in pinned.values():
                try:
                    self._table.send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                except PermissionError as error:
                    refused = error
        finally:
            for pidfd in pinned.values():
                self._table.close(pidfd)
        if refused is not None:
            raise refused

    def _pin(self, pid: int, parents: tuple[int, int]) -> int:
        """Return a pidfd of a descendant. Raises ProcessLookupError if it has ended, and another one may have its pid.

        `parents`: the parent that it had, and the init, which has it if that one has ended.
        """
        pidfd = self._table.pin(pid)
        if self._table.parent_pid(pid) in parents:
            return pidfd
        self._table.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    # ---- CgroupFiles

    def _is_ours(self, path: str) -> bool:
        return path == self._root or path.startswith(f"{self._root}/")

    def _find(self, path: str) -> tuple[_Directory, str]:
        directory = self._directories.get(os.path.dirname(path))
        name = os.path.basename(path)
        if directory is None or name not in _FILES:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return directory, name

    def _read(self, directory: _Directory, name: str) -> str:
        if directory.is_removed:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if name == "cgroup.events":
            is_populated = self._is_populated(directory)
            if is_populated and directory.is_killed:
                try:
                    self._kill(directory)
                except OSError:  # reported by the first kill
                    pass
            return f"populated {is_populated:d}\nfrozen 0\n"
        if name == "cgroup.procs":
            below = self._descendants(directory)
            return "".join(f"{pid}\n" for pid, entry in below.items() if not entry.is_zombie)
        return _FILES[name]

    def open(self, path: str) -> int:
        if not self._is_ours(path):
            return self._real.open(path)
        self._last_fd += 1
        self._fds[self._last_fd] = self._find(path)
        return self._last_fd

    def read(self, fd: int) -> bytes:
        if fd < _FIRST_FD:
            return self._real.read(fd)
        return self._read(*self._fds[fd]).encode()

    def close(self, fd: int) -> None:
        if fd < _FIRST_FD:
            self._real.close(fd)
        else:
            del self._fds[fd]

    def read_text(self, path: str) -> str:
        return self._read(*self._find(path)) if self._is_ours(path) else self._real.read_text(path)

    def write(self, path: str, text: str) -> None:
        if not self._is_ours(path):
            self._real.write(path, text)
            return
        directory, name = self._find(path)
        if name == "cgroup.kill":
            self._kill(directory)
        elif (name, text) != ("cgroup.freeze", "0"):
            raise OSError(errno.EOPNOTSUPP, "there is no cgroup, only a process tree")

    def exists(self, path: str) -> bool:
        if not self._is_ours(path):
            return self._real.exists(path)
        return path in self._directories or (
            os.path.dirname(path) in self._directories and os.path.basename(path) in _FILES
        )

    def make_directory(self, path: str) -> None:
        if path in self._directories:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._make(path)

    def make_directories(self, path: str) -> None:
        self._make(path)

    def _make(self, path: str) -> _Directory:
        directory = self._directories.get(path)
        if directory is None:
            directory = self._directories[path] = _Directory(path)
            if path != self._root:
                self._make(os.path.dirname(path)).children[os.path.basename(path)] = directory
            self._attach_found(directory)
        return directory

    def remove_directory(self, path: str) -> None:
        directory = self._directories.get(path)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if directory.children or self._has_init(directory):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        self._forget(directory)
        directory.is_removed = True
        del self._directories[path]
        if path != self._root:
            del self._directories[os.path.dirname(path)].children[os.path.basename(path)]

    def restrict_devices(self, path: str, rules: object) -> None:
        pass

    def list_directories(self, path: str) -> list[str]:
        directory = self._directories.get(path)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return list(directory.children)

    def has_directories(self, path: str) -> bool:
        return bool(self.list_directories(path))

    def lock(self, path: str) -> int:
        """Return a descriptor that holds nothing: the lock of the runtime directory is enough, as it names the root."""
        return self._real.open(os.devnull)

    def open_pidfd(self, pid: int) -> int:
        return self._table.pin(pid)

    def send_signal(self, pidfd: int, signum: int) -> None:
        self._table.send_signal(pidfd, signum)

    def sleep(self, seconds: float) -> None:
        self._real.sleep(seconds)


class ProcessTreeNotifications:
    """`Notifications` of process trees: a change of cgroup.events when an init has ended."""

    def __init__(self, files: ProcessTreeFiles) -> None:
        self._files = files
        self._watched: dict[str, int] = {}
        self._last_wd = 0

    def add(self, path: str, mask: int) -> int:
        directory, name = os.path.split(path)
        if name != "cgroup.events" or not self._files.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if directory not in self._watched:
            self._last_wd += 1
            self._watched[directory] = self._last_wd
        return self._watched[directory]

    def remove(self, wd: int) -> None:
        self._watched = {path: number for path, number in self._watched.items() if number != wd}

    def read(self) -> list[InotifyEvent]:
        ended = self._files.take_ended()
        return [InotifyEvent(self._watched[path], IN_MODIFY) for path in ended if path in self._watched]

    def close(self) -> None:
        self._watched.clear()

    async def wait(self) -> None:
        """Wait until an init has ended."""
        import trio  # imported late: `check` imports this module, and must be quick

        await trio.lowlevel.wait_readable(self._files.ends.fileno())
