"""One workload's cgroup: its limits, its readings, its processes."""

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

_SIZE = 8192
_KILL_ROUNDS = 1000
_, _HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
MOST_KEPT = (1 << 20 if _HARD == resource.RLIM_INFINITY else _HARD) // 3
"""How many files all cgroups together keep open: a third of the hard limit, to which the service raises its own. The
rest is for the programs' pipes, and for the notifications of the kernel. `keep_at_most` changes it."""
_COUNTED_BELOW = ("memory.events", "pids.events")


def keep_at_most(files: int) -> None:
    """The rest is needed for something else. What is open already, and too many, is closed when it is read next."""
    global MOST_KEPT
    MOST_KEPT = files


@attrs.define(eq=False)
class _Source:
    """Kept-open files that together make one reading. What they say is parsed anew only when it is something new: most
    samples find what the one before found."""

    fds: tuple[int, ...]
    parse: Callable[[Sequence[str]], dict[str, float]]
    said: list[bytes] = attrs.field(factory=list)
    values: dict[str, float] = attrs.field(factory=dict)

    def read(self) -> dict[str, float]:
        said = [_pread(self.fds[0])] if len(self.fds) == 1 else [_pread(fd) for fd in self.fds]
        if said != self.said:
            self.values = self.parse([data.decode() for data in said])
            self.said = said
        return self.values


@attrs.define(eq=False)
class Cgroup:
    """A cgroup that Tree.make made: a directory in the v2 core, and one in each v1 hierarchy that a limit or a reading
    needs.

    path: the v2 directory. v1: the v1 directories by hierarchy. problems: what could not be applied although asked for,
    where the resources say `required = false`. provide: has the tree see to it that the cgroup has a controller.
    within: the groups around it, the outermost first. A group is a cgroup without processes of its own.
    All calls are quick and may be made from the event loop. Not thread-safe.
    """

    host: Host = attrs.field(repr=False)
    name: str
    path: str
    v1: dict[Hierarchy, str] = attrs.field(factory=dict, repr=False)
    problems: list[Problem] = attrs.field(factory=list)
    provide: Callable[[Cgroup, str], None] | None = attrs.field(default=None, repr=False)
    within: tuple[Cgroup, ...] = attrs.field(default=(), repr=False)
    members: dict[str, Cgroup] = attrs.field(factory=dict, repr=False)
    """Of a group: what is directly below it, by path."""
    shared: set[str] = attrs.field(factory=set, init=False, repr=False)
    """Of a group: the controllers that it has limits of, so that all its members have to be under them."""
    _around: Around | None = attrs.field(default=None, init=False, repr=False)
    """What `around` says, where that has been settled before."""
    raw_before: dict[str, str] = attrs.field(factory=dict, init=False, repr=False)
    """What raw files (`unified`) had said before they were first written."""
    killed: bool = attrs.field(default=False, init=False)
    """`kill` has been used: before the next process is cloned into it, it has to be made anew (see `renew`)."""
    _kept: ClassVar[int] = 0
    """Files that are open, of all cgroups."""
    _sources: dict[str, _Source] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def procs_files(self) -> list[str]:
        """The v1 files that a child joins by writing 0, before its first step. Empty on unified hosts.

        They are `tasks`, not `cgroup.procs`: a process that moves its only thread needs not hold up every fork and exit
        of the host (cgroup_threadgroup_rwsem), which here is 0.1 ms a hierarchy instead of 2 to 15.
        """
        return [f"{directory}/tasks" for directory in self.v1.values()]

    def directory(self, file: str) -> str:
        """The directory that has the v2 file, or the v1 files in its place. CgroupError when this host has neither."""
        place = self.host.place(file)
        if isinstance(place, Problem):
            raise CgroupError(f"{self.name} has no {file}: {place.why}; {place.instead}")
        if place.v1 is None or (place.v1.core and place.hierarchy not in self.v1):
            return self.path
        if place.hierarchy not in self.v1:
            raise CgroupError(
                f"{self.name} was made without {file.partition('.')[0]} limits; restart it to have {file}"
            )
        return self.v1[place.hierarchy]

    def provided(self, file: str) -> str:
        """`directory`, after the cgroup has been given the file's controller, where it has not got it yet."""
        place = self.host.place(file)
        if self.provide is not None and not isinstance(place, Problem):
            self.provide(self, file.partition(".")[0])
        return self.directory(file)

    def is_v1(self, file: str) -> bool:
        """Whether v1 files stand for this v2 file here."""
        place = self.host.place(file)
        return not isinstance(place, Problem) and place.hierarchy.version == 1

    def offers(self, file: str) -> bool:
        """Whether `read(file)` can say something. Leaves no file open that was not open before."""
        with self._briefly(file):
            try:
                self._source(file)
            except CgroupError:
                return False
            return True

    def read(self, file: str) -> dict[str, float]:
        """The v2 file's present values, by v2's keys: {"": 123}, {"oom_kill": 1}, {"some avg10": 0.0}, cpu.max as
        {"quota": …, "period": …}; infinity for "max".

        The file stays open, so that each further reading costs one pread(2); but of all cgroups together no more than
        MOST_KEPT; what is beyond is opened for each reading. While it says the same, this is the same mapping, which
        nobody may change. CgroupError when the host has no such file; CgroupGoneError when the cgroup has been removed.
        """
        source = self._sources.get(file)
        if source is not None and Cgroup._kept <= MOST_KEPT:
            return self._read(file, source)
        if Cgroup._kept >= MOST_KEPT:
            self._let_go(file)
            return self.look(file)
        return self._read(file, self._source(file))

    def _read(self, file: str, source: _Source) -> dict[str, float]:
        try:
            values = source.read()
            return self._with_members(file, values) if self.members and file in _COUNTED_BELOW else values
        except OSError as error:
            raise self._unreadable(file, error) from error
        except ValueError as error:
            raise CgroupError(f"cannot read {file} of {self.name}: {error}") from error

    def _with_members(self, file: str, values: dict[str, float]) -> dict[str, float]:
        """v2 counts an event in all cgroups around it, v1 in the one alone where it happens."""
        if not self.is_v1(file):
            return values
        for member in list(self.members.values()):
            try:
                found = member.read(file)
            except CgroupGoneError:
                del self.members[member.path]
                continue
            values = {key: values.get(key, 0.0) + found.get(key, 0.0) for key in {**values, **found}}
        return values

    def look(self, file: str) -> dict[str, float]:
        """As `read`, for what is read now and then: leaves no file open that was not open before."""
        with self._briefly(file):
            return self._read(file, self._source(file))

    @contextmanager
    def _briefly(self, file: str) -> Iterator[None]:
        kept = file in self._sources
        try:
            yield
        finally:
            if not kept:
                self._let_go(file)

    def _let_go(self, file: str) -> None:
        source = self._sources.pop(file, None)
        for fd in source.fds if source else ():
            os.close(fd)
            Cgroup._kept -= 1

    def _source(self, file: str) -> _Source:
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
            source = self._sources[file] = _Source(self._open(file, paths), parser)
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
        # Of a removed cgroup, open files say ENODEV, and paths ENOENT.
        if error.errno in (errno.ENODEV, errno.ENOENT) and not os.path.exists(self.path):
            return CgroupGoneError(f"cannot read {file} of {self.name}: the cgroup has been removed")
        why = "this kernel has no such file" if error.errno == errno.ENOENT else error.strerror
        return CgroupError(f"cannot read {file} of {self.name}: {why}")

    def limits(self, files: Iterable[str] = ()) -> dict[str, float | None]:
        """The limits in force: {"memory.max": bytes or None, "pids.max": number or None}, and those in further `files`,
        "cpu.max" as a number of CPUs; without those the host has not."""
        found: dict[str, float | None] = {}
        for file in dict.fromkeys(("memory.max", "pids.max", *files)):
            try:
                values = self.look(file)
            except CgroupError:
                continue
            value = values[""] if file != "cpu.max" else values["quota"] / values["period"]
            found[file] = None if value == inf else value
        return found

    def around(self) -> Around:
        """The limits in force of the groups around it."""
        if self._around is not None:
            return self._around
        found: dict[str, list[float]] = {"memory": [], "pids": []}
        for group in self.within:
            for file, limit in group.limits().items():
                found[file.partition(".")[0]] += [limit] if limit is not None else []
        return found

    # limits ----------------------------------------------------------------------------------------------------------

    def set(self, key: str, value: object) -> None:
        """Set one resource by its configuration key ("memory_max") to its configured value; None lifts the limit.

        The file is read back: what the kernel did not take, but for rounding to pages, is an error. CgroupError names
        the file, the workload, the value and the kernel's reason.
        """
        limits.put(self, key, value)

    def apply(self, resources: Any, fresh: bool = False) -> None:
        """Set all resources. In a cgroup that is not fresh, those not given go back to the kernel's own value.

        resources: an object with the fields of RESOURCES and `required`. With `required` false, what fails becomes one
        of `self.problems` instead of a CgroupError.
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
        """Go from one set of resources to another, while it runs: all of it, or, when something fails, nothing.

        CgroupError says what failed, after what had been set before has been taken back; also where that failed.
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
                except CgroupError as again:
                    failures.append(f"and what was before is not back: {again}")
            raise CgroupError("; ".join(failures)) from error

    def apart(self, resources: Any) -> Cgroup:
        """A second handle on the same directories, for a thread that changes their limits to these while this one goes
        on reading. Close it afterwards."""
        for key in settings(resources):
            try:
                self.provided(file_of(key))  # the tree is not for threads
            except CgroupError:
                pass  # setting it says why
        other = Cgroup(self.host, self.name, self.path, self.v1)
        other._around = self.around()
        other.raw_before = self.raw_before
        return other

    def remeasure(self, resources: Any) -> None:
        """Set anew what is in per cent, after the limit of a group around it has changed. CgroupError as `set`."""
        values = settings(resources)
        keys = [key for key, value in values.items() if isinstance(value, Percent)]
        for key, value in limits.steps(self, keys, values):
            self.set(key, value)

    def _refusal(self, problem: Problem) -> CgroupError:
        return CgroupError(f"cannot set {file_of(problem.key)} of {self.name}: {problem.why}; {problem.instead}")

    # processes -------------------------------------------------------------------------------------------------------

    def populated(self) -> bool:
        """Whether any process is in it or below it. False once it has been removed."""
        try:
            return self.read("cgroup.events")["populated"] == 1
        except CgroupGoneError:
            return False

    def procs(self) -> list[int]:
        """The processes in it, nested cgroups included."""
        return directories.processes(self.path)

    def signal(self, signum: int) -> int:
        """Send a signal to every process in it, nested cgroups included; returns how many got it. Processes forked at
        the same moment may be missed; `kill` misses none.

        The number of a process that ended may be given to another at any time, so each process is pinned by a pidfd,
        and only what is in the cgroup after that is signalled.
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
        """SIGKILL to every process in it, also to those that are just being forked. Returns before they are gone: wait
        for `populated` 0. The next generation needs `renew`."""
        self.killed = True
        try:
            directories.write(f"{self.path}/cgroup.kill", "1")
        except FileNotFoundError:  # before Linux 5.14
            self._kill_by_freezing()
        except OSError as error:
            raise CgroupError(f"cannot kill {self.name}: {error.strerror}") from error

    def renew(self, resources: object) -> None:
        """Make the v2 directory anew, with its limits; whoever watches it has to begin anew as well.

        Since Linux 6.14 (and in stable kernels since), a clone compares how often its cgroup was killed before and
        after, so that no fork slips through a kill. With CLONE_INTO_CGROUP the count before is the parent's cgroup's:
        once a cgroup has been killed, every process that is cloned into it dies of SIGKILL at birth
        (cgroup_css_set_fork and cgroup_post_fork in kernel/cgroup/cgroup.c). A new directory counts from 0.

        CgroupError when it is populated, or a limit cannot be set again.
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
        # Frozen processes do not fork, but freezing takes a moment: go on until a round finds nobody new.
        self.freeze()
        try:
            killed: set[int] = set()
            for _ in range(_KILL_ROUNDS):
                new = set(self.procs()) - killed
                if not new and self.frozen():
                    break
                if new:
                    self.signal(signal.SIGKILL)
                killed |= new
        finally:
            self.thaw()

    def freeze(self) -> None:
        """Stop every process in it. Takes effect a moment later: `frozen` and cgroup.events tell."""
        self._write_freeze("1")

    def thaw(self) -> None:
        """Let them go on."""
        self._write_freeze("0")

    def _write_freeze(self, value: str) -> None:
        try:
            directories.write(f"{self.path}/cgroup.freeze", value)
        except OSError as error:
            raise CgroupError(f"cannot {'freeze' if value == '1' else 'thaw'} {self.name}: {error.strerror}") from error

    def frozen(self) -> bool:
        """Whether all its processes are stopped by `freeze` (not merely asked to)."""
        return self.read("cgroup.events").get("frozen") == 1

    # end -------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the files that are kept open. The cgroup itself stays; a later read opens them again."""
        for file in [*self._sources]:
            self._let_go(file)

    def remove(self) -> None:
        """Remove the directories in every hierarchy, with whatever cgroups the workload made below. Empty it first
        (`kill`, wait for `populated` 0). CgroupError when it is in use; gone already is fine."""
        self.close()
        for directory in (self.path, *self.v1.values()):
            directories.remove(directory)


def _v2_parser(file: str) -> Callable[[Sequence[str]], dict[str, float]]:
    return lambda texts: parse(file, texts[0])


def _pread(fd: int) -> bytes:
    data = os.pread(fd, _SIZE, 0)
    if len(data) == _SIZE:  # longer files are rare, so they pay with a second read
        data = os.pread(fd, 1 << 20, 0)
    return data
