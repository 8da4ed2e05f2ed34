"""The Landlock rules of a workload: the key `landlock` of a specification, and what each needs of the kernel. Pure.

Landlock restricts only the rights that a ruleset handles. So each key of `LandlockConfig` that is given handles its
rights, and its paths or ports are the rules that grant them. Rights and versions of the kernel's ABI: landlock(7),
Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nsupervisor.config.landlock import LandlockConfig

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_CHANGE_DIRECTORY = sum(1 << bit for bit in range(4, 13))
"""Removing files and directories, and making them, of each type."""
READ = READ_FILE | READ_DIR
WRITE = WRITE_FILE | _CHANGE_DIRECTORY | REFER | TRUNCATE
BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1
SCOPE_BITS = {"abstract-unix-socket": 1 << 0, "signal": 1 << 1}


class Requirement(NamedTuple):
    """The first version of the ABI that has all of a key, the kernel with it, and what an older one lacks."""

    abi: int
    kernel: str
    lack: str


REQUIREMENTS = {
    "read": Requirement(2, "5.19", "refuses to move any file to another directory"),
    "execute": Requirement(2, "5.19", "refuses to move any file to another directory"),
    "write": Requirement(3, "6.2", "does not restrict truncate(2)"),
    "connect_tcp": Requirement(4, "6.7", "does not restrict TCP ports"),
    "bind_tcp": Requirement(4, "6.7", "does not restrict TCP ports"),
    "ioctl_device": Requirement(5, "6.10", "does not restrict ioctl(2)"),
    "scope": Requirement(6, "6.12", "does not restrict signals and abstract sockets"),
}
"""By key."""


def missing_abi(config: LandlockConfig, abi: int) -> tuple[str, Requirement] | None:
    """Return the key that needs the newest ABI, with what it needs, if the kernel's `abi` is older; None if it is not.

    `abi`: 0 if the kernel has no Landlock.
    """
    given = [name for name in REQUIREMENTS if getattr(config, name) is not None]
    newest = max(given, key=lambda name: REQUIREMENTS[name].abi, default=None)
    if newest is None or REQUIREMENTS[newest].abi <= abi:
        return None
    return newest, REQUIREMENTS[newest]


def ruleset(config: LandlockConfig | None) -> dict[str, Any] | None:
    """Return the key `landlock` of a specification; None if nothing is restricted.

    `{"handled": [FILES, NETWORK, SCOPE], "paths": [[PATH, RIGHTS], …], "ports": [[PORT, RIGHTS], …]}`, numbers being
    bit masks of rights. A path after "-" may be missing.
    """
    if config is None:
        return None
    files, network = 0, 0
    paths: dict[str, int] = {}
    ports: dict[int, int] = {}
    for given, rights, granted in (
        (config.read, READ, READ),
        (config.write, WRITE, WRITE),
        (config.execute, EXECUTE, EXECUTE | READ_FILE),  # execve(2) opens a program, and its interpreter, for reading
        (config.ioctl_device, IOCTL_DEV, IOCTL_DEV),
    ):
        if given is not None:
            files |= rights
            for path in given:
                paths[path] = paths.get(path, 0) | granted
    if files and not files & REFER:
        # Every ruleset about files refuses to move them to another directory, unless a rule grants that. The kernel
        # still refuses a move by which the program would get more rights to the file.
        files |= REFER
        paths["/"] = paths.get("/", 0) | REFER
    for numbers, right in ((config.connect_tcp, CONNECT_TCP), (config.bind_tcp, BIND_TCP)):
        if numbers is not None:
            network |= right
            for port in numbers:
                ports[port] = ports.get(port, 0) | right
    scope = sum(SCOPE_BITS[name] for name in dict.fromkeys(config.scope or ()))
    if not (files or network or scope):
        return None
    return {
        "handled": [files, network, scope],
        "paths": [[path, rights & files] for path, rights in paths.items()],
        "ports": [[port, rights] for port, rights in ports.items()],
    }
