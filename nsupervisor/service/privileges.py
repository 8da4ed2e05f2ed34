"""What this process may not do, found before anything starts, and told with what to do instead."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nsupervisor.config.model import Config, Workload
from nsupervisor.config.positions import Positions
from nsupervisor.config.problems import Problem

SETGID, SETUID, SYS_ADMIN = 6, 7, 21
"""Numbers of capabilities: capabilities(7), linux/capability.h."""

_NAMESPACES = ("mount", "pid", "uts", "ipc", "cgroup", "network", "time")


def lacking(config: Config, positions: Positions) -> Iterator[Problem]:
    """What the workloads ask for and this process lacks the privilege for."""
    mine = _capabilities()
    for workload in config.workloads.values():
        for key, message in _of(workload, mine):
            path = ("workload", workload.name, key)
            yield Problem(config.path, positions.line(path), ".".join(path), message)


def _of(workload: Workload, mine: int) -> Iterator[tuple[str, str]]:
    if workload.namespaces.user:  # which gives the privilege for all of the following (user_namespaces(7))
        return
    who = f"user {os.geteuid()}" if os.geteuid() else "root"
    spaces = [space for space in _NAMESPACES if getattr(workload.namespaces, space)]
    if spaces and not mine >> SYS_ADMIN & 1:
        yield (
            "namespaces",
            f"new namespaces ({', '.join(spaces)}) need CAP_SYS_ADMIN, which {who} does not have here; "
            "set namespaces.user = true, or each of these to false, or run as root with that capability",
        )
    if workload.user is not None and not (mine >> SETUID & 1 and mine >> SETGID & 1):
        yield (
            "user",
            f"to become another user needs CAP_SETUID and CAP_SETGID, which {who} does not have here; "
            "leave it out, or run as root with those capabilities",
        )


@contextmanager
def own_place(directory: Path) -> Iterator[None]:
    """Around the making of the runtime directory: a PermissionError says what to set instead."""
    try:
        yield
    except PermissionError as error:
        place = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
        hint = f'set supervisor.runtime_directory to a place of yours, such as "{place}/nsupervisor"'
        raise PermissionError(error.errno, f"{error.strerror} ({hint})", str(directory)) from error


def _capabilities() -> int:
    """The effective set of this process (proc_pid_status(5)), bit by bit."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("CapEff:")), 16)
