"""The kernel's namespaces under the names of the OCI runtime specification: the only table of them.

The order is that of the names in specifications of processes, and so in the stored digests of what programs were
started with: it never changes. Sources: namespaces(7), linux/sched.h.
"""

from __future__ import annotations


class Namespace:
    """One kind of namespace: OCI `name`, clone(2) `flag`, and its `file` below /proc/PID/ns/."""

    __slots__ = ("file", "flag", "name")

    def __init__(self, name: str, flag: int, file: str) -> None:
        self.name = name
        self.flag = flag
        self.file = file


NAMESPACES: dict[str, Namespace] = {
    namespace.name: namespace
    for namespace in (
        Namespace("mount", 0x0002_0000, "mnt"),
        Namespace("pid", 0x2000_0000, "pid"),
        Namespace("uts", 0x0400_0000, "uts"),
        Namespace("ipc", 0x0800_0000, "ipc"),
        Namespace("cgroup", 0x0200_0000, "cgroup"),
        Namespace("network", 0x4000_0000, "net"),
        Namespace("user", 0x1000_0000, "user"),
        Namespace("time", 0x0000_0080, "time"),
    )
}

JOINABLE = ("network", "uts", "ipc")
"""The namespaces that a program can join."""

CLONE_NEWUSER = NAMESPACES["user"].flag
CLONE_NEWCGROUP = NAMESPACES["cgroup"].flag
CLONE_NEWTIME = NAMESPACES["time"].flag


def clone_flags(names: frozenset[str] | set[str]) -> int:
    """Return the clone(2) flags of several namespaces combined.

    Raises:
        KeyError: a name that is not in `NAMESPACES`.
    """
    combined = 0
    for name in names:
        combined |= NAMESPACES[name].flag
    return combined
