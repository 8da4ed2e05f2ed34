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
from nsupervisor.cgroups.files import CONTROLLERS, ON_DEMAND_CONTROLLERS
from nsupervisor.cgroups.host import (
    LEAF_NAME,
    Host,
    foreign_processes,
    internal_processes_obstacle,
    respawner_pid,
    write_obstacle,
)
from nsupervisor.cgroups.limits import apply_limits
from nsupervisor.cgroups.mounts import Hierarchy
from nsupervisor.cgroups.values import configured_values, file_for_key

_ALWAYS_JOINED = ("memory", "pids")
"""v1 controllers whose counters every workload has.

The others are joined only for a limit: each one costs the child a write, and a v1 cpu cgroup removes real-time
scheduling (cpu.rt_runtime_us is 0 in new ones).
"""


_MAX_JOIN_ROUNDS = 100

GROUP_PREFIX = "group."
"""The prefix of a group's directory name."""


@attrs.define(eq=False)
class Tree:
    """The directories `<base>/<name>` in the v2 core and `<own>/<name>` in v1 hierarchies. Made by `Tree.create`."""

    host: Host = attrs.field(repr=False)
    name: str
    path: str
    _v1: dict[Hierarchy, str] = attrs.field(factory=dict, init=False, repr=False)
    _enabled_in_base: list[str] = attrs.field(factory=list, init=False)
    _available_controllers: set[str] = attrs.field(factory=set, init=False)
    """The v2 controllers that the workloads' cgroups have."""
    _cgroups: dict[str, Cgroup] = attrs.field(factory=dict, init=False, repr=False)
    """The cgroups of groups and workloads by path."""
    _top_level: dict[str, Cgroup] = attrs.field(factory=dict, init=False, repr=False)
    """The cgroups that are in no group, by path."""
    _leaf: str | None = attrs.field(default=None, init=False)
    _owns_leaf: bool = attrs.field(default=False, init=False)

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
            problem = host.no_core_problem(name)
            raise CgroupError(f"cannot make cgroups: {problem.reason}; {problem.remedy}")
        tree = cls(host, name, f"{host.base}/{name}")
        if not adopt:
            tree._remove_stale()
        try:
            host.files.make_directories(tree.path)
        except OSError as error:
            why, instead = write_obstacle(host.core, host.base) or (error.strerror, "see `nsupervisor doctor`")
            raise CgroupError(f"cannot make the cgroup {tree.path}: {why}; {instead}") from error
        if own_leaf and os.path.basename(host.core.directory) == LEAF_NAME:
            tree._inherit_leaf(host.core.directory)
        try:
            tree._enable([name for name in CONTROLLERS if name not in tree._on_demand_controllers()])
            for controller in CONTROLLERS:
                hierarchy = tree._v1_hierarchy(controller)
                if hierarchy is not None and (
                    controller in _ALWAYS_JOINED or host.files.exists(f"{hierarchy.directory}/{name}")
                ):
                    tree._make_v1(hierarchy)
        except BaseException:
            tree.close()
            raise
        return tree

    def _remove_stale(self) -> None:
        files = self.host.files
        events = f"{self.path}/cgroup.events"
        if files.exists(events) and "populated 1" in files.read_text(events):
            pids = ", ".join(map(str, directories.list_processes(self.path, files)[:5]))
            raise CgroupError(
                f"the cgroup {self.path} is in use by another supervisor (processes {pids}); stop that one, or give "
                "this one another name ([supervisor] name)"
            )
        hierarchies = [hierarchy for name in CONTROLLERS if (hierarchy := self._v1_hierarchy(name)) is not None]
        for directory in (
            self.path,
            *(f"{hierarchy.directory}/{self.name}" for hierarchy in dict.fromkeys(hierarchies)),
        ):
            directories.remove(directory, files)

    # v2 --------------------------------------------------------------------------------------------------------------

    def _on_demand_controllers(self) -> tuple[str, ...]:
        """Controllers that are enabled only for a limit.

        Next to v1 hierarchies io is one of them: otherwise the supervisor would move to a leaf for nothing on a host
        that has only io on v2.
        """
        return ON_DEMAND_CONTROLLERS if self.host.mode == "unified" else (*ON_DEMAND_CONTROLLERS, "io")

    def _enable(self, names: list[str]) -> None:
        """Enable v2 controllers for the workloads: in subtree_control of the base, of the tree and of the groups."""
        host = self.host
        assert host.core is not None
        wanted = [
            name
            for name in names
            if (controller := host.controllers.get(name))
            and controller.is_delegated
            and controller.hierarchy.version == 2
        ]
        if not wanted:
            return
        if not host.at_root and host.core.directory == host.base and self._leaf is None:
            self._create_leaf()
        for name in wanted:
            enabled = self._words(f"{host.base}/cgroup.subtree_control")
            try:
                if name not in enabled:
                    host.files.write(f"{host.base}/cgroup.subtree_control", f"+{name}")
                    self._enabled_in_base.append(name)
                for directory in (self.path, *self._group_directories()):
                    host.files.write(f"{directory}/cgroup.subtree_control", f"+{name}")
                self._available_controllers.add(name)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    host.mark_refused([name], *internal_processes_obstacle(host.base, foreign_processes(host.base)))
                else:
                    host.mark_refused([name], f"the kernel refuses to enable {name} in {host.base} ({error.strerror})")

    def _create_leaf(self) -> None:
        leaf = f"{self.host.base}/{LEAF_NAME}"
        self._owns_leaf = not self.host.files.exists(leaf)
        self.host.files.make_directories(leaf)
        self._leaf = leaf
        foreign_pids = foreign_processes(self.host.base)
        for pid in directories.list_own_processes(self.host.base, self.host.files):
            if pid not in foreign_pids:
                self.move_to_leaf(pid)

    def _inherit_leaf(self, leaf: str) -> None:
        """Take over the leaf of an earlier supervisor.

        The earlier one had to move to it, so nothing but it had enabled controllers before.
        """
        self._leaf, self._owns_leaf = leaf, True
        self._enabled_in_base = [
            name for name in self._words(f"{self.host.base}/cgroup.subtree_control") if name in CONTROLLERS
        ]

    @property
    def owns_leaf(self) -> bool:
        """Whether this supervisor, or an earlier one that it continues, has made the leaf."""
        return self._owns_leaf

    def move_to_leaf(self, pid: int) -> None:
        """Move one of the supervisor's own processes (the keeper) to the supervisor's leaf.

        Does nothing if the supervisor did not have to move, or if the process has ended. Raises CgroupError if the
        kernel refuses.
        """
        if self._leaf is not None:
            try:
                self.host.files.write(f"{self._leaf}/cgroup.procs", str(pid))
            except ProcessLookupError:
                pass
            except OSError as error:
                raise CgroupError(f"cannot move process {pid} to {self._leaf}: {error.strerror}") from error

    # v1 --------------------------------------------------------------------------------------------------------------

    def _v1_hierarchy(self, controller: str) -> Hierarchy | None:
        entry = self.host.controllers.get(controller)
        return entry.hierarchy if entry is not None and entry.is_delegated and entry.hierarchy.version == 1 else None

    def _make_v1(self, hierarchy: Hierarchy) -> None:
        """Make the tree's directory in a v1 hierarchy, unless it exists."""
        if hierarchy not in self._v1:
            directory = f"{hierarchy.directory}/{self.name}"
            self._make_v1_cgroup(directory, hierarchy)
            self._enable_nested_limits(directory, hierarchy)
            self._v1[hierarchy] = directory

    # workloads -------------------------------------------------------------------------------------------------------

    def make_group(self, name: str, resources: Any, ancestors: Sequence[Cgroup] = ()) -> Cgroup:
        """Make the cgroup of a group of workloads, like `make`. Its members are made with it as their last ancestor."""
        cgroup = self._make_cgroup(f"{GROUP_PREFIX}{name}", f"group/{name}", resources, ancestors)
        try:
            for controller in CONTROLLERS:
                if controller in self._available_controllers:
                    self.host.files.write(f"{cgroup.path}/cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            why = error.strerror
            if error.errno == errno.EBUSY:
                pids = ", ".join(map(str, directories.list_own_processes(cgroup.path, self.host.files)[:5]))
                why = f"the processes {pids} are in it, where only cgroups may be"
            raise CgroupError(f"cannot share out the controllers of {cgroup.name} ({cgroup.path}): {why}") from error
        cgroup.limited_controllers |= _controllers(resources)
        return cgroup

    def make_helper(self, name: str, resources: Any) -> Cgroup:
        """Make the cgroup of programs that the service itself runs. It may exist already. Raises CgroupError.

        No instance or group has a directory of this name. It is emptied by its user, and removed with the tree.
        """
        cgroup = self._make_cgroup(f"{GROUP_PREFIX}.{name}", name, resources, ())
        # It is not one of the groups, which give controllers to their members and have no processes of their own.
        del self._cgroups[cgroup.path], self._top_level[cgroup.path]
        return cgroup

    def make(
        self, name: str, resources: Any, ancestors: Sequence[Cgroup] = (), *, limits_known: bool = False
    ) -> Cgroup:
        """Make the cgroup of one workload, with its limits applied and read back.

        It may exist already: a workload keeps its cgroup across restarts, counters continue, and limits that are no
        longer configured are lifted. resources: `config.model.Resources`, or anything with its fields. ancestors: the
        groups around it, the outermost first. limits_known: if the cgroup exists, it is known to have these limits, and
        they are not checked. Raises CgroupError with the limit, the workload and the reason; then nothing new is left
        behind.
        """
        return self._make_cgroup(name, name, resources, ancestors, limits_known)

    def open_groups(self, names: Sequence[str]) -> list[Cgroup]:
        """Return the cgroups of groups, the outermost first.

        A group that an earlier supervisor has left is returned unchanged.
        """
        cgroups: list[Cgroup] = []
        for name in names:
            path = f"{cgroups[-1].path if cgroups else self.path}/{GROUP_PREFIX}{name}"
            cgroup = self._cgroups.get(path)
            if cgroup is None:
                cgroup = Cgroup(
                    self.host,
                    f"group/{name}",
                    path,
                    enable_controller=self._enable_controller,
                    ancestors=tuple(cgroups),
                )
                hierarchies = filter(None, map(self._v1_hierarchy, CONTROLLERS))
                cgroup.v1 |= {
                    hierarchy: directory
                    for hierarchy in hierarchies
                    if self.host.files.exists(directory := self._v1_path(hierarchy, cgroup))
                }
                self._cgroups[path] = cgroup
            cgroups.append(cgroup)
        return cgroups

    def list_instances(self) -> dict[str, tuple[str, ...]]:
        """Return the instances that have a cgroup, each with the names of its groups, the outermost first."""

        def list_below(directory: str, around: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
            names: dict[str, tuple[str, ...]] = {}
            for name in self.host.files.list_directories(directory):
                if name.startswith(GROUP_PREFIX):
                    names |= list_below(f"{directory}/{name}", (*around, name.removeprefix(GROUP_PREFIX)))
                else:
                    names[name] = around
            return names

        return list_below(self.path, ())

    @property
    def shown_path(self) -> str | None:
        """The path for people and for clients; None without cgroups."""
        return self.path if self.host.absence is None else None

    def root(self) -> Cgroup:
        """Return the tree's own cgroup, around all workloads: for reading and watching, not for limits."""
        return Cgroup(self.host, "host", self.path, dict(self._v1), children=self._top_level)

    def _group_directories(self) -> list[str]:
        """Return the directories of the groups, each after those around it."""
        return sorted(
            path
            for path in self._cgroups
            if os.path.basename(path).startswith(GROUP_PREFIX) and self.host.files.exists(path)
        )

    def _make_cgroup(
        self, directory: str, name: str, resources: Any, ancestors: Sequence[Cgroup], limits_known: bool = False
    ) -> Cgroup:
        path = f"{ancestors[-1].path if ancestors else self.path}/{directory}"
        fresh = not self.host.files.exists(path)
        needed = {
            *_ALWAYS_JOINED,
            *_controllers(resources),
            *(controller for group in ancestors for controller in group.limited_controllers),
        }
        cgroup = Cgroup(self.host, name, path, enable_controller=self._enable_controller, ancestors=tuple(ancestors))
        cgroup.is_unused = fresh
        if fresh:
            cgroup.note_fresh()
        try:
            try:
                if fresh:
                    self.host.files.make_directories(path)
            except OSError as error:
                raise CgroupError(f"cannot make the cgroup {path}: {error.strerror}") from error
            for controller in CONTROLLERS:
                hierarchy = self._v1_hierarchy(controller)
                if hierarchy in cgroup.v1:  # it has several controllers
                    continue
                # An existing directory may have a limit that must be lifted.
                if hierarchy is not None and (
                    controller in needed or self.host.files.exists(self._v1_path(hierarchy, cgroup))
                ):
                    self._make_v1_directory(hierarchy, cgroup)
            if fresh or not limits_known:
                apply_limits(cgroup, resources, fresh)
        except BaseException:
            cgroup.close()
            if fresh:
                cgroup.remove()
            raise
        self._cgroups[path] = cgroup
        (ancestors[-1].children if ancestors else self._top_level)[path] = cgroup
        return cgroup

    def _v1_path(self, hierarchy: Hierarchy, cgroup: Cgroup) -> str:
        return f"{hierarchy.directory}/{self.name}{cgroup.path.removeprefix(self.path)}"

    def _make_v1_directory(self, hierarchy: Hierarchy, cgroup: Cgroup) -> str:
        self._make_v1(hierarchy)
        is_new = False
        for member in (*cgroup.ancestors, cgroup):
            directory = member.v1[hierarchy] = self._v1_path(hierarchy, member)
            is_new = self._make_v1_cgroup(directory, hierarchy)
        cgroup.is_unused &= is_new
        return directory

    def _enable_controller(self, cgroup: Cgroup, controller: str) -> None:
        """Enable a controller for a workload, or for all members of a group.

        On v2 it is enabled in the tree; on v1 all their processes join its hierarchy.
        """
        entry = self.host.controllers.get(controller)
        if entry is None or not entry.is_delegated:
            return
        hierarchy = entry.hierarchy
        if hierarchy.version == 2:
            if controller not in self._available_controllers:
                self._enable([controller])
            return
        if not os.path.basename(cgroup.path).startswith(GROUP_PREFIX):
            if hierarchy not in cgroup.v1:
                self._move_to_v1(cgroup, self._make_v1_directory(hierarchy, cgroup))
        elif controller not in cgroup.limited_controllers:
            self._make_v1_directory(hierarchy, cgroup)
            for member in list(self._cgroups.values()):
                if cgroup in member.ancestors and self.host.files.exists(member.path):
                    self._enable_controller(member, controller)
            cgroup.limited_controllers.add(controller)

    def _move_to_v1(self, cgroup: Cgroup, directory: str) -> None:
        """Move all processes of the cgroup to a v1 directory.

        A process that is just being forked is moved in the next round; the children of moved processes are in the
        directory.
        """
        for _ in range(_MAX_JOIN_ROUNDS):
            outside = set(cgroup.pids()) - set(directories.list_processes(directory, self.host.files))
            if not outside:
                return
            for pid in outside:
                try:
                    self.host.files.write(f"{directory}/cgroup.procs", str(pid))
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
            for child in (*self._in_removal_order(directory), directory):
                try:
                    directories.remove(child, self.host.files)
                except CgroupError as error:
                    errors.append(error)
        if errors:
            self._cgroups = {path: cgroup for path, cgroup in self._cgroups.items() if self.host.files.exists(path)}
            raise errors[0]
        self._cgroups.clear()
        self._v1.clear()
        for name in self._enabled_in_base:
            try:
                self.host.files.write(f"{self.host.base}/cgroup.subtree_control", f"-{name}")
            except OSError as error:
                if error.errno != errno.EBUSY:  # a cgroup below the base uses it by now
                    raise
        self._enabled_in_base.clear()
        self._available_controllers.clear()
        if self._leaf is not None and self._owns_leaf:
            self._leave_leaf(self._leaf)
        self._leaf = None

    def _leave_leaf(self, leaf: str) -> None:
        # Only this process and its small parent move back: a keeper that keeps running needs the leaf.
        try:
            for pid in filter(None, (os.getpid(), respawner_pid())):
                self.host.files.write(f"{self.host.base}/cgroup.procs", str(pid))
        except OSError as error:
            if error.errno == errno.EBUSY:  # controllers are still enabled for other cgroups
                return
            raise CgroupError(f"cannot move back to {self.host.base}: {error.strerror}") from error
        if not directories.list_processes(leaf, self.host.files):
            directories.remove(leaf, self.host.files)

    def _make_v1_cgroup(self, directory: str, hierarchy: Hierarchy) -> bool:
        """Make a v1 directory that is ready for processes; return whether there was none.

        A new cpuset has no CPUs and no memory nodes, and accepts no process before it has both (cgroup-v1/cpusets.rst),
        so it gets its parent's.
        """
        files = self.host.files
        is_new = True
        try:
            try:
                files.make_directory(directory)
            except FileExistsError:
                is_new = False
            except FileNotFoundError:
                files.make_directories(directory)
            if "cpuset" in hierarchy.controllers:
                for file in ("cpuset.mems", "cpuset.cpus"):
                    if not self._words(f"{directory}/{file}"):
                        files.write(
                            f"{directory}/{file}", files.read_text(f"{os.path.dirname(directory)}/{file}").strip()
                        )
        except OSError as error:
            raise CgroupError(f"cannot make the cgroup {directory}: {error.strerror}") from error
        return is_new

    def _enable_nested_limits(self, directory: str, hierarchy: Hierarchy) -> None:
        """Have the memory cgroup of the tree limit those below it, and they in turn those below them.

        Before Linux 5.11 it does so only if memory.use_hierarchy is set while there are none; each cgroup that is made
        below inherits that (cgroup-v1/memory.rst, section 6).
        """
        nested = f"{directory}/memory.use_hierarchy"
        try:
            if "memory" in hierarchy.controllers and self.host.files.exists(nested) and self._words(nested) == ["0"]:
                self.host.files.write(nested, "1")
        except OSError as error:
            raise CgroupError(f"cannot make the cgroup {directory}: {error.strerror}") from error

    def _in_removal_order(self, directory: str) -> list[str]:
        """Return the directories to remove below the tree: each workload's cgroup, and a group's after those in it."""
        try:
            names = self.host.files.list_directories(directory)
        except FileNotFoundError:
            return []
        ordered = []
        for name in names:
            path = f"{directory}/{name}"
            ordered += [*(self._in_removal_order(path) if name.startswith(GROUP_PREFIX) else ()), path]
        return ordered

    def _words(self, path: str) -> list[str]:
        return self.host.files.read_text(path).split()


def _controllers(resources: Any) -> set[str]:
    """Return the controllers that these limits need."""
    return {file_for_key(key).partition(".")[0] for key in configured_values(resources)}
