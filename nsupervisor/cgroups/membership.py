"""Find the cgroups of processes by /proc/PID/cgroup, with paths of the form "CONTROLLERS:PATH" (linux/peers.py).

The paths in that file are relative to the root of the reader's cgroup namespace, cgroup_namespaces(7); directories are
relative to the root of a mount. The mount's own root joins both: see `mounts.own_directory`, whose inverse this is.
"""

from __future__ import annotations

from collections.abc import Sequence

from nsupervisor.cgroups.host import Host
from nsupervisor.cgroups.mounts import CgroupMount, parse_memberships, parse_mountinfo, read_proc_file
from nsupervisor.cgroups.tree import GROUP_PREFIX
from nsupervisor.linux.peers import Peer, cgroups_of


def shown_path(mounts: Sequence[CgroupMount], version: int, controllers: frozenset[str], directory: str) -> str | None:
    """The path that /proc/PID/cgroup has for a process in `directory`; None if no mount shows it.

    Of several mounts the one closest to the directory counts, and of those at one place the last, which hides others.
    """
    found: CgroupMount | None = None
    for mount in mounts:
        if (mount.version, mount.controllers) != (version, controllers):
            continue
        point = mount.mount_point.rstrip("/")
        if directory != mount.mount_point and not directory.startswith(f"{point}/"):
            continue
        if found is None or len(mount.mount_point) >= len(found.mount_point):
            found = mount
    if found is None:
        return None
    below = directory[len(found.mount_point.rstrip("/")) :]
    return f"{found.root.rstrip('/')}{below}" or "/"


def tree_cgroups(
    host: Host, name: str, mountinfo_path: str = "/proc/self/mountinfo", own_cgroup_path: str = "/proc/self/cgroup"
) -> tuple[str, ...]:
    """The cgroups of the tree `name`, one for each hierarchy that it may be in; version 2's first."""
    mounts = parse_mountinfo(read_proc_file(mountinfo_path))
    lines = read_proc_file(own_cgroup_path).removesuffix("\n").split("\n")
    # As the kernel writes them: "cpu,cpuacct".
    written = {parse_memberships(line)[0][:2]: line.split(":")[1] for line in lines}
    places = [(2, frozenset[str](), f"{host.base}/{name}")] if host.core is not None else []
    for controller in host.controllers.values():
        if controller.hierarchy.version == 1:
            hierarchy = controller.hierarchy
            places.append((1, hierarchy.controllers, f"{hierarchy.directory}/{name}"))
    found: dict[str, None] = {}
    for version, controllers, directory in places:
        path = shown_path(mounts, version, controllers, directory)
        if path is not None:
            found[f"{written[version, controllers]}:{path}"] = None
    return tuple(found)


def instance_of(cgroup: str, tree: str) -> str:
    """The instance that a version 2 cgroup belongs to; "" if it is not below `tree`. Both are paths of one kind."""
    if not cgroup.startswith(f"{tree}/"):
        return ""
    below = cgroup[len(tree) + 1 :].split("/")
    return next((name for name in below if not name.startswith(GROUP_PREFIX)), "")


def is_part_of(pid: int, instance: str, tree: str) -> bool:
    """Whether a process is in the cgroups of an instance; also True if it has ended. `tree`: as for `instance_of`."""
    try:
        cgroups = cgroups_of(pid)
    except OSError:
        return True
    return instance_of(Peer(pid, 0, 0, cgroups).cgroup, tree) == instance
