"""What this host offers: which hierarchies, which controllers, and what it cannot do, in words."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

import attrs

from nsupervisor.cgroups import directories
from nsupervisor.cgroups.errors import CgroupError, Problem
from nsupervisor.cgroups.files import CONTROLLERS, NOT_ON_V1, RESOURCES, V1, V1File
from nsupervisor.cgroups.mounts import Hierarchy, hierarchies, parse_memberships, parse_mountinfo

DELEGATE = (
    "run it in a cgroup of its own that is delegated to it: a systemd service with Delegate=yes, or "
    "`systemd-run --scope -p Delegate=yes nsupervisor run …` (with --user when not root); "
    "or be the first process of a container"
)

LEAF = "supervisor"
"""The leaf cgroup for the supervisor's own processes; also what to give as DelegateSubgroup= to systemd."""


@attrs.frozen
class Controller:
    """One controller. hierarchy: where it is (version 1 or 2). obstacle: None when we may use it, else why not and what
    to do instead."""

    name: str
    hierarchy: Hierarchy
    obstacle: tuple[str, str] | None = None

    @property
    def delegated(self) -> bool:
        """Whether limits of this controller can be set below the own cgroup."""
        return self.obstacle is None


@attrs.frozen
class Place:
    """Where a v2 file is found. v1: None where it is a v2 file itself, else how it is had on the v1 hierarchy."""

    hierarchy: Hierarchy
    v1: V1File | None


@attrs.define
class Host:
    """The cgroup hierarchies as this process sees them.

    core: the v2 hierarchy with the own directory in it; None on a "legacy" host, where nothing works.
    base: the v2 directory below which the tree is made: the own one, or its parent where the own one is already the
    supervisor's leaf. at_root: the base is the real root of the hierarchy, which the no-internal-processes rule
    exempts.
    controllers: by name; Tree.create corrects them when the kernel refuses to enable one.
    """

    mode: Literal["unified", "hybrid", "legacy"]
    core: Hierarchy | None
    base: str
    at_root: bool
    controllers: dict[str, Controller]
    pressure: bool

    @classmethod
    def discover(cls, mountinfo_path: str = "/proc/self/mountinfo", own_cgroup_path: str = "/proc/self/cgroup") -> Host:
        """Look at /proc and at the own cgroup directories; changes nothing. CgroupError when the own cgroup is gone."""
        with open(mountinfo_path, encoding="utf-8", errors="surrogateescape") as file:
            mounts = parse_mountinfo(file.read())
        with open(own_cgroup_path, encoding="utf-8", errors="surrogateescape") as file:
            memberships = parse_memberships(file.read())
        for member in memberships:
            if member.path.endswith(" (deleted)"):
                raise CgroupError(f"the own cgroup {member.path} has been removed; start the supervisor anew")
        found = hierarchies(mounts, memberships)
        core = next((hierarchy for hierarchy in found if hierarchy.version == 2), None)
        controllers = {
            name: Controller(name, hierarchy, not_writable(hierarchy, hierarchy.directory))
            for hierarchy in found
            if hierarchy.version == 1
            for name in CONTROLLERS
            if name in hierarchy.controllers
        }
        pressure = os.path.exists("/proc/pressure")  # absent with psi=0, or without CONFIG_PSI
        if core is None:
            return cls("legacy", None, "", False, controllers, pressure)
        mode: Literal["unified", "hybrid"] = "hybrid" if controllers else "unified"
        own = core.directory
        base = os.path.dirname(own) if os.path.basename(own) == LEAF and own != core.mount_point else own
        # cgroup.type exists in every cgroup but the real root, and so tells the root of a namespace from it.
        at_root = not os.path.exists(f"{base}/cgroup.type")
        obstacle = _obstacle_v2(core, base, at_root)
        for name in _words(f"{base}/cgroup.controllers"):
            if name in CONTROLLERS:
                controllers[name] = Controller(name, core, obstacle)
        return cls(mode, core, base, at_root, controllers, pressure)

    def place(self, file: str) -> Place | Problem:
        """Where the v2 file is on this host, or why it is not."""
        if self.core is None:
            return self._no_core(file)
        if file.endswith(".pressure") and not self.pressure:
            return Problem(file, "this kernel does not measure pressure", "boot with psi=1")
        group = file.partition(".")[0]
        controller = self.controllers.get(group)
        if group == "cgroup" or file.endswith(".pressure"):
            return Place(self.core, None)
        if file == "cpu.stat" and (controller is None or controller.obstacle or controller.hierarchy.version == 2):
            return Place(self.core, None)  # usage is there without the controller, too
        if controller is None:
            return self._no_controller(file, group)
        if controller.obstacle is not None:
            return Problem(file, *controller.obstacle)
        if controller.hierarchy.version == 2:
            return Place(self.core, None)
        if file in V1:
            return Place(controller.hierarchy, V1[file])
        instead = NOT_ON_V1.get(file, "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)")
        return Problem(file, f"needs cgroup v2; this host has {group} on v1", instead)

    def problems(self, resources: Any) -> list[Problem]:
        """The resources that are set and that this host cannot enforce, by configuration key. Empty: all can be."""
        found = []
        for key, file in RESOURCES.items():
            if getattr(resources, key) is not None:
                place = self.place(file)
                if isinstance(place, Problem):
                    found.append(attrs.evolve(place, key=key))
        return found

    def refuse(self, names: Iterable[str], why: str, instead: str = DELEGATE) -> None:
        """Note that the kernel did not let us have these controllers."""
        for name in names:
            self.controllers[name] = attrs.evolve(self.controllers[name], obstacle=(why, instead))

    def _no_core(self, key: str) -> Problem:
        return Problem(
            key,
            "no cgroup v2 hierarchy that shows the own cgroup is mounted here",
            "mount one (`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`), "
            "or boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)",
        )

    def _no_controller(self, key: str, name: str) -> Problem:
        assert self.core is not None
        if self.mode == "hybrid":
            return Problem(
                key,
                f"the controller {name} is neither in {self.base} nor mounted as cgroup v1",
                f"mount it (`mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} none /sys/fs/cgroup/{name}`), "
                "or boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)",
            )
        has = ", ".join(_words(f"{self.base}/cgroup.controllers")) or "none"
        return Problem(key, f"the controller {name} is not delegated to {self.base} (which has: {has})", DELEGATE)


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def not_writable(hierarchy: Hierarchy, directory: str) -> tuple[str, str] | None:
    """Why nothing can be made below this directory of the hierarchy, and what to do instead; None where it can."""
    if hierarchy.read_only:
        return (
            f"{hierarchy.mount_point} is mounted read-only, as in unprivileged containers",
            "give the container a writable cgroup tree (podman: --security-opt unmask=/sys/fs/cgroup; "
            "docker: --privileged --cgroupns=private)",
        )
    if not os.access(directory, os.W_OK):
        return f"{directory} is not writable for user {os.geteuid()}", DELEGATE
    return None


def _obstacle_v2(core: Hierarchy, base: str, at_root: bool) -> tuple[str, str] | None:
    if (obstacle := not_writable(core, base)) is not None or at_root:
        return obstacle
    if _words(f"{base}/cgroup.type") != ["domain"]:
        return f"{base} is not a domain cgroup (cgroup.type), so it cannot hand out all controllers", DELEGATE
    if others := strangers(base):
        return internal_processes(base, others)
    return None


def strangers(directory: str) -> list[int]:
    """The processes in the cgroup `directory` itself that are neither this process nor one of its descendants."""
    return [pid for pid in directories.members(directory) if not _is_ours(pid)]


def _is_ours(pid: int) -> bool:
    me = os.getpid()
    while pid > 1 and pid != me:
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])  # ppid is the second field after the name
        except (FileNotFoundError, ProcessLookupError):
            return True  # it has ended meanwhile and is in nobody's way
    return pid == me


def internal_processes(directory: str, pids: Iterable[int]) -> tuple[str, str]:
    """The no-internal-processes rule (cgroup-v2.rst) in words: who is in the way, and what to do."""
    names = ", ".join(f"{pid} ({_name(pid)})" for pid in list(pids)[:5])
    return (
        f"the cgroup {directory} also holds other processes ({names}), and a cgroup with processes in it cannot "
        "hand controllers to cgroups below it",
        DELEGATE,
    )


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "gone"
