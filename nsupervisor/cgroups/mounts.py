"""Find the mounted cgroup hierarchies and the own directory in each: pure functions over two files of /proc.

proc(5) and cgroups(7) describe /proc/self/mountinfo and /proc/self/cgroup. Hosts differ: one v2 mount; a v2 mount at
`unified` next to v1 controllers, mounted one by one or together ("cpu,cpuacct"); a container with or without a cgroup
namespace; read-only mounts. One rule covers them: the directory of a process is the mount point plus the process' own
path, taken relative to the path that is the root of the mount.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class CgroupMount(NamedTuple):
    """One mounted cgroup file system.

    root: the path within the hierarchy that the mount shows. controllers: empty for v2 and for named v1 hierarchies
    ("name=systemd").
    """

    version: int
    mount_point: str
    root: str
    controllers: frozenset[str]
    read_only: bool


class Membership(NamedTuple):
    """One line of /proc/self/cgroup. path is "/" in the root, or in the root of the own cgroup namespace."""

    version: int
    controllers: frozenset[str]
    path: str


class Hierarchy(NamedTuple):
    """A mounted hierarchy and the own directory in it."""

    version: int
    controllers: frozenset[str]
    directory: str
    mount_point: str
    read_only: bool


_OCTAL = re.compile(r"\\([0-7]{3})")


def _unescape(word: str) -> str:
    # mountinfo writes space, tab, newline and backslash as \040 \011 \012 \134
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), word)


def read_proc_file(path: str) -> str:
    """Return the text of a file of /proc with paths in it, whatever characters these contain. Raises OSError."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read()


def parse_mountinfo(text: str) -> list[CgroupMount]:
    """Return the cgroup mounts in /proc/self/mountinfo, in order. Other file systems are left out.

    Only a newline ends a line: a mount point may contain any other separator, which the kernel does not escape.
    """
    mounts = []
    for line in text.split("\n"):
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        super_options = tail[2].split(",")
        version = 2 if tail[0] == "cgroup2" else 1
        names = frozenset() if version == 2 else frozenset(super_options) - _NOT_CONTROLLERS
        mounts.append(
            CgroupMount(
                version=version,
                mount_point=_unescape(fields[4]),
                root=_unescape(fields[3]),
                controllers=frozenset(name for name in names if "=" not in name),
                read_only="ro" in fields[5].split(",") or "ro" in super_options,
            )
        )
    return mounts


_NOT_CONTROLLERS = frozenset(
    ("rw", "ro", "none", "xattr", "clone_children", "noprefix", "favordynmods", "nofavordynmods", "seclabel")
)


def parse_memberships(text: str) -> list[Membership]:
    """Parse the lines `id:controllers:path` of /proc/self/cgroup.

    Only a newline ends a line: the name of a cgroup may contain any other separator. Named hierarchies have no
    controllers of their own. Raises ValueError for a line of another form.
    """
    memberships = []
    for line in text.removesuffix("\n").split("\n"):
        number, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if not colon or not path.startswith("/"):
            raise ValueError(f"not a line of /proc/self/cgroup: {line!r}")
        version = 2 if number == "0" and not names else 1
        controllers = frozenset(name for name in names.split(",") if name and "=" not in name)
        memberships.append(Membership(version, controllers, path))
    return memberships


def own_directory(mount: CgroupMount, path: str) -> str | None:
    """Return the directory of cgroup `path` below the mount point, or None if the mount does not show it.

    A mount made outside the own cgroup namespace has a root such as "/..", whose real name cannot be determined from
    inside: only a path below the very same root can be found then.
    """
    if mount.root == "/":
        below = path
    elif path == mount.root:
        below = "/"
    elif path.startswith(mount.root + "/"):
        below = path[len(mount.root) :]
    else:
        return None
    if ".." in below.split("/"):
        return None
    return mount.mount_point.rstrip("/") + below.rstrip("/") or "/"


def find_hierarchies(mounts: Sequence[CgroupMount], memberships: Iterable[Membership]) -> list[Hierarchy]:
    """Join mounts and memberships: return each hierarchy that this process is in and that a mount shows.

    A writable mount wins over a read-only one.
    """
    result = []
    for member in memberships:
        if member.version == 1 and not member.controllers:
            continue
        candidates = [
            Hierarchy(member.version, member.controllers, directory, mount.mount_point, mount.read_only)
            for mount in mounts
            if mount.version == member.version and mount.controllers == member.controllers
            if (directory := own_directory(mount, member.path)) is not None
        ]
        if candidates:
            result.append(min(candidates, key=lambda hierarchy: hierarchy.read_only))
    return result
