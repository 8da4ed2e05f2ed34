"""The cgroup hierarchies and controllers of this host, and descriptions of what it cannot do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

from nsupervisor.cgroups import devices, directories, totals
from nsupervisor.cgroups.errors import CgroupError, HostProblem, UnsupportedValueError
from nsupervisor.cgroups.files import (
    BOOT_V2_ONLY,
    CONTROLLERS,
    V1_CONTROLLER_NAMES,
    V1_EQUIVALENTS,
    V1_REMEDIES,
    V1Equivalent,
)
from nsupervisor.cgroups.filesystem import KERNEL_FILES, CgroupFiles
from nsupervisor.cgroups.mounts import Hierarchy, find_hierarchies, parse_memberships, parse_mountinfo, read_proc_file
from nsupervisor.cgroups.parsing import HOST_FILES, parse_cpu_list, parse_file
from nsupervisor.cgroups.values import RAW_PREFIX, configured_values, encode_value, file_for_key


def delegate_remedy(has_systemd: bool) -> str:
    """Return how to get a cgroup of one's own, on a host with systemd or without it."""
    if has_systemd:
        how = (
            "a systemd service with Delegate=yes, or `systemd-run --scope -p Delegate=yes nsupervisor run …` "
            "(with --user when not root)"
        )
    else:
        how = "as root, make one in each hierarchy, give it to this user (chown -R), and start the service in it"
    return f"run it in a cgroup of its own that is delegated to it: {how}; or be the first process of a container"


DELEGATE_REMEDY = delegate_remedy(os.path.isdir("/run/systemd/system"))  # sd_booted(3)

_TREE_FILES = ("cgroup.events", "cgroup.kill", "cgroup.procs")
"""The files that a process tree has as well."""

LEAF_NAME = "supervisor"
"""The name of the leaf cgroup for the supervisor's own processes; also to be given to systemd as DelegateSubgroup=."""


AncestorLimits = Mapping[str, Sequence[float]]
"""Limits of the groups around a workload, by controller: {"memory": [1073741824.0], "pids": []}."""
NO_ANCESTOR_LIMITS: AncestorLimits = {}


class Controller(NamedTuple):
    """One controller and the hierarchy that has it.

    hierarchy: version 1 or 2. obstacle: None if the supervisor may use it, else (why not, what to do instead).
    """

    name: str
    hierarchy: Hierarchy
    obstacle: tuple[str, str] | None = None

    @property
    def is_delegated(self) -> bool:
        """Whether limits of this controller can be set below the own cgroup."""
        return self.obstacle is None


class FileLocation(NamedTuple):
    """The location of a v2 file. v1: None if it is a v2 file itself, else the v1 files that replace it."""

    hierarchy: Hierarchy
    v1: V1Equivalent | None


class Host(NamedTuple):
    """The cgroup hierarchies as this process sees them; or none, see `without_cgroups`.

    core: the v2 hierarchy with the own directory in it; None on a "legacy" host, where nothing works. base: the v2
    directory below which the tree is made: the own one, or its parent if the own one is already the supervisor's leaf.
    at_root: the base is the real root of the hierarchy, which the no-internal-processes rule exempts. controllers: by
    v2's name ("io" also if it is v1's blkio); Tree corrects them when the kernel refuses to enable one. files: access
    to the cgroup directories. absence: None, or why workloads are process trees here, and what to do to have cgroups.
    """

    mode: Literal["unified", "hybrid", "legacy", "none"]
    core: Hierarchy | None
    base: str
    at_root: bool
    controllers: dict[str, Controller]
    has_pressure: bool
    files: CgroupFiles = KERNEL_FILES
    absence: tuple[str, str] | None = None

    @classmethod
    def without_cgroups(cls, root: str, absence: tuple[str, str], files: CgroupFiles = KERNEL_FILES) -> Host:
        """Return a host on which workloads are process trees (`nsupervisor.cgroups.process_tree`).

        root: the path around all trees. files: without those of the process trees, nothing can be started or read.
        """
        core = Hierarchy(2, frozenset(), root, root, False)
        return cls("none", core, root, True, {}, os.path.exists("/proc/pressure"), files, absence)

    @classmethod
    def discover(cls, mountinfo_path: str = "/proc/self/mountinfo", own_cgroup_path: str = "/proc/self/cgroup") -> Host:
        """Read /proc and the own cgroup directories; change nothing.

        Raises CgroupError if the own cgroup has been removed.
        """
        mounts = parse_mountinfo(read_proc_file(mountinfo_path))
        memberships = parse_memberships(read_proc_file(own_cgroup_path))
        for member in memberships:
            if member.path.endswith(" (deleted)"):
                raise CgroupError(f"the own cgroup {member.path} has been removed; restart the supervisor")
        own_hierarchies = find_hierarchies(mounts, memberships)
        core = next((hierarchy for hierarchy in own_hierarchies if hierarchy.version == 2), None)
        controllers = {
            name: Controller(name, hierarchy, write_obstacle(hierarchy, hierarchy.directory))
            for hierarchy in own_hierarchies
            if hierarchy.version == 1
            for name in CONTROLLERS
            if V1_CONTROLLER_NAMES.get(name, name) in hierarchy.controllers
        }
        pressure = os.path.exists("/proc/pressure")  # absent with psi=0, or without CONFIG_PSI
        if core is None:
            return cls("legacy", None, "", False, controllers, pressure)
        mode: Literal["unified", "hybrid"] = "hybrid" if controllers else "unified"
        own = core.directory
        base = os.path.dirname(own) if os.path.basename(own) == LEAF_NAME and own != core.mount_point else own
        # cgroup.type exists in every cgroup but the real root, so it distinguishes a namespace's root from that.
        at_root = not os.path.exists(f"{base}/cgroup.type")
        obstacle = _obstacle_v2(core, base, at_root)
        for name in _words(f"{base}/cgroup.controllers"):
            if name in CONTROLLERS:
                controllers[name] = Controller(name, core, obstacle)
        return cls(mode, core, base, at_root, controllers, pressure)

    def locate(self, file: str) -> FileLocation | HostProblem:
        """Return where the v2 file is on this host, or why it is not there."""
        if self.core is None:
            return self.no_core_problem(file)
        if self.absence is not None and file not in _TREE_FILES and file not in HOST_FILES:
            return HostProblem(file, *self.absence)
        if file.endswith(".pressure") and not self.has_pressure:
            return HostProblem(file, "this kernel does not measure pressure", "boot with psi=1")
        controller_name = file.partition(".")[0]
        controller = self.controllers.get(controller_name)
        if controller_name in ("cgroup", "host") or file.endswith(".pressure"):
            return FileLocation(self.core, None)
        if file == "cpu.stat" and (controller is None or controller.obstacle or controller.hierarchy.version == 2):
            return FileLocation(self.core, None)  # the usage is available without the controller, too
        if controller is None:
            return self._no_controller_problem(file, controller_name)
        v1 = controller.hierarchy.version == 1
        if v1 and file not in V1_EQUIVALENTS:
            return HostProblem(
                file, f"needs cgroup v2; this host has {controller_name} on v1", V1_REMEDIES.get(file, BOOT_V2_ONLY)
            )
        if controller.obstacle is not None:
            return HostProblem(file, *controller.obstacle)
        return FileLocation(controller.hierarchy, V1_EQUIVALENTS[file]) if v1 else FileLocation(self.core, None)

    def sample(self, file: str) -> dict[str, float] | None:
        """Return the values of a file that cgroups of this host have, read from the cgroup of this process.

        None if that cannot say which values a workload's cgroup will have: the kernel has some keys only in cgroups
        that have the controller, and some files not in the root cgroup.
        """
        location = self.locate(file)
        if isinstance(location, HostProblem):
            return None
        if location.v1 is not None:
            core_paths = [f"{self.base}/{file}"] if location.v1.reads_core_first else []
            paths = [*core_paths, *(f"{location.hierarchy.directory}/{name}" for name in location.v1.files)]
        elif file in HOST_FILES or file == "memory.stat":
            paths = [HOST_FILES.get(file, f"{self.base}/{file}")]
        else:
            return None
        try:
            texts = [_read(path) for path in paths]
        except OSError:
            return None
        return location.v1.read(texts) if location.v1 is not None else parse_file(file, texts[0])

    @property
    def tree_obstacle(self) -> tuple[str, str] | None:
        """Why this process cannot make cgroups at all, and what to do instead; None if it can."""
        if self.core is None or self.absence is not None:
            return None
        return write_obstacle(self.core, self.base)

    @property
    def cgroup_obstacle(self) -> tuple[str, str] | None:
        """Why this process cannot have a cgroup for each workload, and what to do instead; None if it can."""
        if self.absence is not None:
            return self.absence
        return self.no_core_problem("")[1:] if self.core is None else self.tree_obstacle

    def check_key(self, key: str) -> HostProblem | None:
        """Return why this key ("memory_high", "unified.memory.swap.high") has no effect here, or None if it has one."""
        file = file_for_key(key)
        place = self.locate(file)
        if isinstance(place, HostProblem):
            return place._replace(key=key)
        if key.startswith(RAW_PREFIX) and place.hierarchy.version == 1:
            return HostProblem(
                key, f"is a file of cgroup v2; this host has {file.partition('.')[0]} on v1", BOOT_V2_ONLY
            )
        if key == "io_weight" and isinstance(weighed := self.weight_file(place), HostProblem):
            return weighed
        lacking = self._missing_feature(key, place)
        return HostProblem(key, *lacking) if lacking else None

    def _missing_feature(self, key: str, location: FileLocation) -> tuple[str, str] | None:
        """Return the missing kernel feature that `key` needs, and what to do instead; None if none is missing."""
        if key == "memory_zswap_max" and not os.path.exists("/sys/module/zswap"):
            return "this kernel has no zswap", "set memory_swap_max, or boot a kernel with CONFIG_ZSWAP"
        swap_limit_file = f"{location.hierarchy.directory}/memory.memsw.limit_in_bytes"
        if key == "memory_swap_max" and location.v1 is not None and not os.path.exists(swap_limit_file):
            return "this kernel does not count swap", f"boot with swapaccount=1, or {BOOT_V2_ONLY}"
        if key.startswith("hugetlb_"):
            sizes = {int(name[10:-2]) for name in _list_directory("/sys/kernel/mm/hugepages")}  # hugepages-2048kB
            size = key.removeprefix("hugetlb_").removesuffix("_max")
            if int(size[:-2]) * {"KB": 1, "MB": 1 << 10, "GB": 1 << 20}[size[-2:]] not in sizes:
                available = ", ".join(f"{kib} KB" for kib in sorted(sizes)) or "none"
                return (
                    f"this host has no huge pages of this size (which it has: {available})",
                    "limit those, or remove it",
                )
        return None

    def weight_file(self, location: FileLocation) -> str | HostProblem:
        """Return the v2 file that sets the weight on disks: io.weight, or BFQ's if only BFQ is in use.

        Without a mechanism that applies weights, the kernel accepts a weight and ignores it.
        """
        core = self.core
        cost_enabled, uses_bfq = devices.read_weight_mechanisms(core.mount_point) if core is not None else (None, False)
        if location.v1 is None and (cost_enabled or (cost_enabled is None and not uses_bfq)):
            return "io.weight"
        if uses_bfq:
            return "io.bfq.weight"
        remedy_suffix = "" if location.v1 else ", or switch on io.cost (io.cost.qos in the root cgroup)"
        return HostProblem(
            "io_weight",
            "no disk of this host is shared by weight",
            f"choose the scheduler BFQ for one (echo bfq > /sys/block/DISK/queue/scheduler){remedy_suffix}",
        )

    def v2_file_name(self, file: str) -> str:
        """Return the name of the file itself, except for io.weight, for which BFQ has its own file."""
        if file == "io.weight":
            location = self.locate(file)
            weight_file = location if isinstance(location, HostProblem) else self.weight_file(location)
            return file if isinstance(weight_file, HostProblem) else weight_file
        return file

    def check_resources(
        self, resources: Any, ancestor_limits: AncestorLimits = NO_ANCESTOR_LIMITS
    ) -> list[HostProblem]:
        """Return the configured resources that this host cannot enforce, by key. Empty if it can enforce all.

        ancestor_limits: the limits of the groups around the workload, to which percentages refer.
        """
        configured = configured_values(resources)
        if not configured:
            return []
        unavailable = [problem for key in configured if (problem := self.check_key(key)) is not None]
        unavailable_keys = {problem.key for problem in unavailable}
        usable = {key: value for key, value in configured.items() if key not in unavailable_keys}
        return [*unavailable, *self._check_values(usable, ancestor_limits)]

    def group_limits(self, groups: Iterable[Any]) -> AncestorLimits:
        """Compute the limits that groups will have, from their resources, the outermost first."""
        limits: dict[str, tuple[float, ...]] = {}
        for resources in groups:
            for key, name in (("memory_max", "memory"), ("pids_max", "pids")):
                if (value := configured_values(resources).get(key)) is not None:
                    limits[name] = (*limits.get(name, ()), self.resolve_percentage(key, value, limits))
        return limits

    def _check_values(self, configured: Mapping[str, Any], ancestor_limits: AncestorLimits) -> Iterator[HostProblem]:
        """Yield the values that this host does not accept although it has their keys."""
        from nsupervisor.config.limits import find_memory_conflicts  # imported late: they need attrs, `doctor` does not
        from nsupervisor.config.units import Percent

        numbers = {key: self.resolve_percentage(key, value, ancestor_limits) for key, value in configured.items()}
        for misfit in find_memory_conflicts(numbers):
            if any(isinstance(configured[key], Percent) for key in (*misfit.involved, str(misfit.key[0]))):
                yield HostProblem(str(misfit.key[0]), *misfit.message.rsplit("; ", 1))
        for key, value in numbers.items():
            try:
                encode_value(key, value)
            except UnsupportedValueError as error:
                yield HostProblem(key, error.reason, error.remedy)
        if "memory_swap_max" in configured and "memory_max" not in configured and self._is_v1("memory"):
            why = "cgroup v1, which this host has memory on, limits memory and swap together"
            yield HostProblem("memory_swap_max", why, "set memory_max as well")
        for key, unit in (("cpuset_cpus", "CPUs"), ("cpuset_mems", "memory nodes")):
            if key in configured and (available := self._available_if_refused(key, configured[key])):
                yield HostProblem(
                    key, f'not all of the {unit} "{configured[key]}" are there for it', f"write some of {available}"
                )
        if "io_weight" in configured:
            place = self.locate("io.weight")
            bfq = isinstance(place, FileLocation) and self.weight_file(place) == "io.bfq.weight"
            if bfq and max(configured["io_weight"].values()) > 1000:
                yield HostProblem(
                    "io_weight", "BFQ, which shares disks here, takes weights up to 1000", "write smaller ones"
                )

    def _available_if_refused(self, key: str, text: str) -> str:
        """Return the available CPUs or memory nodes if the kernel refuses this list of them; else "".

        v1 requires all of them to exist. v2 requires one, and without any it silently uses those of the cgroup above.
        CPUs that a partition has claimed still exist (see `partition.find_owner`), so the effective lists are not used
        here.
        """
        file = file_for_key(key)
        place = self.locate(file)
        if isinstance(place, HostProblem):
            return ""
        v1 = place.hierarchy.version == 1
        configured = _words(f"{place.hierarchy.directory if v1 else self.base}/{file}")
        available = " ".join(configured or _words(_ONLINE_FILES[key]))
        wanted, available_ids = parse_cpu_list(text), parse_cpu_list(available)
        return available if available_ids and (wanted - available_ids if v1 else not wanted & available_ids) else ""

    def _is_v1(self, controller: str) -> bool:
        entry = self.controllers.get(controller)
        return entry is not None and entry.hierarchy.version == 1

    def resolve_percentage(self, key: str, value: Any, ancestor_limits: AncestorLimits = NO_ANCESTOR_LIMITS) -> Any:
        """Convert a resource's percentage to a number: "25%" of the memory, or of the number of processes.

        A percentage refers to the smallest limit of the groups around the workload, or to what the host has if they
        have none.
        """
        from nsupervisor.config.units import Percent

        if not isinstance(value, Percent):
            return value
        controller_name = file_for_key(key).partition(".")[0]
        controller = self.controllers.get(controller_name)
        limits: Iterator[float] = iter(())
        if controller is not None:
            hierarchy = controller.hierarchy
            base = self.base if hierarchy.version == 2 else hierarchy.directory
            limits = chain(
                ancestor_limits.get(controller_name, ()),
                totals.ancestor_limits(hierarchy, base, f"{controller_name}.max", self.files),
            )
        return value.share_of(
            totals.total_memory(limits) if controller_name == "memory" else totals.max_processes(limits)
        )

    def mark_refused(self, names: Iterable[str], reason: str, remedy: str = DELEGATE_REMEDY) -> None:
        """Record that the kernel did not let the supervisor use these controllers."""
        for name in names:
            self.controllers[name] = self.controllers[name]._replace(obstacle=(reason, remedy))

    def no_core_problem(self, key: str) -> HostProblem:
        return HostProblem(
            key,
            "no cgroup v2 hierarchy that shows the own cgroup is mounted here",
            "mount one (`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified`), "
            f"or {BOOT_V2_ONLY}",
        )

    def _no_controller_problem(self, key: str, name: str) -> HostProblem:
        assert self.core is not None
        v1_name = V1_CONTROLLER_NAMES.get(name, name)
        if self.mode == "hybrid" and v1_name not in _built_in_controllers():
            return HostProblem(
                key, f"this kernel has no controller {name}", "boot one that has it, or leave the key out"
            )
        if self.mode == "hybrid":
            return HostProblem(
                key,
                f"the controller {name} is neither in {self.base} nor mounted as cgroup v1",
                f"mount it (`mkdir -p /sys/fs/cgroup/{v1_name} && "
                f"mount -t cgroup -o {v1_name} none /sys/fs/cgroup/{v1_name}`), or {BOOT_V2_ONLY}",
            )
        available = ", ".join(_words(f"{self.base}/cgroup.controllers")) or "none"
        return HostProblem(
            key, f"the controller {name} is not delegated to {self.base} (which has: {available})", DELEGATE_REMEDY
        )


_ONLINE_FILES = {"cpuset_cpus": "/sys/devices/system/cpu/online", "cpuset_mems": "/sys/devices/system/node/online"}


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _words(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def _built_in_controllers() -> list[str]:
    """Return the controllers that a kernel with v1 has, by their v1 names: cgroups(7)."""
    with open("/proc/cgroups") as file:
        return [line.split()[0] for line in file if not line.startswith("#")]


def _list_directory(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def write_obstacle(hierarchy: Hierarchy, directory: str) -> tuple[str, str] | None:
    """Return why no cgroup can be made below this directory, and what to do instead; None if one can."""
    if hierarchy.read_only:
        return (
            f"{hierarchy.mount_point} is mounted read-only, as in unprivileged containers",
            "give the container a writable cgroup tree (podman: --security-opt unmask=/sys/fs/cgroup; "
            "docker: --privileged --cgroupns=private)",
        )
    if not os.access(directory, os.W_OK):
        return f"{directory} is not writable for user {os.geteuid()}", DELEGATE_REMEDY
    return None


def _obstacle_v2(core: Hierarchy, base: str, at_root: bool) -> tuple[str, str] | None:
    if (obstacle := write_obstacle(core, base)) is not None or at_root:
        return obstacle
    if _words(f"{base}/cgroup.type") != ["domain"]:
        return f"{base} is not a domain cgroup (cgroup.type), so it cannot hand out all controllers", DELEGATE_REMEDY
    if foreign_pids := foreign_processes(base):
        return internal_processes_obstacle(base, foreign_pids)
    return None


def foreign_processes(directory: str) -> list[int]:
    """Return the pids in the cgroup `directory` itself that do not belong to this supervisor.

    This process, its descendants and the parent of `run --supervise-self` belong to it.
    """
    return [pid for pid in directories.list_own_processes(directory) if not (_is_ours(pid) or pid == respawner_pid())]


PARENT_PID_VARIABLE = "NSUPERVISOR_PARENT"
"""The environment variable in which the parent of `run --supervise-self` gives its pid."""


def respawner_pid() -> int:
    """Return the pid of the parent of `run --supervise-self`; 0 if there is none."""
    parent = os.getppid()
    return parent if os.environ.get(PARENT_PID_VARIABLE) == str(parent) else 0


def _is_ours(pid: int) -> bool:
    own_pid = os.getpid()
    while pid > 1 and pid != own_pid:
        try:
            with open(f"/proc/{pid}/stat") as file:
                pid = int(file.read().rpartition(")")[2].split()[1])  # ppid is the second field after the name
        except (FileNotFoundError, ProcessLookupError):
            return True  # it has ended meanwhile, so it is no obstacle
    return pid == own_pid


def internal_processes_obstacle(directory: str, pids: Iterable[int]) -> tuple[str, str]:
    """Describe a violation of the no-internal-processes rule (cgroup-v2.rst): which processes, and what to do."""
    # The kernel shows 0 for a process that has no pid in this namespace.
    names = ", ".join(
        f"{pid} ({_command_name(pid)})" if pid else "one of another PID namespace" for pid in list(pids)[:5]
    )
    return (
        f"the cgroup {directory} also holds other processes ({names}), and a cgroup with processes in it cannot "
        "hand controllers to cgroups below it",
        DELEGATE_REMEDY,
    )


def _command_name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "gone"
