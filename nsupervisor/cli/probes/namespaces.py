"""Probes of namespaces: each kind is made."""

from __future__ import annotations

import errno
import os
from functools import partial

from nsupervisor.cli.probes import LIMITED, MISSING, OK, Finding, ForkedCall, fork_and_wait, in_child, read_file
from nsupervisor.linux import mounts, syscalls
from nsupervisor.linux.namespaces import NAMESPACES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEANINGS = {
    "pid": "a workload sees, and can signal, only its own processes",
    "mount": "a workload can have its own mounts",
    "uts": "a workload can have its own host name",
    "ipc": "a workload can have its own System V IPC and message queues",
    "cgroup": "a workload sees its own cgroup as the root of all",
    "network": "a workload can have its own network interfaces and ports",
    "user": "a workload can be root inside without being root outside",
    "time": "a workload's monotonic and boot-time clocks can be moved",
}
DEFAULT_NAMESPACES = ("pid", "mount", "uts", "ipc", "cgroup")
"""The namespaces that a workload gets by default."""

USER_FLAG = NAMESPACES["user"].flag


def findings() -> Iterator[Finding]:
    """Return one finding per kind, and one for a feature that needs two of them."""
    cases: list[tuple[str, str, Callable[[bool], None], bool]] = [
        *(
            (name, meaning, partial(_make_namespace, name), name in DEFAULT_NAMESPACES)
            for name, meaning in MEANINGS.items()
        ),
        ("own /proc", "a workload's /proc shows its own processes only", _make_proc, True),
    ]
    attempts = [ForkedCall(partial(make, False)) for _, _, make, _ in cases]
    return (_finding(*case, attempt.error()) for case, attempt in zip(cases, attempts, strict=True))


def _finding(name: str, meaning: str, make: Callable[[bool], None], essential: bool, error: OSError | None) -> Finding:
    if error is None:
        return Finding(name, OK, meaning)
    if name != "user" and error.errno in (errno.EPERM, errno.EACCES) and in_child(lambda: make(True)) is None:
        text = f"{meaning}, but only together with a user namespace"
        return Finding(name, LIMITED, text, "run as root, or write user = true under [workload.NAME.namespaces]")
    return Finding(name, MISSING, f"not available: {_reason(name, error)}", _remedy(name, error, essential), essential)


def _make_namespace(name: str, with_user_namespace: bool) -> None:
    """Make one kind of namespace, and run a process in it. Raises OSError."""
    syscalls.unshare(NAMESPACES[name].flag | (USER_FLAG if with_user_namespace else 0))
    if name in ("pid", "time"):  # unshare(2) changes these two for children only
        fork_and_wait(lambda: None)
    elif name == "mount":
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    elif name == "network":
        syscalls.bring_up_loopback()


def _make_proc(with_user_namespace: bool) -> None:
    """Mount a new /proc. The kernel refuses it in a container whose /proc is partly covered, in all its namespaces."""
    flags = NAMESPACES["pid"].flag | NAMESPACES["mount"].flag | (USER_FLAG if with_user_namespace else 0)
    syscalls.unshare(flags)

    def mount() -> None:
        mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        mounts.mount("proc", "/proc", "proc", mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC)

    fork_and_wait(mount)


def _reason(name: str, error: OSError) -> str:
    prefix = f"{error.filename}: " if error.filename else ""
    return f"{prefix}{error.strerror}" + (f" (user {os.geteuid()})" if error.errno == errno.EPERM else "")


def _remedy(name: str, error: OSError, essential: bool) -> str:
    kernel_name = NAMESPACES[name].file if name in NAMESPACES else "mnt"
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        limit = f"/proc/sys/user/max_{kernel_name}_namespaces"
        return f"raise the limit in {limit}, which is {read_file(limit) or 'unknown'}"
    if error.errno == errno.EINVAL:
        return f"boot a kernel that was built with CONFIG_{kernel_name.upper()}_NS"
    alternative = "" if essential else f", or leave {name} = false under [workload.NAME.namespaces]"
    if os.geteuid() != 0:
        return f"run as root{alternative}"
    return f"in a container: give it CAP_SYS_ADMIN and an open /proc (docker or podman: --privileged){alternative}"
