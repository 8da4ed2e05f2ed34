"""Cgroups: leaving them, raising limits, and the programs that the kernel runs for them. Both versions."""

import os
from collections.abc import Callable

from harness import UNIQUE, RefusedError, attempt, first, keep_mounts_private, lines, opens, write_same


def mounts(version: int) -> list[str]:
    """Return the mount point of each hierarchy of a version that is mounted here."""
    found = []
    for line in lines("/proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        if rest.split(" ")[0] == ("cgroup2" if version == 2 else "cgroup"):
            found.append(fields.split()[4])
    return found


def own_cgroup(point: str) -> str:
    """Return the directory of this process's cgroup; "" if it is not below this mount point.

    The paths of /proc/self/cgroup are no help: in a cgroup namespace they begin at another directory than the mount.
    """
    pid = str(os.getpid())
    for directory, _, files in os.walk(point):
        if "cgroup.procs" in files:
            try:
                with open(f"{directory}/cgroup.procs") as file:
                    if pid in file.read().split():
                        return directory
            except OSError:
                continue
    return ""


def all_hierarchies(version: int, action: Callable[[str, str], str]) -> str:
    """Do something in the hierarchies of a version, until it succeeds in one."""
    found = mounts(version)
    if not found:
        raise RefusedError(f"no cgroup file system of version {version} is mounted")
    return first([lambda p=point: action(p, own_cgroup(p)) for point in found])


def memberships() -> str:
    """Return the own cgroups as the kernel shows them."""
    with open("/proc/self/cgroup") as file:
        return file.read()


def move(point: str, own: str) -> str:
    """Move this process to the topmost cgroup that is visible, if it is not there."""
    before = memberships()
    with open(f"{point}/cgroup.procs", "wb", buffering=0) as file:
        file.write(b"0")
    if memberships() == before:
        raise RefusedError("already in the topmost cgroup that is visible")
    return f"moved to {point}"


def child(point: str, own: str) -> str:
    """Make a cgroup below the own one, and remove it."""
    path = f"{own or point}/escape-{UNIQUE}"
    os.mkdir(path)
    os.rmdir(path)
    return f"made {path}"


def limit(point: str, own: str) -> str:
    """Write the own memory or process limit, with the value that it has."""
    names = (
        "pids.max",
        "memory.max",
        "memory.limit_in_bytes",
        "cpu.max",
        "cpu.shares",
        "io.weight",
        "cgroup.max.depth",
    )
    paths = [f"{place}/{name}" for place in (own, point) if place for name in names]
    return first([lambda p=path: write_same(p) for path in paths if os.path.exists(path)])


@attempt()
def cgroup_v1_move() -> str:
    """Leave the own cgroup of version 1."""
    return all_hierarchies(1, move)


@attempt()
def cgroup_v2_move() -> str:
    """Leave the own cgroup of version 2."""
    return all_hierarchies(2, move)


@attempt()
def cgroup_v1_child() -> str:
    """Make a cgroup of version 1."""
    return all_hierarchies(1, child)


@attempt()
def cgroup_v2_child() -> str:
    """Make a cgroup of version 2."""
    return all_hierarchies(2, child)


@attempt()
def cgroup_v1_limit() -> str:
    """Write an own limit in a cgroup of version 1."""
    return all_hierarchies(1, limit)


@attempt()
def cgroup_v2_limit() -> str:
    """Write an own limit in a cgroup of version 2."""
    return all_hierarchies(2, limit)


@attempt()
def release_agent() -> str:
    """Write release_agent, a program that the host runs as root."""
    return all_hierarchies(1, lambda point, _: write_same(f"{point}/release_agent"))


@attempt()
def release_agent_remounted() -> str:
    """Write release_agent in a new mount of version 1, in new namespaces."""
    from mounts import mounted

    keep_mounts_private()
    with mounted(b"cgroup", b"none", 0, b"devices") as place:
        return write_same(f"{place}/release_agent")


@attempt()
def devices_allow() -> str:
    """Allow the own cgroup a device that it has (devices.allow of version 1)."""

    def allow(point: str, own: str) -> str:
        for place in (own, point):
            if place and os.path.exists(f"{place}/devices.allow"):
                with open(f"{place}/devices.allow", "wb", buffering=0) as file:
                    file.write(b"c 1:3 rwm")
                return "wrote devices.allow"
        raise RefusedError("no devices.allow")

    return all_hierarchies(1, allow)


@attempt()
def cgroup_kill() -> str:
    """Open cgroup.kill or cgroup.freeze of a cgroup for writing."""

    def one(point: str, own: str) -> str:
        names = [f"{d}/{n}" for d in (own or point, *children(point)) for n in ("cgroup.kill", "cgroup.freeze")]
        return first([lambda p=p: opens(p, os.O_WRONLY) for p in names])

    return all_hierarchies(2, one)


def children(point: str) -> list[str]:
    """Return some cgroups below a mount point."""
    return [entry.path for entry in os.scandir(point) if entry.is_dir()][:4]


@attempt()
def cgroup_others_seen() -> str:
    """See the cgroups of others: more than the own one below a mount of a hierarchy."""

    def one(point: str, own: str) -> str:
        if not os.path.exists(f"{point}/cgroup.procs") and not children(point):
            raise RefusedError(f"{point} is empty: something else covers it")
        if not (own != point or children(point)):
            raise RefusedError("the own cgroup is all that is visible")
        return f"{point} shows more than {own}"

    return first([lambda v=v: all_hierarchies(v, one) for v in (2, 1)])


@attempt()
def cgroup_threads() -> str:
    """Move a thread of this process to another cgroup (cgroup.threads, tasks)."""

    def one(point: str, own: str) -> str:
        for name in ("cgroup.threads", "tasks"):
            if os.path.exists(f"{point}/{name}"):
                with open(f"{point}/{name}", "wb", buffering=0) as file:
                    file.write(b"0")
                return f"wrote to {point}/{name}"
        raise RefusedError("no such file")

    return first([lambda v=v: all_hierarchies(v, one) for v in (1, 2)])
