"""Privileges that this process lacks, found before anything starts, with what to do instead."""

import os
from collections.abc import Iterator
from functools import cache

from nsupervisor.config.model import Config, WorkloadConfig

SETGID, SETUID, SYS_ADMIN = 6, 7, 21
"""Numbers of capabilities: capabilities(7), linux/capability.h."""

_NAMESPACES = ("mount", "pid", "uts", "ipc", "cgroup", "network", "time")


def missing_privileges(workload: WorkloadConfig) -> Iterator[tuple[str, str]]:
    """Yield each key of the workload that needs a missing privilege, with the problem and what to do instead."""
    capabilities = _capabilities()
    user = f"user {os.geteuid()}" if os.geteuid() else "root"
    spaces = [space for space in _NAMESPACES if getattr(workload.namespaces, space)]
    # A user namespace gives the privilege for all others (user_namespaces(7)).
    if spaces and not workload.namespaces.user and not capabilities >> SYS_ADMIN & 1:
        yield (
            "namespaces",
            f"new namespaces ({', '.join(spaces)}) need CAP_SYS_ADMIN, which {user} does not have here; "
            "set namespaces.user = true, or each of these to false, or run as root with that capability",
        )
    if capabilities >> SETUID & 1 and capabilities >> SETGID & 1:
        return
    requirement = f"CAP_SETUID and CAP_SETGID, which {user} does not have here; leave it out, or run as root with those"
    for key in ("user", "supplementary_groups"):
        if getattr(workload, key):
            yield key, f"to become another user or group needs {requirement}"
    if not workload.namespaces.user:
        return
    for key, own in (("uid_mappings", os.geteuid()), ("gid_mappings", os.getegid())):
        mappings = getattr(workload.user_namespace, key)
        if mappings and [(mapping.host_id, mapping.size) for mapping in mappings] != [(own, 1)]:
            yield "user_namespace", f"{key} to others than one's own id {own} alone needs {requirement}"


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
