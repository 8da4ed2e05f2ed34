"""The cgroup of one workload: its limits, its readings, its processes."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, ClassVar

import attrs

from nsupervisor.cgroups import directories, limits
from nsupervisor.cgroups.errors import CgroupError, CgroupGoneError, Problem
from nsupervisor.cgroups.files import RESOURCES, V1
from nsupervisor.cgroups.host import Around, Host
from nsupervisor.cgroups.mounts import Hierarchy
from nsupervisor.cgroups.parsing import HOST_FILES, parse
from nsupervisor.cgroups.values import file_of, settings
from nsupervisor.config.units import Percent

_READ_SIZE = 8192
_MAX_KILL_ROUNDS = 1000
_, _HARD_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)
MOST_KEPT = (1 << 20 if _HARD_LIMIT == resource.RLIM_INFINITY else _HARD_LIMIT) // 3
"""The number of files that all cgroups together keep open: a third of the hard limit.

The service raises its own limit to the hard one. The rest is for the programs' pipes and for kernel notifications.
`set_max_open_files` changes the number.
"""
_HIERARCHICAL_EVENTS = ("memory.events", "pids.events")


def keep_at_most(files: int) -> None:
    """Lower the number of files that cgroups keep open, to leave descriptors for other uses.

    Files that are already open and exceed the number are closed when they are next read.
    """
    global MOST_KEPT
    MOST_KEPT = files


@attrs.define(eq=False)
class _CachedReader:
    """Kept-open files that together give one reading.

    Their texts are parsed again only when they differ from the texts before, because most samples find no change.
    """

    fds: tuple[int, ...]
    parse: Callable[[Sequence[str]], dict[str, float]]
    said: list[bytes] = attrs.field(factory=list)
    values: dict[str, float] = attrs.field(factory=dict)

    def read(self) -> dict[str, float]:
        """Return the values, parsed only if a text has changed."""
        texts = [_pread(self.fds[0])] if len(self.fds) == 1 else [_pread(fd) for fd in self.fds]
        if texts != self.said:
            self.values = self.parse([data.decode() for data in texts])
            self.said = texts
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
    problems: list[Problem] = attrs.field(factory=list)
    provide: Callable[[Cgroup, str], None] | None = attrs.field(default=None, repr=False)
    within: tuple[Cgroup, ...] = attrs.field(default=(), repr=False)
    members: dict[str, Cgroup] = attrs.field(factory=dict, repr=False)
    """The cgroups directly below a group, by path."""
    shared: set[str] = attrs.field(factory=set, init=False, repr=False)
    """The controllers in which a group has limits, so that all its members must be in their v1 hierarchies."""
    _around: Around | None = attrs.field(default=None, init=False, repr=False)
    """The result of `ancestor_limits`, if it has been fixed in advance."""
    raw_before: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)
    """The texts that raw files (`unified`) had before they were first written."""
    killed: bool = attrs.field(default=False, init=False)
    """Whether `kill` has been used: if so, `recreate` it before the next process is cloned into it."""
    _kept: ClassVar[int] = 0
    """The number of open files of all cgroups."""
    _sources: dict[str, _CachedReader] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def procs_files(self) -> list[str]:
        """The v1 files to which a child writes 0 to join, before its first step. Empty on unified hosts.

        They are `tasks`, not `cgroup.procs`: a process that moves its only thread need not hold up every fork and exit
        of the host (cgroup_threadgroup_rwsem). Here that costs 0.1 ms a hierarchy instead of 2 to 15.
        """
        return [f"{directory}/tasks" for directory in self.v1.values()]

    def directory(self, file: str) -> str:
        """Return the directory that has the v2 file, or the v1 files in its place.

        Raises CgroupError if this host has neither.
        """
        location = self.host.place(file)
        if isinstance(location, Problem):
            raise CgroupError(f"{self.name} has no {file}: {location.why}; {location.instead}")
        if location.v1 is None or (location.v1.core and location.hierarchy not in self.v1):
            return self.path
        if location.hierarchy not in self.v1:
            raise CgroupError(
                f"{self.name} was made without {file.partition('.')[0]} limits; restart it to have {file}"
            )
        return self.v1[location.hierarchy]

    def provided(self, file: str) -> str:
        """Give the cgroup the controller of a file, if it lacks it, and return the file's directory."""
        location = self.host.place(file)
        if self.provide is not None and not isinstance(location, Problem):
            self.provide(self, file.partition(".")[0])
        return self.directory(file)

    def is_v1(self, file: str) -> bool:
        """Return whether v1 files replace this v2 file on this host."""
        location = self.host.place(file)
        return not isinstance(location, Problem) and location.hierarchy.version == 1

    def offers(self, file: str) -> bool:
        """Return whether `read_cached(file)` can succeed. Opens no file that stays open."""
        with self._briefly(file):
            try:
                self._source(file)
            except CgroupError:
                return False
            return True

    def read(self, file: str) -> dict[str, float]:
        """Return the present values of the v2 file, by v2's keys.

        Examples: {"": 123}, {"oom_kill": 1}, {"some avg10": 0.0}, cpu.max as {"quota": …, "period": …}; infinity for
        "max".

        The file stays open, so that each further reading costs one pread(2). All cgroups together keep at most
        MAX_OPEN_FILES files open; further ones are opened for each reading. While the text stays the same, the result
        is the same mapping, which callers must not change.

        Raises CgroupError if the host has no such file, CgroupGoneError if the cgroup has been removed.
        """
        source = self._sources.get(file)
        if source is not None and Cgroup._kept <= MOST_KEPT:
            return self._read(file, source)
        if Cgroup._kept >= MOST_KEPT:
            self._let_go(file)
            return self.look(file)
        return self._read(file, self._source(file))

    def _read(self, file: str, source: _CachedReader) -> dict[str, float]:
        try:
            values = source.read()
            return self._with_members(file, values) if self.members and file in _HIERARCHICAL_EVENTS else values
        except OSError as error:
            raise self._unreadable(file, error) from error
        except ValueError as error:
            raise CgroupError(f"cannot read {file} of {self.name}: {error}") from error

    def _with_members(self, file: str, values: dict[str, float]) -> dict[str, float]:
        """Add the events of the cgroups below.

        v2 counts an event in all cgroups around it, v1 only in the one where it happens.
        """
        if not self.is_v1(file):
            return values
        for member in list(self.members.values()):
            try:
                member_values = member.read(file)
            except CgroupGoneError:
                del self.members[member.path]
                continue
            values = {key: values.get(key, 0.0) + member_values.get(key, 0.0) for key in {**values, **member_values}}
        return values

    def look(self, file: str) -> dict[str, float]:
        """Read like `read_cached`, but for occasional readings: opens no file that stays open."""
        with self._briefly(file):
            return self._read(file, self._source(file))

    @contextmanager
    def _briefly(self, file: str) -> Iterator[None]:
        was_open = file in self._sources
        try:
            yield
        finally:
            if not was_open:
                self._let_go(file)

    def _let_go(self, file: str) -> None:
        source = self._sources.pop(file, None)
        for fd in source.fds if source else ():
            os.close(fd)
            Cgroup._kept -= 1

    def _source(self, file: str) -> _CachedReader:
        source = self._sources.get(file)
        if source is None:
            directory = self.directory(file)
            if file in HOST_FILES:
                paths, parser = [HOST_FILES[file]], _v2_parser(file)
            elif directory == self.path:
                paths, parser = [f"{self.path}/{limits.v2_name(self, file)}"], _v2_parser(file)
            else:
                v1 = V1[file]
                paths = [f"{self.path}/{file}"] * v1.core + [f"{directory}/{name}" for name in v1.files]
                parser = v1.read
            source = self._sources[file] = _CachedReader(self._open(file, paths), parser)
            Cgroup._kept += len(source.fds)
        return source

    def _open(self, file: str, paths: Sequence[str]) -> tuple[int, ...]:
        fds: list[int] = []
        try:
            fds.extend(os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths)
        except OSError as error:
            for fd in fds:
                os.close(fd)
            raise self._unreadable(file, error) from error
        return tuple(fds)

    def _unreadable(self, file: str, error: OSError) -> CgroupError:
        # For a removed cgroup, reading an open file fails with ENODEV, opening a path with ENOENT.
        if error.errno in (errno.ENODEV, errno.ENOENT) and not os.path.exists(self.path):
            return CgroupGoneError(f"cannot read {file} of {self.name}: the cgroup has been removed")
        why = "this kernel has no such file" if error.errno == errno.ENOENT else error.strerror
        return CgroupError(f"cannot read {file} of {self.name}: {why}")

    def limits(self, files: Iterable[str] = ()) -> dict[str, float | None]:
        """Return the limits in force: {"memory.max": bytes or None, "pids.max": number or None}.

        `files` adds further files, "cpu.max" as a number of CPUs. Files that the host lacks are left out.
        """
        limits_by_file: dict[str, float | None] = {}
        for file in dict.fromkeys(("memory.max", "pids.max", *files)):
            try:
                values = self.look(file)
            except CgroupError:
                continue
            value = values[""] if file != "cpu.max" else values["quota"] / values["period"]
            limits_by_file[file] = None if value == inf else value
        return limits_by_file

    def around(self) -> Around:
        """Return the limits in force of the groups around it."""
        if self._around is not None:
            return self._around
        limits_by_controller: dict[str, list[float]] = {"memory": [], "pids": []}
        for group in self.within:
            for file, limit in group.limits().items():
                limits_by_controller[file.partition(".")[0]] += [limit] if limit is not None else []
        return limits_by_controller

    # limits ----------------------------------------------------------------------------------------------------------

    def set(self, key: str, value: object) -> None:
        """Set one resource by its configuration key ("memory_max") to its configured value; None lifts the limit.

        The file is read back: a value that the kernel did not accept, except for rounding to pages, is an error.
        CgroupError names the file, the workload, the value and the kernel's reason.
        """
        limits.put(self, key, value)

    def apply(self, resources: Any, fresh: bool = False) -> None:
        """Set all resources. Unless the cgroup is new, resources that are not given return to the kernel's default.

        resources: an object with the fields of RESOURCE_FILES and `required`. If `required` is false, a failure is
        added to `self.problems` instead of raising CgroupError.
        """
        self.problems.clear()
        values = settings(resources)
        keys = [*values]
        if not fresh:
            keys += [key for key, file in RESOURCES.items() if key not in values and limits.is_set(self, file)]
        unfit = {problem.key: problem for problem in self.host.problems(resources, self.around())}
        for key, value in limits.steps(self, keys, values):
            try:
                if (problem := unfit.get(key)) is not None:
                    raise self._refusal(problem)
                self.set(key, value)
            except CgroupError as error:
                if resources.required:
                    raise
                self.problems.append(Problem(key, str(error), "the workload runs without it"))

    def change(self, before: Any, after: Any) -> None:
        """Change from one set of resources to another while the workload runs: completely or, on a failure, not at all.

        Raises CgroupError with the failure, after the limits that were already set have been restored. A failure to
        restore is in the message as well.
        """
        old, new = settings(before), settings(after)
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        for problem in self.host.problems(after, self.around()):
            if problem.key in keys or (problem.key == "memory_swap_max" and "memory_max" in keys):
                raise self._refusal(problem)
        tried = []
        try:
            for key, value in limits.steps(self, keys, new):
                tried.append(key)
                self.set(key, value)
        except CgroupError as error:
            failures = [str(error)]
            for key, value in limits.steps(self, list(dict.fromkeys(tried)), old):
                try:
                    self.set(key, value)
                except CgroupError as restore_error:
                    failures.append(f"and what was before is not back: {restore_error}")
            raise CgroupError("; ".join(failures)) from error

    def apart(self, resources: Any) -> Cgroup:
        """Return a second handle on the same directories, for a thread that sets these limits.

        Meanwhile the event loop keeps reading through this handle. Close the second handle afterwards.
        """
        for key in settings(resources):
            try:
                self.provided(file_of(key))  # the tree is not thread-safe
            except CgroupError:
                pass  # setting the limit reports the reason
        handle = Cgroup(self.host, self.name, self.path, self.v1)
        handle._around = self.around()
        handle.raw_before = self.raw_before
        return handle

    def remeasure(self, resources: Any) -> None:
        """Set the percentages again, after the limit of a group around it has changed.

        Raises CgroupError like `set_limit`.
        """
        values = settings(resources)
        keys = [key for key, value in values.items() if isinstance(value, Percent)]
        for key, value in limits.steps(self, keys, values):
            self.set(key, value)

    def _refusal(self, problem: Problem) -> CgroupError:
        return CgroupError(f"cannot set {file_of(problem.key)} of {self.name}: {problem.why}; {problem.instead}")

    # processes -------------------------------------------------------------------------------------------------------

    def populated(self) -> bool:
        """Return whether any process is in the cgroup or below it. False once the cgroup has been removed."""
        try:
            return self.read("cgroup.events")["populated"] == 1
        except CgroupGoneError:
            return False

    def procs(self) -> list[int]:
        """Return the pids in the cgroup, nested cgroups included."""
        return directories.processes(self.path)

    def signal(self, signum: int) -> int:
        """Send a signal to every process in the cgroup, nested cgroups included; return how many received it.

        Processes forked at the same moment may be missed; `kill` misses none. The kernel may give the pid of an ended
        process to another process at any time. So each process is pinned by a pidfd first, and only pids that are still
        in the cgroup after that are signalled.
        """
        pinned: dict[int, int] = {}
        try:
            for pid in self.procs():
                try:
                    pinned.setdefault(pid, os.pidfd_open(pid))
                except ProcessLookupError:
                    pass
            sent = 0
            for pid in set(self.procs()) & pinned.keys():
                try:
                    signal.pidfd_send_signal(pinned[pid], signum)
                    sent += 1
                except ProcessLookupError:
                    pass
            return sent
        finally:
            for fd in pinned.values():
                os.close(fd)

    def kill(self) -> None:
        """Send SIGKILL to every process in the cgroup, also to those that are just being forked.

        Returns before they are gone: wait for `populated` 0. The next generation needs `recreate`. Raises CgroupError
        if the kernel refuses.
        """
        self.killed = True
        try:
            directories.write(f"{self.path}/cgroup.kill", "1")
        except FileNotFoundError:  # before Linux 5.14
            self._kill_by_freezing()
        except OSError as error:
            raise CgroupError(f"cannot kill {self.name}: {error.strerror}") from error

    def renew(self, resources: object) -> None:
        """Make the v2 directory again, with its limits. Watchers of the cgroup must be added again as well.

        Since Linux 6.14 (and in stable kernels since), a clone compares how often its cgroup was killed before and
        after it, so that no fork slips through a kill. With CLONE_INTO_CGROUP the count before is that of the parent's
        cgroup: once a cgroup has been killed, every process that is cloned into it dies of SIGKILL at birth
        (cgroup_css_set_fork and cgroup_post_fork in kernel/cgroup/cgroup.c). A new directory counts from 0.

        Raises CgroupError if the cgroup is populated, or a limit cannot be set again.
        """
        self.close()
        directories.remove(self.path)
        try:
            os.mkdir(self.path)
        except OSError as error:
            raise CgroupError(f"cannot make the cgroup {self.path}: {error.strerror}") from error
        self.raw_before.clear()
        self.apply(resources, fresh=True)
        self.killed = False

    def _kill_by_freezing(self) -> None:
        # Frozen processes do not fork, but freezing takes a moment: repeat until a round finds no new process.
        self.freeze()
        try:
            killed: set[int] = set()
            for _ in range(_MAX_KILL_ROUNDS):
                new = set(self.procs()) - killed
                if not new and self.frozen():
                    break
                if new:
                    self.signal(signal.SIGKILL)
                killed |= new
        finally:
            self.thaw()

    def freeze(self) -> None:
        """Stop every process in the cgroup. Takes effect a moment later, visible in `is_frozen` and cgroup.events."""
        self._write_freeze("1")

    def thaw(self) -> None:
        """Let the processes of the cgroup continue."""
        self._write_freeze("0")

    def _write_freeze(self, value: str) -> None:
        try:
            directories.write(f"{self.path}/cgroup.freeze", value)
        except OSError as error:
            raise CgroupError(f"cannot {'freeze' if value == '1' else 'thaw'} {self.name}: {error.strerror}") from error

    def frozen(self) -> bool:
        """Return whether `freeze` has stopped all processes; false while some are still being stopped."""
        return self.read("cgroup.events").get("frozen") == 1

    # removal ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the files that are kept open. The cgroup itself stays; a later reading opens them again."""
        for file in [*self._sources]:
            self._let_go(file)

    def remove(self) -> None:
        """Remove the directories in every hierarchy, with all cgroups that the workload made below them.

        Empty the cgroup first (`kill`, wait for `populated` 0). Raises CgroupError if it is in use. A cgroup that is
        already gone is no error.
        """
        self.close()
        for directory in (self.path, *self.v1.values()):
            directories.remove(directory)


def _v2_parser(file: str) -> Callable[[Sequence[str]], dict[str, float]]:
    return lambda texts: parse(file, texts[0])


def _pread(fd: int) -> bytes:
    data = os.pread(fd, _READ_SIZE, 0)
    if len(data) == _READ_SIZE:  # longer files are rare, so only they cost a second read
        data = os.pread(fd, 1 << 20, 0)
    return data
