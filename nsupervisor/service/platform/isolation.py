"""Determine the isolation in force: what `[supervisor] isolation` asks for, and what this process can have.

"auto" tries namespaces in a child that ends at once: which of them a container allows depends on capabilities, on
seccomp filters and on limits, and no file says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from nsupervisor.cgroups.host import Host
from nsupervisor.config.model import SupervisorConfig
from nsupervisor.core.isolation import CGROUPS, NAMESPACES, USER_NAMESPACES, Absence
from nsupervisor.linux.namespaces import CLONE_NEWCGROUP, CLONE_NEWUSER, clone_flags

_WANTED = Absence('[supervisor] isolation = "none" asks for none', "remove it, or write another isolation")
_DEFAULT_KINDS = frozenset({"mount", "pid", "uts", "ipc", "cgroup"})
"""The namespaces that a workload gets unless it says otherwise (`NamespacesConfig`)."""


class Isolation(NamedTuple):
    """The isolation in force."""

    host: Host
    """The cgroups that are used."""
    mode: str = "full"
    missing: Mapping[str, Absence] = {}
    """The features that are not used, by name, with the reason."""


Isolate = Callable[[SupervisorConfig, Host], Isolation]
"""Determines the isolation from the keys of [supervisor] and the cgroups that there are."""
Probe = Callable[[bool], "OSError | None"]
"""Tries the default namespaces, together with a user namespace or not; returns why that fails."""


def try_namespaces(with_user_namespace: bool) -> OSError | None:
    """Make the default namespaces, with a new /proc, in a child; return why that fails, or None."""
    from nsupervisor.linux import mounts, syscalls  # imported late: "full" needs no probe
    from nsupervisor.linux.forked_calls import fork_and_wait, in_child

    flags = clone_flags(_DEFAULT_KINDS) & ~CLONE_NEWCGROUP | (CLONE_NEWUSER if with_user_namespace else 0)

    def mount() -> None:
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        mounts.mount("proc", "/proc", "proc", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC)

    def make() -> None:
        syscalls.unshare(flags)
        fork_and_wait(mount)

    return in_child(make)


def isolate(settings: SupervisorConfig, host: Host, probe: Probe = try_namespaces) -> Isolation:
    """Return the isolation that the configuration asks for, as far as this process can have it."""
    missing: dict[str, Absence] = {}
    if settings.isolation == "none":
        missing = dict.fromkeys((CGROUPS, NAMESPACES, USER_NAMESPACES), _WANTED)
    elif settings.isolation == "auto":
        if (obstacle := host.cgroup_obstacle) is not None:
            missing[CGROUPS] = Absence(f"no cgroup can be made: {obstacle[0]}", obstacle[1])
        if (error := probe(False)) is not None:
            remedy = "start it as root with CAP_SYS_ADMIN (podman, docker: --privileged)"
            missing[NAMESPACES] = Absence(f"no namespace can be made: {_describe(error)}", remedy)
            if (error := probe(True)) is not None:
                missing[USER_NAMESPACES] = Absence(f"no user namespace can be made: {_describe(error)}", remedy)
    if CGROUPS in missing:
        from nsupervisor.cgroups.process_tree import tree_root  # imported late: `check` has to be quick

        host = Host.without_cgroups(tree_root(settings.runtime_directory), missing[CGROUPS])
    return Isolation(host, settings.isolation, missing)


def _describe(error: OSError) -> str:
    operation = f"{error.filename}: " if error.filename else ""
    return f"{operation}{error.strerror} (user {os.geteuid()})"
