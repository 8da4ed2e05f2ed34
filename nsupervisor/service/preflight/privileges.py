"""Privileges that this process lacks, found before anything starts, with what to do instead."""

import os
import resource
from collections.abc import Iterator
from functools import cache

from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.linux.namespaces import NAMESPACES
from nsupervisor.service.state.uid_ranges import UID_RANGES

SETGID, SETUID, SYS_ADMIN, SYS_NICE, SYS_RESOURCE = 6, 7, 21, 23, 24
"""Numbers of capabilities: capabilities(7), linux/capability.h."""


def has_uid_ranges() -> bool:
    """Return whether this process is root of a user namespace with all of `UID_RANGES`, as of the first one."""
    return os.geteuid() == 0 and all(
        any(first <= UID_RANGES[0] and UID_RANGES[-1] < first + count for first, count in _read_id_map(file))
        for file in ("uid_map", "gid_map")
    )


def _read_id_map(file: str) -> Iterator[tuple[int, int]]:
    """Yield the first id inside and the number of ids of each line, user_namespaces(7)."""
    with open(f"/proc/self/{file}") as lines:
        for line in lines:
            inside, _, count = line.split()
            yield int(inside), int(count)


def missing_privileges(workload: WorkloadConfig) -> Iterator[tuple[str, str]]:
    """Yield each key of the workload that needs a missing privilege, with the problem and what to do instead."""
    capabilities = _capabilities()
    user = f"user {os.geteuid()}" if os.geteuid() else "root"
    spaces = [name for name in NAMESPACES if name != "user" and getattr(workload.namespaces, name)]
    # A user namespace gives the privilege for all others (user_namespaces(7)).
    if spaces and not workload.namespaces.user and not capabilities >> SYS_ADMIN & 1:
        yield (
            "namespaces",
            f"new namespaces ({', '.join(spaces)}) need CAP_SYS_ADMIN, which {user} does not have here; "
            "set namespaces.user = true, or each of these to false, or run as root with that capability",
        )
    yield from _missing_for_limits(workload, capabilities, user)
    if capabilities >> SETUID & 1 and capabilities >> SETGID & 1:
        return
    requirement = f"CAP_SETUID and CAP_SETGID, which {user} does not have here; leave it out, or run as root with those"
    for key in ("user", "supplementary_groups"):
        if getattr(workload, key):
            yield key, f"to become another user or group needs {requirement}"
    if not workload.namespaces.user:
        return
    given = workload.user_namespace.uid_mappings, workload.user_namespace.gid_mappings
    if not all(given) and has_uid_ranges():
        yield (
            "namespaces.user",
            f"a range of ids of its own needs {requirement}; or write mappings of the one id 0, which is root outside",
        )
    for key, own in (("uid_mappings", os.geteuid()), ("gid_mappings", os.getegid())):
        mappings = getattr(workload.user_namespace, key)
        if mappings and [(mapping.host_id, mapping.size) for mapping in mappings] != [(own, 1)]:
            yield "user_namespace", f"{key} to others than one's own id {own} alone needs {requirement}"


def _missing_for_limits(workload: WorkloadConfig, capabilities: int, user: str) -> Iterator[tuple[str, str]]:
    """Yield the resource limits above the present hard limits, setrlimit(2), and a niceness below the present one.

    Both capabilities count in the first user namespace only, user_namespaces(7).
    """
    if workload.namespaces.user:
        capabilities, user = 0, "a program in a user namespace"
    for name, (_, wanted) in workload.security.rlimits.items():
        _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
        is_above = hard != resource.RLIM_INFINITY and (wanted == -1 or wanted > hard)
        if is_above and not capabilities >> SYS_RESOURCE & 1:
            yield (
                f"security.limit_{name}",
                f"above the hard limit of {hard} needs CAP_SYS_RESOURCE, which {user} does not have here; write at "
                f"most {hard}, or raise the limit of the service (Limit{name.upper()}= of its systemd unit)",
            )
    own = os.getpriority(os.PRIO_PROCESS, 0)
    _, lowest = resource.getrlimit(resource.RLIMIT_NICE)  # 20 - niceness, getrlimit(2)
    least = min(own, 20 - lowest if lowest != resource.RLIM_INFINITY else -20)
    if workload.nice is not None and workload.nice < least and not capabilities >> SYS_NICE & 1:
        yield (
            "nice",
            f"below {least} needs CAP_SYS_NICE, which {user} does not have here; write at least {least}, or run as "
            "root with that capability",
        )


def explain_permission_error(error: PermissionError, config: Config) -> str:
    """Describe what to do about a start that was not permitted."""
    from pathlib import Path  # imported here: `check` does not need it, and the import is slow

    instead = "run as root, or see: nsupervisor doctor"
    directory = Path(config.supervisor.runtime_directory)
    # The path that could not be made may also be a directory above it, or the lock in it.
    refused = Path(error.filename or "nowhere")
    if directory.is_relative_to(refused) or refused.is_relative_to(directory):
        place = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
        instead = f'run as root, or set supervisor.runtime_directory to a place of yours, such as "{place}/nsupervisor"'
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {instead}"


@cache
def _capabilities() -> int:
    """Return the effective capabilities of this process (proc_pid_status(5)) as a bit mask; they do not change."""
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)
