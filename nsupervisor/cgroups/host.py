"""What this host offers: which hierarchies, which controllers, and what it cannot do, in words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from nsupervisor.cgroups import devices, directories, totals
from nsupervisor.cgroups.errors import CgroupError, Problem, UnfitError
from nsupervisor.cgroups.files import ALONE, CONTROLLERS, NOT_ON_V1, V1, V1_CONTROLLERS, V1File
from nsupervisor.cgroups.mounts import Hierarchy, hierarchies, parse_memberships, parse_mountinfo
from nsupervisor.cgroups.parsing import parse_cpu_list
from nsupervisor.cgroups.values import RAW, encode, file_of, settings

DELEGATE = (
    "run it in a cgroup of its own that is delegated to it: a systemd service with Delegate=yes, or "
    "`systemd-run --scope -p Delegate=yes nsupervisor run …` (with --user when not root); "
    "or be the first process of a container"
)

LEAF = "supervisor"
"""The leaf cgroup for the supervisor's own processes; also what to give as DelegateSubgroup= to systemd."""


Around = Mapping[str, Sequence[float]]
"""Limits of the groups around a workload, by controller: {"memory": [1073741824.0], "pids": []}."""
NOTHING_AROUND: Around = {}


class Controller(NamedTuple):
    """One controller. hierarchy: where it is (version 1 or 2). obstacle: None when we may use it, else why not and what
    to do instead."""

    name: str
    hierarchy: Hierarchy
    obstacle: tuple[str, str] | None = None

    @property
    def delegated(self) -> bool:
        """Whether limits of this controller can be set below the own cgroup."""
        return self.obstacle is None


class Place(NamedTuple):
    """Where a v2 file is found. v1: None where it is a v2 file itself, else how it is had on the v1 hierarchy."""

    hierarchy: Hierarchy
    v1: V1File | None


class Host(NamedTuple):
    """The cgroup hierarchies as this process sees them.

    core: the v2 hierarchy with the own directory in it; None on a "legacy" host, where nothing works.
    base: the v2 directory below which the tree is made: the own one, or its parent where the own one is already the
    supervisor's leaf. at_root: the base is the real root of the hierarchy, which the no-internal-processes rule
    exempts.
    controllers: by v2's name ("io" also where it is v1's blkio); Tree corrects them when the kernel refuses to enable
    one.
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
            if V1_CONTROLLERS.get(name, name) in hierarchy.controllers
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
        if group in ("cgroup", "host") or file.endswith(".pressure"):
            return Place(self.core, None)
        if file == "cpu.stat" and (controller is None or controller.obstacle or controller.hierarchy.version == 2):
            return Place(self.core, None)  # usage is there without the controller, too
        if controller is None:
            return self._no_controller(file, group)
        v1 = controller.hierarchy.version == 1
        if v1 and file not in V1:
            return Problem(file, f"needs cgroup v2; this host has {group} on v1", NOT_ON_V1.get(file, ALONE))
        if controller.obstacle is not None:
            return Problem(file, *controller.obstacle)
        return Place(controller.hierarchy, V1[file]) if v1 else Place(self.core, None)

    @property
    def closed(self) -> tuple[str, str] | None:
        """Why this process cannot make cgroups at all, and what to do instead; None where it can."""
        return None if self.core is None else not_writable(self.core, self.base)

    def problem(self, key: str) -> Problem | None:
        """Why nothing can be enforced by this key here ("memory_high", "unified.memory.swap.high"), or None."""
        file = file_of(key)
        place = self.place(file)
        if isinstance(place, Problem):
            return place._replace(key=key)
        if key.startswith(RAW) and place.hierarchy.version == 1:
            return Problem(key, f"is a file of cgroup v2; this host has {file.partition('.')[0]} on v1", ALONE)
        if key == "io_weight" and isinstance(weighed := self.weight_file(place), Problem):
            return weighed
        lacking = self._lacking(key, place)
        return Problem(key, *lacking) if lacking else None

    def _lacking(self, key: str, place: Place) -> tuple[str, str] | None:
        """What the kernel was built or booted without."""
        if key == "memory_zswap_max" and not os.path.exists("/sys/module/zswap"):
            return "this kernel has no zswap", "set memory_swap_max, or boot a kernel with CONFIG_ZSWAP"
        swap = f"{place.hierarchy.directory}/memory.memsw.limit_in_bytes"
        if key == "memory_swap_max" and place.v1 is not None and not os.path.exists(swap):
            return "this kernel does not count swap", f"boot with swapaccount=1, or {ALONE}"
        if key.startswith("hugetlb_"):
            found = {int(name[10:-2]) for name in _names("/sys/kernel/mm/hugepages")}  # hugepages-2048kB
            size = key.removeprefix("hugetlb_").removesuffix("_max")
            if int(size[:-2]) * {"KB": 1, "MB": 1 << 10, "GB": 1 << 20}[size[-2:]] not in found:
                have = ", ".join(f"{one} KB" for one in sorted(found)) or "none"
                return f"this host has no huge pages of this size (which it has: {have})", "limit those, or remove it"
        return None

    def weight_file(self, place: Place) -> str | Problem:
        """The v2 file that weighs disks here: io.weight, or BFQ's where only that is at work. A weight without anybody
        who weighs is taken by the kernel and has no effect."""
        core = self.core
        cost, bfq = devices.weighing(core.mount_point) if core is not None else (None, False)
        if place.v1 is None and (cost or (cost is None and not bfq)):
            return "io.weight"
        if bfq:
            return "io.bfq.weight"
        also = "" if place.v1 else ", or switch on io.cost (io.cost.qos in the root cgroup)"
        return Problem(
            "io_weight",
            "no disk of this host is shared by weight",
            f"choose the scheduler BFQ for one (echo bfq > /sys/block/DISK/queue/scheduler){also}",
        )

    def problems(self, resources: Any, around: Around = NOTHING_AROUND) -> list[Problem]:
        """The resources that are set and that this host cannot enforce, by configuration key. Empty: all can be.

        around: the limits of the groups that it is for, of which percentages are.
        """
        given = settings(resources)
        if not given:
            return []
        found = [problem for key in given if (problem := self.problem(key)) is not None]
        bad = {problem.key for problem in found}
        good = {key: value for key, value in given.items() if key not in bad}
        return [*found, *self._unfit(good, around)]

    def around(self, groups: Iterable[Any]) -> Around:
        """What the limits of groups will be, from their resources, the outermost first."""
        found: dict[str, tuple[float, ...]] = {}
        for resources in groups:
            for key, name in (("memory_max", "memory"), ("pids_max", "pids")):
                if (value := settings(resources).get(key)) is not None:
                    found[name] = (*found.get(name, ()), self.resolve(key, value, found))
        return found

    def _unfit(self, given: Mapping[str, Any], around: Around) -> Iterator[Problem]:
        """Values that this host does not take, though it has the keys."""
        from nsupervisor.config.limits import disorder  # they need attrs, which `doctor` can do without
        from nsupervisor.config.units import Percent

        numbers = {key: self.resolve(key, value, around) for key, value in given.items()}
        for misfit in disorder(numbers):
            if any(isinstance(given[key], Percent) for key in (*misfit.involves, str(misfit.key[0]))):
                yield Problem(str(misfit.key[0]), *misfit.message.rsplit("; ", 1))
        for key, value in numbers.items():
            try:
                encode(key, value)
            except UnfitError as error:
                yield Problem(key, error.why, error.instead)
        if "memory_swap_max" in given and "memory_max" not in given and self._is_v1("memory"):
            why = "cgroup v1, which this host has memory on, limits memory and swap together"
            yield Problem("memory_swap_max", why, "set memory_max as well")
        for key, what in (("cpuset_cpus", "CPUs"), ("cpuset_mems", "memory nodes")):
            if key in given and (there := self._absent(key, given[key])):
                yield Problem(key, f'not all of the {what} "{given[key]}" are there for it', f"write some of {there}")
        if "io_weight" in given:
            place = self.place("io.weight")
            bfq = isinstance(place, Place) and self.weight_file(place) == "io.bfq.weight"
            if bfq and max(given["io_weight"].values()) > 1000:
                yield Problem(
                    "io_weight", "BFQ, which shares disks here, takes weights up to 1000", "write smaller ones"
                )

    def _absent(self, key: str, text: str) -> str:
        """The CPUs or memory nodes there are, if the kernel refuses this list of them; else "". v1 wants them all to be
        there; v2 is content with one, and without any quietly takes those of the cgroup above. What a partition has
        taken is there (`partition.owner`): so it is not the effective ones that are looked at."""
        file = file_of(key)
        place = self.place(file)
        if isinstance(place, Problem):
            return ""
        v1 = place.hierarchy.version == 1
        own = _words(f"{place.hierarchy.directory if v1 else self.base}/{file}")
        there = " ".join(own or _words(_ONLINE[key]))
        wanted, present = parse_cpu_list(text), parse_cpu_list(there)
        return there if present and (wanted - present if v1 else not wanted & present) else ""

    def _is_v1(self, controller: str) -> bool:
        found = self.controllers.get(controller)
        return found is not None and found.hierarchy.version == 1

    def resolve(self, key: str, value: Any, around: Around = NOTHING_AROUND) -> Any:
        """A resource's value with percentages made into numbers: "25%" of the memory there is, of the processes; that
        is, of the smallest limit of the groups around it, and of what the host has where they have none.
        """
        from nsupervisor.config.units import Percent

        if not isinstance(value, Percent):
            return value
        group = file_of(key).partition(".")[0]
        controller = self.controllers.get(group)
        limits: Iterator[float] = iter(())
        if controller is not None:
            hierarchy = controller.hierarchy
            base = self.base if hierarchy.version == 2 else hierarchy.directory
            limits = chain(around.get(group, ()), totals.limits_around(hierarchy, base, f"{group}.max"))
        return value.of(totals.memory(limits) if group == "memory" else totals.processes(limits))

    def refuse(self, names: Iterable[str], why: str, instead: str = DELEGATE) -> None:
        """Note that the kernel did not let us have these controllers."""
        for name in names:
            self.controllers[name] = self.controllers[name]._replace(obstacle=(why, instead))

    def _no_core(self, key: str) -> Problem:
        return Problem(
            key,
            "no cgroup v2 hierarchy that shows the own cgroup is mounted here",
            "mount one (`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`), "
            f"or {ALONE}",
        )

    def _no_controller(self, key: str, name: str) -> Problem:
        assert self.core is not None
        old = V1_CONTROLLERS.get(name, name)
        if self.mode == "hybrid" and old not in _built_in():
            return Problem(key, f"this kernel has no controller {name}", "boot one that has it, or leave the key out")
        if self.mode == "hybrid":
            return Problem(
                key,
                f"the controller {name} is neither in {self.base} nor mounted as cgroup v1",
                f"mount it (`mkdir -p /sys/fs/cgroup/{old} && mount -t cgroup -o {old} none /sys/fs/cgroup/{old}`), "
                f"or {ALONE}",
            )
        has = ", ".join(_words(f"{self.base}/cgroup.controllers")) or "none"
        return Problem(key, f"the controller {name} is not delegated to {self.base} (which has: {has})", DELEGATE)


_ONLINE = {"cpuset_cpus": "/sys/devices/system/cpu/online", "cpuset_mems": "/sys/devices/system/node/online"}


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def _built_in() -> list[str]:
    """The controllers of a kernel that has v1, by their names there: cgroups(7)."""
    with open("/proc/cgroups") as file:
        return [line.split()[0] for line in file if not line.startswith("#")]


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
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
    """The processes in the cgroup `directory` itself that are neither this process, nor one of its descendants, nor the
    small parent that starts it again."""
    return [pid for pid in directories.members(directory) if not (_is_ours(pid) or pid == small_parent())]


PARENT = "NSUPERVISOR_PARENT"
"""The environment variable by which the parent of `run --supervise-self` says who it is."""


def small_parent() -> int:
    """The pid of the parent of `run --supervise-self`; 0 where there is none."""
    parent = os.getppid()
    return parent if os.environ.get(PARENT) == str(parent) else 0


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
    # The kernel shows 0 for a process that has no number here.
    names = ", ".join(f"{pid} ({_name(pid)})" if pid else "one of another PID namespace" for pid in list(pids)[:5])
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
