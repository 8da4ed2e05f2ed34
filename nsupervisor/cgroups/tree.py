"""The supervisor's subtree of cgroups: one directory in each hierarchy, and one below it for each workload.

A workload in groups is below the groups' directories: `<tree>/group.outer/group.inner/web`. No workload's name contains
a dot, so the names cannot collide. Groups hold no processes themselves, as the kernel requires of cgroups that enable
controllers for cgroups below them; controllers are enabled from the tree downwards, level by level ("Top-down
Constraint" and "No Internal Process Constraint" in Documentation/admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any

import attrs

from nsupervisor.cgroups import directories
from nsupervisor.cgroups.cgroup import Cgroup
from nsupervisor.cgroups.errors import CgroupError
from nsupervisor.cgroups.files import CONTROLLERS, ON_DEMAND
from nsupervisor.cgroups.host import LEAF, Host, internal_processes, not_writable, small_parent, strangers
from nsupervisor.cgroups.mounts import Hierarchy
from nsupervisor.cgroups.values import file_of, settings

_ALWAYS_JOINED = ("memory", "pids")
"""v1 controllers whose counters every workload has.

The others are joined only for a limit: each one costs the child a write, and a v1 cpu cgroup removes real-time
scheduling (cpu.rt_runtime_us is 0 in new ones).
"""


_MAX_JOIN_ROUNDS = 100

GROUP = "group."
"""The prefix of a group's directory name."""


@attrs.define(eq=False)
class Tree:
    """The directories `<base>/<name>` in the v2 core and `<own>/<name>` in v1 hierarchies. Made by `Tree.create`."""

    host: Host = attrs.field(repr=False)
    name: str
    path: str
    _v1: dict[Hierarchy, str] = attrs.field(factory=dict, init=False, repr=False)
    _enabled: list[str] = attrs.field(factory=list, init=False)
    _given: set[str] = attrs.field(factory=set, init=False)
    """The v2 controllers that the workloads' cgroups have."""
    _made: dict[str, Cgroup] = attrs.field(factory=dict, init=False, repr=False)
    """The cgroups of groups and workloads by path."""
    _top: dict[str, Cgroup] = attrs.field(factory=dict, init=False, repr=False)
    """The cgroups that are in no group, by path."""
    _leaf: str | None = attrs.field(default=None, init=False)
    _made_leaf: bool = attrs.field(default=False, init=False)

    @classmethod
    def create(cls, host: Host, name: str, adopt: bool = False, own_leaf: bool = False) -> Tree:
        """Make the tree below the own cgroup.

        On a unified host, away from the root, this process moves to the leaf `<own>/supervisor`, because a cgroup that
        enables controllers for others may hold no processes; its descendants there move as well. Then the controllers
        are enabled; a controller that the kernel refuses is reported by `host.check_resources`.

        An empty left-over of the same name is removed. One with processes in it belongs to another supervisor and is an
        error. `adopt`: the tree is ours from before an upgrade or a crash, and stays as it is, with its workloads
        running. `own_leaf`: the leaf is ours from before, too, and is removed at the end.

        Raises CgroupError if there is no usable v2 hierarchy, or directories cannot be made.
        """
        if host.core is None:
            problem = host._no_core(name)
            raise CgroupError(f"cannot make cgroups: {problem.why}; {problem.instead}")
        tree = cls(host, name, f"{host.base}/{name}")
        if not adopt:
            tree._clear()
        try:
            os.makedirs(tree.path, exist_ok=True)
        except OSError as error:
            why, instead = not_writable(host.core, host.base) or (error.strerror, "see `nsupervisor doctor`")
            raise CgroupError(f"cannot make the cgroup {tree.path}: {why}; {instead}") from error
        if own_leaf and os.path.basename(host.core.directory) == LEAF:
            tree._inherit_leaf(host.core.directory)
        try:
            tree._enable([name for name in CONTROLLERS if name not in tree._later()])
            for controller in CONTROLLERS:
                hierarchy = tree._v1_hierarchy(controller)
                if hierarchy is not None and (
                    controller in _ALWAYS_JOINED or os.path.exists(f"{hierarchy.directory}/{name}")
                ):
                    tree._make_v1(hierarchy)
        except BaseException:
            tree.close()
            raise
        return tree

    def _clear(self) -> None:
        if os.path.exists(f"{self.path}/cgroup.events"):
            with open(f"{self.path}/cgroup.events") as file:
                if "populated 1" in file.read():
                    raise CgroupError(
                        f"the cgroup {self.path} is in use by another supervisor (processes "
                        f"{', '.join(map(str, directories.processes(self.path)[:5]))}); stop that one, or give this "
                        "one another name ([supervisor] name)"
                    )
        v1 = {hierarchy for name in CONTROLLERS if (hierarchy := self._v1_hierarchy(name)) is not None}
        for directory in (self.path, *(f"{hierarchy.directory}/{self.name}" for hierarchy in v1)):
            directories.remove(directory)

    # v2 --------------------------------------------------------------------------------------------------------------

    def _later(self) -> tuple[str, ...]:
        """Controllers that are enabled only for a limit.

        Next to v1 hierarchies io is one of them: otherwise the supervisor would move to a leaf for nothing on a host
        that has only io on v2.
        """
        return ON_DEMAND if self.host.mode == "unified" else (*ON_DEMAND, "io")

    def _enable(self, names: list[str]) -> None:
        """Enable v2 controllers for the workloads: in subtree_control of the base, of the tree and of the groups."""
        host = self.host
        assert host.core is not None
        wanted = [
            name
            for name in names
            if (controller := host.controllers.get(name)) and controller.delegated and controller.hierarchy.version == 2
        ]
        if not wanted:
            return
        if not host.at_root and host.core.directory == host.base and self._leaf is None:
            self._move_to_leaf()
        for name in wanted:
            enabled = _words(f"{host.base}/cgroup.subtree_control")
            try:
                if name not in enabled:
                    directories.write(f"{host.base}/cgroup.subtree_control", f"+{name}")
                    self._enabled.append(name)
                for directory in (self.path, *self._groups()):
                    directories.write(f"{directory}/cgroup.subtree_control", f"+{name}")
                self._given.add(name)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    host.refuse([name], *internal_processes(host.base, strangers(host.base)))
                else:
                    host.refuse([name], f"the kernel refuses to enable {name} in {host.base} ({error.strerror})")

    def _move_to_leaf(self) -> None:
        leaf = f"{self.host.base}/{LEAF}"
        self._made_leaf = not os.path.exists(leaf)
        os.makedirs(leaf, exist_ok=True)
        self._leaf = leaf
        foreign_pids = strangers(self.host.base)
        for pid in directories.members(self.host.base):
            if pid not in foreign_pids:
                self.supervisor_join(pid)

    def _inherit_leaf(self, leaf: str) -> None:
        """Take over the leaf of an earlier supervisor.

        The earlier one had to move to it, so nothing but it had enabled controllers before.
        """
        self._leaf, self._made_leaf = leaf, True
        self._enabled = [name for name in _words(f"{self.host.base}/cgroup.subtree_control") if name in CONTROLLERS]

    @property
    def owns_leaf(self) -> bool:
        """Whether this supervisor, or an earlier one that it continues, has made the leaf."""
        return self._made_leaf

    def supervisor_join(self, pid: int) -> None:
        """Move one of the supervisor's own processes (the keeper) to the supervisor's leaf.

        Does nothing if the supervisor did not have to move, or if the process has ended. Raises CgroupError if the
        kernel refuses.
        """
        if self._leaf is not None:
            try:
                directories.write(f"{self._leaf}/cgroup.procs", str(pid))
            except ProcessLookupError:
                pass
            except OSError as error:
                raise CgroupError(f"cannot move process {pid} to {self._leaf}: {error.strerror}") from error

    # v1 --------------------------------------------------------------------------------------------------------------

    def _v1_hierarchy(self, controller: str) -> Hierarchy | None:
        entry = self.host.controllers.get(controller)
        return entry.hierarchy if entry is not None and entry.delegated and entry.hierarchy.version == 1 else None

    def _make_v1(self, hierarchy: Hierarchy) -> None:
        """Make the tree's directory in a v1 hierarchy, unless it exists."""
        if hierarchy not in self._v1:
            directory = f"{hierarchy.directory}/{self.name}"
            _make_v1_cgroup(directory, hierarchy)
            self._v1[hierarchy] = directory

    # workloads -------------------------------------------------------------------------------------------------------

    def group(self, name: str, resources: Any, within: Sequence[Cgroup] = ()) -> Cgroup:
        """Make the cgroup of a group of workloads, like `make`. Its members are made with it as their last ancestor."""
        cgroup = self._cgroup(f"{GROUP}{name}", f"group/{name}", resources, within)
        try:
            for controller in CONTROLLERS:
                if controller in self._given:
                    directories.write(f"{cgroup.path}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            why = error.strerror
            if error.errno == errno.EBUSY:
                pids = ", ".join(map(str, directories.members(cgroup.path)[:5]))
                why = f"the processes {pids} are in it, where only cgroups may be"
            raise CgroupError(f"cannot share out the controllers of {cgroup.name} ({cgroup.path}): {why}") from error
        cgroup.shared |= _controllers(resources)
        return cgroup

    def make(self, name: str, resources: Any, within: Sequence[Cgroup] = (), *, given: bool = False) -> Cgroup:
        """Make the cgroup of one workload, with its limits applied and read back.

        It may exist already: a workload keeps its cgroup across restarts, counters continue, and limits that are no
        longer configured are lifted. resources: `config.model.Resources`, or anything with its fields. ancestors: the
        groups around it, the outermost first. limits_known: if the cgroup exists, it is known to have these limits, and
        they are not checked. Raises CgroupError with the limit, the workload and the reason; then nothing new is left
        behind.
        """
        return self._cgroup(name, name, resources, within, given)

    def groups(self, names: Sequence[str]) -> list[Cgroup]:
        """Return the cgroups of groups, the outermost first.

        A group that an earlier supervisor has left is returned unchanged.
        """
        cgroups: list[Cgroup] = []
        for name in names:
            path = f"{cgroups[-1].path if cgroups else self.path}/{GROUP}{name}"
            cgroup = self._made.get(path)
            if cgroup is None:
                cgroup = Cgroup(self.host, f"group/{name}", path, provide=self._provide, within=tuple(cgroups))
                hierarchies = filter(None, map(self._v1_hierarchy, CONTROLLERS))
                cgroup.v1 |= {
                    hierarchy: directory
                    for hierarchy in hierarchies
                    if os.path.exists(directory := self._v1_path(hierarchy, cgroup))
                }
                self._made[path] = cgroup
            cgroups.append(cgroup)
        return cgroups

    def found(self) -> dict[str, tuple[str, ...]]:
        """Return the instances that have a cgroup, each with the names of its groups, the outermost first."""

        def list_below(directory: str, around: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
            names: dict[str, tuple[str, ...]] = {}
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        continue
                    if entry.name.startswith(GROUP):
                        names |= list_below(entry.path, (*around, entry.name.removeprefix(GROUP)))
                    else:
                        names[entry.name] = around
            return names

        return list_below(self.path, ())

    def root(self) -> Cgroup:
        """Return the tree's own cgroup, around all workloads: for reading and watching, not for limits."""
        return Cgroup(self.host, "host", self.path, dict(self._v1), members=self._top)

    def _groups(self) -> list[str]:
        """Return the directories of the groups, each after those around it."""
        return sorted(path for path in self._made if os.path.basename(path).startswith(GROUP) and os.path.exists(path))

    def _cgroup(
        self, directory: str, name: str, resources: Any, within: Sequence[Cgroup], given: bool = False
    ) -> Cgroup:
        path = f"{within[-1].path if within else self.path}/{directory}"
        fresh = not os.path.exists(path)
        needed = {
            *_ALWAYS_JOINED,
            *_controllers(resources),
            *(controller for group in within for controller in group.shared),
        }
        cgroup = Cgroup(self.host, name, path, provide=self._provide, within=tuple(within))
        try:
            try:
                if fresh:
                    os.makedirs(path, exist_ok=True)
            except OSError as error:
                raise CgroupError(f"cannot make the cgroup {path}: {error.strerror}") from error
            for controller in CONTROLLERS:
                hierarchy = self._v1_hierarchy(controller)
                # An existing directory may have a limit that must be lifted.
                if hierarchy is not None and (controller in needed or os.path.exists(self._v1_path(hierarchy, cgroup))):
                    self._make_v1_below(hierarchy, cgroup)
            if fresh or not given:
                cgroup.apply(resources, fresh)
        except BaseException:
            cgroup.close()
            if fresh:
                cgroup.remove()
            raise
        self._made[path] = cgroup
        (within[-1].members if within else self._top)[path] = cgroup
        return cgroup

    def _v1_path(self, hierarchy: Hierarchy, cgroup: Cgroup) -> str:
        return f"{hierarchy.directory}/{self.name}{cgroup.path.removeprefix(self.path)}"

    def _make_v1_below(self, hierarchy: Hierarchy, cgroup: Cgroup) -> str:
        self._make_v1(hierarchy)
        for member in (*cgroup.within, cgroup):
            directory = member.v1[hierarchy] = self._v1_path(hierarchy, member)
            _make_v1_cgroup(directory, hierarchy)
        return directory

    def _provide(self, cgroup: Cgroup, controller: str) -> None:
        """Enable a controller for a workload, or for all members of a group.

        On v2 it is enabled in the tree; on v1 all their processes join its hierarchy.
        """
        entry = self.host.controllers.get(controller)
        if entry is None or not entry.delegated:
            return
        hierarchy = entry.hierarchy
        if hierarchy.version == 2:
            if controller not in self._given:
                self._enable([controller])
            return
        if not os.path.basename(cgroup.path).startswith(GROUP):
            if hierarchy not in cgroup.v1:
                self._join(cgroup, self._make_v1_below(hierarchy, cgroup))
        elif controller not in cgroup.shared:
            self._make_v1_below(hierarchy, cgroup)
            for member in list(self._made.values()):
                if cgroup in member.within and os.path.exists(member.path):
                    self._provide(member, controller)
            cgroup.shared.add(controller)

    def _join(self, cgroup: Cgroup, directory: str) -> None:
        """Move all processes of the cgroup to a v1 directory.

        A process that is just being forked is moved in the next round; the children of moved processes are in the
        directory.
        """
        for _ in range(_MAX_JOIN_ROUNDS):
            outside = set(cgroup.procs()) - set(directories.processes(directory))
            if not outside:
                return
            for pid in outside:
                try:
                    directories.write(f"{directory}/cgroup.procs", str(pid))
                except ProcessLookupError:
                    pass
                except OSError as error:
                    raise CgroupError(f"cannot move process {pid} to {directory}: {error.strerror}") from error
        reason = "they fork too fast; freeze it first"
        raise CgroupError(f"cannot move the processes of {cgroup.name} to {directory}: {reason}")

    def close(self) -> None:
        """Remove everything that the tree made: the workloads' cgroups, the tree, the enabled controllers, the leaf.

        Raises CgroupError if processes are still in a workload's cgroup; empty cgroups are removed even then, and
        `close` can be called again.
        """
        errors: list[CgroupError] = []
        for directory in (self.path, *self._v1.values()):
            for child in (*_in_removal_order(directory), directory):
                try:
                    directories.remove(child)
                except CgroupError as error:
                    errors.append(error)
        self._made = {path: cgroup for path, cgroup in self._made.items() if os.path.exists(path)}
        if errors:
            raise errors[0]
        self._v1.clear()
        for name in self._enabled:
            try:
                directories.write(f"{self.host.base}/cgroup.subtree_control", f"-{name}")
            except OSError as error:
                if error.errno != errno.EBUSY:  # a cgroup below the base uses it by now
                    raise
        self._enabled.clear()
        self._given.clear()
        if self._leaf is not None and self._made_leaf:
            self._leave_leaf(self._leaf)
        self._leaf = None

    def _leave_leaf(self, leaf: str) -> None:
        # Only this process and its small parent move back: a keeper that keeps running needs the leaf.
        try:
            for pid in filter(None, (os.getpid(), small_parent())):
                directories.write(f"{self.host.base}/cgroup.procs", str(pid))
        except OSError as error:
            if error.errno == errno.EBUSY:  # controllers are still enabled for other cgroups
                return
            raise CgroupError(f"cannot move back to {self.host.base}: {error.strerror}") from error
        if not directories.processes(leaf):
            directories.remove(leaf)


def _make_v1_cgroup(directory: str, hierarchy: Hierarchy) -> None:
    """Make a v1 directory that is ready for processes.

    A new cpuset has no CPUs and no memory nodes, and accepts no process before it has both (cgroup-v1/cpusets.rst), so
    it gets its parent's. Before Linux 5.11 a memory cgroup limits the cgroups below it only if memory.use_hierarchy is
    set while there are none (cgroup-v1/memory.rst, section 6).
    """
    try:
        if not os.path.isdir(directory):
            os.makedirs(directory, exist_ok=True)
        nested = f"{directory}/memory.use_hierarchy"
        if "memory" in hierarchy.controllers and os.path.exists(nested) and _words(nested) == ["0"]:
            directories.write(nested, "1")
        if "cpuset" in hierarchy.controllers:
            for file in ("cpuset.mems", "cpuset.cpus"):
                if not _words(f"{directory}/{file}"):
                    with open(f"{os.path.dirname(directory)}/{file}") as parent:
                        directories.write(f"{directory}/{file}", parent.read().strip())
    except OSError as error:
        raise CgroupError(f"cannot make the cgroup {directory}: {error.strerror}") from error


def _in_removal_order(directory: str) -> list[str]:
    """Return the directories to remove below the tree: each workload's cgroup, and a group's after those in it."""
    try:
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    ordered = []
    for path in below:
        ordered += [*(_in_removal_order(path) if os.path.basename(path).startswith(GROUP) else ()), path]
    return ordered


def _controllers(resources: Any) -> set[str]:
    """Return the controllers that these limits need."""
    return {file_of(key).partition(".")[0] for key in settings(resources)}


def _words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()
