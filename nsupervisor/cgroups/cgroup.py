"""The cgroup of one workload: its directories, its readings, its processes. `limits` sets its limits."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from nsupervisor.cgroups import directories
from nsupervisor.cgroups.errors import CgroupError, CgroupGoneError, HostProblem
from nsupervisor.cgroups.files import V1_EQUIVALENTS
from nsupervisor.cgroups.filesystem import CgroupFiles
from nsupervisor.cgroups.host import AncestorLimits, Host
from nsupervisor.cgroups.mounts import Hierarchy
from nsupervisor.cgroups.parsing import HOST_FILES, parse_file
from nsupervisor.cgroups.values import configured_values, file_for_key

if TYPE_CHECKING:
    from nsupervisor.cgroups.device_filter import DeviceRule

_MAX_KILL_ROUNDS = 1000
_, _HARD_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)
MAX_OPEN_FILES = (1 << 20 if _HARD_LIMIT == resource.RLIM_INFINITY else _HARD_LIMIT) // 3
"""The number of files that all cgroups together keep open: a third of the hard limit.

The service raises its own limit to the hard one. The rest is for the programs' pipes and for kernel notifications.
`set_max_open_files` changes the number.
"""
_NEW: Mapping[str, tuple[str, ...]] = {
    "cgroup.subtree_control": ("",),
    "cgroup.freeze": ("0",),
    "cgroup.type": ("domain", "domain invalid"),
}
"""Contents of the interface files of a new v2 cgroup. "domain invalid": that of the cgroups around it."""
_HIERARCHICAL_EVENTS = ("memory.events", "pids.events")


def set_max_open_files(count: int) -> None:
    """Lower the number of files that cgroups keep open, to leave descriptors for other uses.

    Files that are already open and exceed the number are closed when they are next read.
    """
    global MAX_OPEN_FILES
    MAX_OPEN_FILES = count


@attrs.define(eq=False)
class _CachedReader:
    """Kept-open files that together give one reading.

    Their texts are parsed again only when they differ from the texts before, because most samples find no change.
    """

    files: CgroupFiles
    fds: tuple[int, ...]
    parse: Callable[[Sequence[str]], dict[str, float]]
    texts: list[bytes] = attrs.field(factory=list)
    values: dict[str, float] = attrs.field(factory=dict)

    def read(self) -> dict[str, float]:
        """Return the values, parsed only if a text has changed."""
        texts = [self.files.read(fd) for fd in self.fds]
        if texts != self.texts:
            self.values = self.parse([data.decode() for data in texts])
            self.texts = texts
        return self.values


@attrs.define(eq=False)
class Cgroup:
    """A cgroup made by `Tree.make`: a v2 directory, and one in each v1 hierarchy that a limit or a reading needs.

    path: the v2 directory. v1: the v1 directories by hierarchy. problems: the limits that could not be applied while
    the resources say `required = false`. enable_controller: makes the tree give the cgroup a controller. ancestors: the
    groups around it, the outermost first. A group is a cgroup without processes of its own. All calls are quick and may
    be made from the event loop. Not thread-safe.
    """

    host: Host = attrs.field(repr=False)
    name: str
    path: str
    v1: dict[Hierarchy, str] = attrs.field(factory=dict, repr=False)
    problems: list[HostProblem] = attrs.field(factory=list)
    enable_controller: Callable[[Cgroup, str], None] | None = attrs.field(default=None, repr=False)
    ancestors: tuple[Cgroup, ...] = attrs.field(default=(), repr=False)
    children: dict[str, Cgroup] = attrs.field(factory=dict, repr=False)
    """The cgroups directly below a group, by path."""
    limited_controllers: set[str] = attrs.field(factory=set, init=False, repr=False)
    """The controllers in which a group has limits, so that all its members must be in their v1 hierarchies."""
    _ancestor_limits: AncestorLimits | None = attrs.field(default=None, init=False, repr=False)
    """The result of `ancestor_limits`, if it has been fixed in advance."""
    raw_originals: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)
    """The texts that raw files (`unified`) had before they were first written."""
    was_killed: bool = attrs.field(default=False, init=False)
    """Whether `kill` has been used: if so, `limits.recreate_cgroup` must come before the next clone into it."""
    is_unused: bool = attrs.field(default=False, init=False)
    """Whether its directories were made here and no process has been in them, so that nothing has been counted."""
    _device_rules: Any = attrs.field(default=..., init=False, repr=False)
    """The rules of `restrict_devices` in force; ... if they are not known."""
    _open_files: ClassVar[int] = 0
    """The number of open files of all cgroups."""
    _readers: dict[str, _CachedReader] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def join_files(self) -> list[str]:
        """The v1 files to which a child writes 0 to join, before its first step. Empty on unified hosts.

        They are `tasks`, not `cgroup.procs`: a process that moves its only thread need not hold up every fork and exit
        of the host (cgroup_threadgroup_rwsem). Here that costs 0.1 ms a hierarchy instead of 2 to 15.
        """
        return [f"{directory}/tasks" for directory in self.v1.values()]

    @property
    def place(self) -> dict[str, Any]:
        """The keys of a spawn specification that put a process into the cgroup, or below the init of a process tree."""
        if self.host.absence is not None:
            return {"process_tree": self.path}
        return {"cgroup": self.path, "cgroup_procs": self.join_files}

    @property
    def shown_path(self) -> str | None:
        """The path for people and for clients; None if this is a process tree, which is nowhere in the file system."""
        return self.path if self.host.absence is None else None

    def track(self, pid: int) -> None:
        """Note the first process of the program that the keeper has started in it."""
        self.host.files.track(self.path, pid)

    def search(self) -> None:
        """Find a first process that has not been reported: the keeper was lost when it was to start one."""
        self.host.files.search()

    def directory(self, file: str) -> str:
        """Return the directory that has the v2 file, or the v1 files in its place.

        Raises CgroupError if this host has neither.
        """
        location = self.host.locate(file)
        if isinstance(location, HostProblem):
            raise CgroupError(f"{self.name} has no {file}: {location.reason}; {location.remedy}")
        if location.v1 is None or (location.v1.reads_core_first and location.hierarchy not in self.v1):
            return self.path
        if location.hierarchy not in self.v1:
            raise CgroupError(
                f"{self.name} was made without {file.partition('.')[0]} limits; restart it to have {file}"
            )
        return self.v1[location.hierarchy]

    def ensure_controller(self, file: str) -> str:
        """Give the cgroup the controller of a file, if it lacks it, and return the file's directory."""
        location = self.host.locate(file)
        if self.enable_controller is not None and not isinstance(location, HostProblem):
            self.enable_controller(self, file.partition(".")[0])
        return self.directory(file)

    def is_v1(self, file: str) -> bool:
        """Return whether v1 files replace this v2 file on this host."""
        location = self.host.locate(file)
        return not isinstance(location, HostProblem) and location.hierarchy.version == 1

    def supports(self, file: str) -> bool:
        """Return whether `read_cached(file)` can succeed. Opens no file that stays open."""
        if file in self._readers:
            return True
        try:
            self._close_reader(self._open_reader(file))
        except CgroupError:
            return False
        return True

    def read_cached(self, file: str) -> dict[str, float]:
        """Return the present values of the v2 file, by v2's keys.

        Examples: {"": 123}, {"oom_kill": 1}, {"some avg10": 0.0}, cpu.max as {"quota": …, "period": …}; infinity for
        "max".

        The file stays open, so that each further reading costs one pread(2). All cgroups together keep at most
        MAX_OPEN_FILES files open; further ones are opened for each reading. While the text stays the same, the result
        is the same mapping, which callers must not change.

        Raises CgroupError if the host has no such file, CgroupGoneError if the cgroup has been removed.
        """
        source = self._readers.get(file)
        if source is not None and Cgroup._open_files <= MAX_OPEN_FILES:
            return self._read_from(file, source)
        if Cgroup._open_files >= MAX_OPEN_FILES:
            self._close_file(file)
            return self.read_once(file)
        return self._read_from(file, self._reader(file))

    def _read_from(self, file: str, reader: _CachedReader) -> dict[str, float]:
        try:
            values = reader.read()
            return self._with_children(file, values) if self.children and file in _HIERARCHICAL_EVENTS else values
        except OSError as error:
            raise self._read_error(file, error) from error
        except ValueError as error:
            raise CgroupError(f"cannot read {file} of {self.name}: {error}") from error

    def _with_children(self, file: str, values: dict[str, float]) -> dict[str, float]:
        """Add the events of the cgroups below.

        v2 counts an event in all cgroups around it, v1 only in the one where it happens.
        """
        if not self.is_v1(file):
            return values
        for member in list(self.children.values()):
            try:
                member_values = member.read_cached(file)
            except CgroupGoneError:
                del self.children[member.path]
                continue
            values = {key: values.get(key, 0.0) + member_values.get(key, 0.0) for key in {**values, **member_values}}
        return values

    def read_once(self, file: str) -> dict[str, float]:
        """Read like `read_cached`, but for occasional readings: opens no file that stays open."""
        if (kept := self._readers.get(file)) is not None:
            return self._read_from(file, kept)
        reader = self._open_reader(file)
        try:
            return self._read_from(file, reader)
        finally:
            self._close_reader(reader)

    def _close_file(self, file: str) -> None:
        if (source := self._readers.pop(file, None)) is not None:
            self._close_reader(source)
            Cgroup._open_files -= len(source.fds)

    def _close_reader(self, reader: _CachedReader) -> None:
        for fd in reader.fds:
            self.host.files.close(fd)

    def _reader(self, file: str) -> _CachedReader:
        source = self._readers.get(file)
        if source is None:
            source = self._readers[file] = self._open_reader(file)
            Cgroup._open_files += len(source.fds)
        return source

    def _open_reader(self, file: str) -> _CachedReader:
        directory = self.directory(file)
        if file in HOST_FILES:
            paths, parser = [HOST_FILES[file]], _v2_parser(file)
        elif directory == self.path:
            paths, parser = [f"{self.path}/{self.host.v2_file_name(file)}"], _v2_parser(file)
        else:
            v1 = V1_EQUIVALENTS[file]
            paths = [f"{self.path}/{file}"] * v1.reads_core_first + [f"{directory}/{name}" for name in v1.files]
            parser = v1.read
        return _CachedReader(self.host.files, self._open(file, paths), parser)

    def _open(self, file: str, paths: Sequence[str]) -> tuple[int, ...]:
        fds: list[int] = []
        try:
            fds.extend(map(self.host.files.open, paths))
        except OSError as error:
            for fd in fds:
                self.host.files.close(fd)
            raise self._read_error(file, error) from error
        return tuple(fds)

    def _read_error(self, file: str, error: OSError) -> CgroupError:
        # For a removed cgroup, reading an open file fails with ENODEV, opening a path with ENOENT.
        if error.errno in (errno.ENODEV, errno.ENOENT) and not self.host.files.exists(self.path):
            return CgroupGoneError(f"cannot read {file} of {self.name}: the cgroup has been removed")
        why = "this kernel has no such file" if error.errno == errno.ENOENT else error.strerror
        return CgroupError(f"cannot read {file} of {self.name}: {why}")

    def read_limits(self, files: Iterable[str] = ()) -> dict[str, float | None]:
        """Return the limits in force: {"memory.max": bytes or None, "pids.max": number or None}.

        `files` adds further files, "cpu.max" as a number of CPUs. Files that the host lacks are left out.
        """
        limits_by_file: dict[str, float | None] = {}
        for file in dict.fromkeys(("memory.max", "pids.max", *files)):
            try:
                values = self.read_once(file)
            except CgroupError:
                continue
            value = values[""] if file != "cpu.max" else values["quota"] / values["period"]
            limits_by_file[file] = None if value == inf else value
        return limits_by_file

    def ancestor_limits(self) -> AncestorLimits:
        """Return the limits in force of the groups around it."""
        if self._ancestor_limits is not None:
            return self._ancestor_limits
        limits_by_controller: dict[str, list[float]] = {"memory": [], "pids": []}
        for group in self.ancestors:
            for file, limit in group.read_limits().items():
                limits_by_controller[file.partition(".")[0]] += [limit] if limit is not None else []
        return limits_by_controller

    def detached(self, resources: Any) -> Cgroup:
        """Return a second handle on the same directories, for a thread that sets these limits.

        Meanwhile the event loop keeps reading through this handle. Close the second handle afterwards.
        """
        for key in configured_values(resources):
            try:
                self.ensure_controller(file_for_key(key))  # the tree is not thread-safe
            except CgroupError:
                pass  # setting the limit reports the reason
        handle = Cgroup(self.host, self.name, self.path, self.v1)
        handle._ancestor_limits = self.ancestor_limits()
        handle.raw_originals = self.raw_originals
        return handle

    def begin_use(self) -> bool:
        """Note that a process is about to enter it; return whether none has before, so that nothing has been counted.

        False if the directories were not made here.
        """
        was_unused, self.is_unused = self.is_unused, False
        return was_unused

    # processes -------------------------------------------------------------------------------------------------------

    def is_populated(self) -> bool:
        """Return whether any process is in the cgroup or below it. False once the cgroup has been removed."""
        try:
            return self.read_cached("cgroup.events")["populated"] == 1
        except CgroupGoneError:
            return False

    def exists(self) -> bool:
        """Return whether the cgroup exists: a removed one cannot come back under this object."""
        return self.host.files.exists(self.path)

    def pids(self) -> list[int]:
        """Return the pids in the cgroup, nested cgroups included."""
        return directories.list_processes(self.path, self.host.files)

    def send_signal(self, signum: int) -> int:
        """Send a signal to every process in the cgroup, nested cgroups included; return how many received it.

        Processes forked at the same moment may be missed; `kill` misses none. The kernel may give the pid of an ended
        process to another process at any time. So each process is pinned by a pidfd first, and only pids that are still
        in the cgroup after that are signalled.
        """
        files = self.host.files
        pinned: dict[int, int] = {}
        try:
            for pid in self.pids():
                try:
                    pinned.setdefault(pid, files.open_pidfd(pid))
                except ProcessLookupError:
                    pass
            sent = 0
            for pid in [pid for pid in dict.fromkeys(self.pids()) if pid in pinned]:
                try:
                    files.send_signal(pinned[pid], signum)
                    sent += 1
                except ProcessLookupError:
                    pass
            return sent
        finally:
            for fd in pinned.values():
                files.close(fd)

    def kill(self) -> None:
        """Send SIGKILL to every process in the cgroup, also to those that are just being forked.

        Returns before they are gone: wait for `is_populated` 0. The next generation needs `limits.recreate_cgroup`.
        Raises CgroupError if the kernel refuses.
        """
        self.was_killed = True
        try:
            self.host.files.write(f"{self.path}/cgroup.kill", "1")
        except FileNotFoundError:  # before Linux 5.14
            self._kill_by_freezing()
        except OSError as error:
            raise CgroupError(f"cannot kill {self.name}: {error.strerror}") from error

    def mark_killed(self) -> None:
        """Note that an earlier supervisor has killed it, so that the next generation needs `limits.recreate_cgroup`."""
        self.was_killed = True

    def has_leftovers(self) -> bool:
        """Return whether a program has left something that would refuse or affect the next start.

        That is a cgroup below, or a v2 interface file that is not as in a new cgroup: a process cannot be started in a
        cgroup that gives controllers to others (EBUSY: "no internal processes", cgroup-v2.rst), and would be frozen
        from its first instruction in a frozen one. `limits.recreate_cgroup` removes all of it.
        """
        if self.is_unused:
            return False
        files = self.host.files
        try:
            if any(files.has_directories(directory) for directory in (self.path, *self.v1.values())):
                return True
            return any(files.read_text(f"{self.path}/{file}").strip() not in values for file, values in _NEW.items())
        except OSError:
            return True  # its directory or a file has gone, or cannot be read: a new one is needed in any case

    def recreate_directory(self) -> None:
        """Make the v2 directory again, without limits: a step of `limits.recreate_cgroup`, which clears `was_killed`.

        Since Linux 6.14 (and in stable kernels since), a clone compares how often its cgroup was killed before and
        after it, so that no fork slips through a kill. With CLONE_INTO_CGROUP the count before is that of the parent's
        cgroup: once a cgroup has been killed, every process that is cloned into it dies of SIGKILL at birth
        (cgroup_css_set_fork and cgroup_post_fork in kernel/cgroup/cgroup.c). A new directory counts from 0.

        Raises CgroupError if the cgroup is populated, or its directory cannot be made again.
        """
        self.close()
        for directory in self.v1.values():  # those of v1 stay, without what a program has made below them
            for name in self.host.files.list_directories(directory):
                directories.remove(f"{directory}/{name}", self.host.files)
        directories.remove(self.path, self.host.files)
        try:
            self.host.files.make_directory(self.path)
        except OSError as error:
            raise CgroupError(f"cannot make the cgroup {self.path}: {error.strerror}") from error
        self.raw_originals.clear()
        self._device_rules = None

    def note_fresh(self) -> None:
        """Note that its directory has just been made, so that it has no rules for devices."""
        self._device_rules = None

    def restrict_devices(self, rules: tuple[DeviceRule, ...] | None) -> None:
        """Allow its processes these devices only; None: all. It must be empty.

        Raises CgroupError if the kernel refuses. Without rules it does nothing where the kernel has no such programs.
        """
        if rules == self._device_rules:
            return
        try:
            self.host.files.restrict_devices(self.path, rules)
        except OSError as error:
            if rules is not None:
                raise CgroupError(f"cannot restrict the devices of {self.path}: {error.strerror}") from error
        self._device_rules = rules

    def _kill_by_freezing(self) -> None:
        # Frozen processes do not fork, but freezing takes a moment: repeat until a round finds no new process.
        self.freeze()
        try:
            killed: set[int] = set()
            for _ in range(_MAX_KILL_ROUNDS):
                new = set(self.pids()) - killed
                if not new and self.is_frozen():
                    break
                if new:
                    self.send_signal(signal.SIGKILL)
                killed |= new
        finally:
            self.thaw()

    @property
    def freeze_obstacle(self) -> str:
        """Why its processes cannot be frozen, and what to do to be able to; "" if they can."""
        location = self.host.locate("cgroup.freeze")
        return f"{location.reason}; {location.remedy}" if isinstance(location, HostProblem) else ""

    def freeze(self) -> None:
        """Stop every process in the cgroup. Takes effect a moment later, visible in `is_frozen` and cgroup.events."""
        self._write_freeze("1")

    def thaw(self) -> None:
        """Let the processes of the cgroup continue."""
        self._write_freeze("0")

    def _write_freeze(self, value: str) -> None:
        if obstacle := self.freeze_obstacle:
            raise CgroupError(f"cannot {'freeze' if value == '1' else 'thaw'} {self.name}: {obstacle}")
        try:
            self.host.files.write(f"{self.path}/cgroup.freeze", value)
        except OSError as error:
            raise CgroupError(f"cannot {'freeze' if value == '1' else 'thaw'} {self.name}: {error.strerror}") from error

    def is_frozen(self) -> bool:
        """Return whether `freeze` has stopped all processes; false while some are still being stopped."""
        return self.read_cached("cgroup.events").get("frozen") == 1

    # removal ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the files that are kept open. The cgroup itself stays; a later reading opens them again."""
        for file in [*self._readers]:
            self._close_file(file)

    def remove(self) -> None:
        """Remove the directories in every hierarchy, with all cgroups that the workload made below them.

        Empty the cgroup first (`kill`, wait for `is_populated` 0). Raises CgroupError if it is in use. A cgroup that is
        already gone is no error.
        """
        self.close()
        for directory in (self.path, *self.v1.values()):
            directories.remove(directory, self.host.files)


def _v2_parser(file: str) -> Callable[[Sequence[str]], dict[str, float]]:
    return lambda texts: parse_file(file, texts[0])
