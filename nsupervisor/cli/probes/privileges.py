"""Probes of the own user and capabilities, and of the rights of users other than root."""

from __future__ import annotations

import os
import pwd
import shutil

from nsupervisor.cli.probes import LIMITED, MISSING, OK, Finding, ForkedCall, read_file
from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# capabilities(7), by number
# fmt: off
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)
# fmt: on

LOST_FEATURES = {
    "SYS_ADMIN": "namespaces and mounts are available within a user namespace only",
    "SETUID": "programs cannot run as another user (user = …)",
    "SETGID": "programs cannot run with other groups (user = …, supplementary_groups)",
    "KILL": "programs of other users cannot be sent signals",
    "NET_ADMIN": "networks can be set up within a user namespace only",
    "SYS_RESOURCE": "hard limits cannot be raised (limit_nofile = … and the like), and pressure is reported over "
    "windows of 2 s or more",
    "SYS_NICE": "nice cannot be negative",
    "SYS_TIME": "clocks cannot be moved (time_offsets)",
}
NOBODY_ID = 65534


def effective_capabilities() -> set[str]:
    """Return the names, without CAP_, of this process' effective capabilities."""
    for line in read_file("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return {name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1}
    return set()


def findings() -> Iterator[Finding]:
    """Yield the user, and one finding per missing capability."""
    user = os.geteuid()
    if user == 0:
        yield Finding("user", OK, "root")
    else:
        text = f"user {user}: workloads run as this user, in namespaces that need user = true"
        yield Finding("user", LIMITED, text, "run as root for all of it")
    held = effective_capabilities()
    known = int(read_file("/proc/sys/kernel/cap_last_cap") or len(CAPABILITIES) - 1) + 1
    absent = [name for name in CAPABILITIES[:known] if name not in held]
    if not absent:
        yield Finding("capabilities", OK, f"all {known} of this kernel's")
        return
    if not held:
        yield Finding("capabilities", LIMITED, "none, as is usual for users other than root", "run as root")
        return
    relevant = [name for name in absent if name in LOST_FEATURES]
    listed = ", ".join(f"CAP_{name}" for name in absent)
    yield Finding("capabilities", LIMITED if relevant else OK, f"{len(held)} of {known}; not there: {listed}")
    for name in relevant:
        instead = f"give it to the container or service (docker, podman: --cap-add {name}; systemd: "
        yield Finding(
            f"CAP_{name}", LIMITED, f"not there: {LOST_FEATURES[name]}", f"{instead}CapabilityBoundingSet=CAP_{name})"
        )


def rootless() -> Iterator[Finding]:
    """Return what users other than root can do here."""
    return _rootless(ForkedCall(_make_user_namespace))


def _rootless(user_namespace: ForkedCall) -> Iterator[Finding]:
    yield _user_namespaces(user_namespace.error())
    yield from _subordinate_ids()
    for program in ("newuidmap", "newgidmap"):
        if path := shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
            yield Finding(program, OK, f"{path}: others than root can have several users inside a user namespace")
        else:
            text = "others than root have one user inside a user namespace; root does not need it"
            yield Finding(program, MISSING, text, "install the package uidmap (Fedora: shadow-utils)")


def _make_user_namespace() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY_ID, NOBODY_ID, NOBODY_ID)
        os.setresuid(NOBODY_ID, NOBODY_ID, NOBODY_ID)
    syscalls.unshare(CLONE_NEWUSER)


def _user_namespaces(error: OSError | None) -> Finding:
    if error is None:
        return Finding("user namespaces", OK, "users other than root can make them, and with them all other kinds")
    for path, forbidding in (
        ("/proc/sys/user/max_user_namespaces", "0"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        if read_file(path) == forbidding:
            text = f"users other than root cannot make them: {path} is {forbidding}"
            return Finding("user namespaces", LIMITED, text, f"run as root, or set it to {1 - int(forbidding) or 0}")
    text = f"users other than root cannot make them: {error.strerror}"
    return Finding("user namespaces", LIMITED, text, "run as root")


def _subordinate_ids() -> Iterator[Finding]:
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    for path in ("/etc/subuid", "/etc/subgid"):
        ranges = [line.split(":") for line in read_file(path).splitlines() if line.count(":") == 2]
        own_ranges = [f"{first}+{count}" for owner, first, count in ranges if owner in (name, str(uid))]
        if own_ranges:
            yield Finding(path, OK, f"user {name} has the ids {', '.join(own_ranges)}")
        else:
            text = f"user {name} has no ids to hand out inside user namespaces; root does not need them"
            yield Finding(path, MISSING, text, f"usermod --add-sub{path[-3:]}s 100000-165535 {name}")
