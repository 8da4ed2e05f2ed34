"""The supervisor's subtree of cgroups: one directory in each hierarchy, one below it for each workload.

A workload in groups is below theirs: `<tree>/group.outer/group.inner/web`. No workload's name has a dot in it, so the
two never meet. Groups hold no processes themselves, as the kernel wants it of cgroups that hand out controllers, and
these are enabled from the tree downwards, level by level ("Top-down Constraint" and "No Internal Process Constraint" in
Documentation/admin-guide/cgroup-v2.rst).
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

_ALWAYS = ("memory", "pids")
"""v1 controllers whose counters every workload has. The others are joined only for a limit: each one costs the child a
write, and a v1 cpu cgroup takes real-time scheduling away (cpu.rt_runtime_us is 0 in new ones)."""


_JOIN_ROUNDS = 100

GROUP = "group."
"""What a group's directory begins with."""


@attrs.define(eq=False)
class Tree:
    """`<base>/<name>` in the v2 core, `<own>/<name>` in v1 hierarchies. Make it with Tree.create."""

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
    """Those of them that are in no group."""
    _leaf: str | None = attrs.field(default=None, init=False)
    _made_leaf: bool = attrs.field(default=False, init=False)

    @classmethod
    def create(cls, host: Host, name: str, adopt: bool = False, own_leaf: bool = False) -> Tree:
        """Make the tree below the own cgroup.

        On a unified host, away from the root, this process moves to the leaf `<own>/supervisor`, because a cgroup that
        hands out controllers may hold no processes; its descendants there come along. Then the controllers are enabled;
        one that cannot be is reported by `host.problems`. An empty left-over of the same name is removed; one with
        processes in it is somebody else's, and refused, unless `adopt` says that it is ours from before: then it stays
        as it is, workloads running. `own_leaf`: the leaf is ours from before, too, and goes at the end, as it would
        have then. CgroupError when there is no usable v2 hierarchy, or directories cannot be made.
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
                if hierarchy is not None and (controller in _ALWAYS or os.path.exists(f"{hierarchy.directory}/{name}")):
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
        """Controllers that wait until a limit needs them. Beside v1 hierarchies io is one of them: else a host that has
        nothing but that on v2 would have the supervisor move for nothing."""
        return ON_DEMAND if self.host.mode == "unified" else (*ON_DEMAND, "io")

    def _enable(self, names: list[str]) -> None:
        """Enable v2 controllers for the workloads: in the base's subtree_control, then in the tree's own."""
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
        others = strangers(self.host.base)
        for pid in directories.members(self.host.base):
            if pid not in others:
                self.supervisor_join(pid)

    def _inherit_leaf(self, leaf: str) -> None:
        """As it was we who had to move, nobody else had enabled a controller before."""
        self._leaf, self._made_leaf = leaf, True
        self._enabled = [name for name in _words(f"{self.host.base}/cgroup.subtree_control") if name in CONTROLLERS]

    @property
    def owns_leaf(self) -> bool:
        """The leaf that the supervisor is in has been made by it, or by one before."""
        return self._made_leaf

    def supervisor_join(self, pid: int) -> None:
        """Move a process of the supervisor's own (the keeper) to where the supervisor is. Does nothing where the
        supervisor did not have to move, or where the process is dead by now."""
        if self._leaf is not None:
            try:
                directories.write(f"{self._leaf}/cgroup.procs", str(pid))
            except ProcessLookupError:
                pass
            except OSError as error:
                raise CgroupError(f"cannot move process {pid} to {self._leaf}: {error.strerror}") from error

    # v1 --------------------------------------------------------------------------------------------------------------

    def _v1_hierarchy(self, controller: str) -> Hierarchy | None:
        found = self.host.controllers.get(controller)
        return found.hierarchy if found is not None and found.delegated and found.hierarchy.version == 1 else None

    def _make_v1(self, hierarchy: Hierarchy) -> None:
        """The tree's directory in a v1 hierarchy is made when it is first needed."""
        if hierarchy not in self._v1:
            directory = f"{hierarchy.directory}/{self.name}"
            _make(directory, hierarchy)
            self._v1[hierarchy] = directory

    # workloads -------------------------------------------------------------------------------------------------------

    def group(self, name: str, resources: Any, within: Sequence[Cgroup] = ()) -> Cgroup:
        """The cgroup of a group of workloads; otherwise as `make`. Members are made with it as their last `within`."""
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
        """The cgroup of one workload, with its limits applied and read back.

        It may exist already: a workload keeps its cgroup across restarts, counters go on, and limits no longer
        configured are lifted. resources: `config.model.Resources`, or anything with its fields. within: the groups that
        it is in, the outermost first. given: if the cgroup is there, it is known to have got these limits, and nobody
        looks. CgroupError: what could not be set, of which workload, why; nothing new stays behind then.
        """
        return self._cgroup(name, name, resources, within, given)

    def groups(self, names: Sequence[str]) -> list[Cgroup]:
        """The cgroups of groups, the outermost first; of one that an earlier supervisor has left, as it has left it."""
        found: list[Cgroup] = []
        for name in names:
            path = f"{found[-1].path if found else self.path}/{GROUP}{name}"
            cgroup = self._made.get(path)
            if cgroup is None:
                cgroup = Cgroup(self.host, f"group/{name}", path, provide=self._provide, within=tuple(found))
                hierarchies = filter(None, map(self._v1_hierarchy, CONTROLLERS))
                cgroup.v1 |= {one: where for one in hierarchies if os.path.exists(where := self._v1_path(one, cgroup))}
                self._made[path] = cgroup
            found.append(cgroup)
        return found

    def found(self) -> dict[str, tuple[str, ...]]:
        """The instances that have a cgroup, each with the names of the groups that it is in, the outermost first."""

        def below(directory: str, around: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
            names: dict[str, tuple[str, ...]] = {}
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        continue
                    if entry.name.startswith(GROUP):
                        names |= below(entry.path, (*around, entry.name.removeprefix(GROUP)))
                    else:
                        names[entry.name] = around
            return names

        return below(self.path, ())

    def root(self) -> Cgroup:
        """The tree's own cgroup, around all workloads: to read and to watch, not to limit."""
        return Cgroup(self.host, "host", self.path, dict(self._v1), members=self._top)

    def _groups(self) -> list[str]:
        """The directories of the groups, each after those around it."""
        return sorted(path for path in self._made if os.path.basename(path).startswith(GROUP) and os.path.exists(path))

    def _cgroup(
        self, directory: str, name: str, resources: Any, within: Sequence[Cgroup], given: bool = False
    ) -> Cgroup:
        path = f"{within[-1].path if within else self.path}/{directory}"
        fresh = not os.path.exists(path)
        needed = {*_ALWAYS, *_controllers(resources), *(one for group in within for one in group.shared)}
        cgroup = Cgroup(self.host, name, path, provide=self._provide, within=tuple(within))
        try:
            try:
                if fresh:
                    os.makedirs(path, exist_ok=True)
            except OSError as error:
                raise CgroupError(f"cannot make the cgroup {path}: {error.strerror}") from error
            for controller in CONTROLLERS:
                hierarchy = self._v1_hierarchy(controller)
                # What exists already may hold a limit that is to be lifted.
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
        for one in (*cgroup.within, cgroup):
            directory = one.v1[hierarchy] = self._v1_path(hierarchy, one)
            _make(directory, hierarchy)
        return directory

    def _provide(self, cgroup: Cgroup, controller: str) -> None:
        """See to it that a workload, or all members of a group, have this controller: enable it in v2, or have all
        their processes join it in v1.
        """
        found = self.host.controllers.get(controller)
        if found is None or not found.delegated:
            return
        hierarchy = found.hierarchy
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
        """Have all its processes join a v1 directory. One that was just being forked joins in the next round; the forks
        of those that have joined are in it."""
        for _ in range(_JOIN_ROUNDS):
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
        why = "they fork too fast; freeze it first"
        raise CgroupError(f"cannot move the processes of {cgroup.name} to {directory}: {why}")

    def close(self) -> None:
        """Remove all that was made: every workload's cgroup, the tree, the enabled controllers, the supervisor's leaf.

        CgroupError when processes are still in a workload's cgroup; what is empty has been removed even then, and
        `close` can be called again.
        """
        errors: list[CgroupError] = []
        for directory in (self.path, *self._v1.values()):
            for child in (*_children(directory), directory):
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
                if error.errno != errno.EBUSY:  # somebody below us uses it by now
                    raise
        self._enabled.clear()
        self._given.clear()
        if self._leaf is not None and self._made_leaf:
            self._leave_leaf(self._leaf)
        self._leaf = None

    def _leave_leaf(self, leaf: str) -> None:
        # Back up goes only what is ours: a keeper that lives on keeps the leaf.
        try:
            for pid in filter(None, (os.getpid(), small_parent())):
                directories.write(f"{self.host.base}/cgroup.procs", str(pid))
        except OSError as error:
            if error.errno == errno.EBUSY:  # controllers are still enabled for somebody else
                return
            raise CgroupError(f"cannot move back to {self.host.base}: {error.strerror}") from error
        if not directories.processes(leaf):
            directories.remove(leaf)


def _make(directory: str, hierarchy: Hierarchy) -> None:
    """Make a v1 directory. A new cpuset has no CPUs and no memory nodes, and takes no process before it has both
    (cgroup-v1/cpusets.rst), so it gets its parent's. Before Linux 5.11 a memory cgroup limits what is below it only
    when told so while nothing is below (cgroup-v1/memory.rst, section 6)."""
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


def _children(directory: str) -> list[str]:
    """What is to be removed below the tree: each workload's cgroup, and after those in a group the group's."""
    try:
        with os.scandir(directory) as entries:
            below = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    found = []
    for path in below:
        found += [*(_children(path) if os.path.basename(path).startswith(GROUP) else ()), path]
    return found


def _controllers(resources: Any) -> set[str]:
    """The controllers that these limits need."""
    return {file_of(key).partition(".")[0] for key in settings(resources)}


def _words(path: str) -> list[str]:
    with open(path) as file:
        return file.read().split()
