"""What this process may not do, found before anything starts, and told with what to do instead."""

import os
from collections.abc import Iterator
from functools import cache

from nsupervisor.config.model import Config, Workload

SETGID, SETUID, SYS_ADMIN = 6, 7, 21
"""Numbers of capabilities: capabilities(7), linux/capability.h."""

_NAMESPACES = ("mount", "pid", "uts", "ipc", "cgroup", "network", "time")


def missing(workload: Workload) -> Iterator[tuple[str, str]]:
    """What it asks for and this process lacks the privilege for: (key, what is missing and what to do instead)."""
    mine = _capabilities()
    who = f"user {os.geteuid()}" if os.geteuid() else "root"
    spaces = [space for space in _NAMESPACES if getattr(workload.namespaces, space)]
    # A user namespace gives the privilege for all others (user_namespaces(7)).
    if spaces and not workload.namespaces.user and not mine >> SYS_ADMIN & 1:
        yield (
            "namespaces",
            f"new namespaces ({', '.join(spaces)}) need CAP_SYS_ADMIN, which {who} does not have here; "
            "set namespaces.user = true, or each of these to false, or run as root with that capability",
        )
    if mine >> SETUID & 1 and mine >> SETGID & 1:
        return
    lack = f"CAP_SETUID and CAP_SETGID, which {who} does not have here; leave it out, or run as root with those"
    for key in ("user", "supplementary_groups"):
        if getattr(workload, key):
            yield key, f"to become another user or group needs {lack}"
    if not workload.namespaces.user:
        return
    for key, own in (("uid_mappings", os.geteuid()), ("gid_mappings", os.getegid())):
        mappings = getattr(workload.user_namespace, key)
        if mappings and [(one.host_id, one.size) for one in mappings] != [(own, 1)]:
            yield "user_namespace", f"{key} to others than one's own id {own} alone needs {lack}"


def explain(error: PermissionError, config: Config) -> str:
    """What to do about a start that was not permitted."""
    from pathlib import Path  # `check` has no need of it, and its import costs

    instead = "run as root, or see: nsupervisor doctor"
    directory = Path(config.supervisor.runtime_directory)
    # What could not be made may also be a directory above it, or the lock in it.
    refused = Path(error.filename or "nowhere")
    if directory.is_relative_to(refused) or refused.is_relative_to(directory):
        place = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
        instead = f'run as root, or set supervisor.runtime_directory to a place of yours, such as "{place}/nsupervisor"'
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}; {instead}"


@cache
def _capabilities() -> int:
    """The effective set of this process (proc_pid_status(5)), bit by bit. It keeps it."""
    with open("/proc/self/status") as lines:
        return int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)
