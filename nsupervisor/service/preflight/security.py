"""Items of security profiles that this host, or this process, cannot provide, with the reason.

Each item has its own function in `CHECKS`. An item without one can be provided everywhere.
"""

import errno
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from nsupervisor.capability_names import NAMES
from nsupervisor.config.landlock import LandlockConfig
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.sandbox import SandboxConfig
from nsupervisor.core.isolation import Absence
from nsupervisor.core.security import Support, values
from nsupervisor.linux.privileges import SETPCAP, SYS_ADMIN, Privileges

PROFILE_REASON = "only the security profile asks for it"
"""Why an item that cannot be provided is only a warning."""

Check = Callable[[WorkloadConfig, Any, Privileges], "Absence | None"]
"""Returns why this process cannot provide a workload with this value of an item; None if it can."""


def needs_mounts(workload: WorkloadConfig, value: Any, privileges: Privileges) -> Absence | None:
    """Return why a program cannot have its own view of the files; None if it can."""
    if not workload.namespaces.mount:
        return Absence(
            "what a program sees can be changed in a mount namespace only", "write namespaces = { mount = true }"
        )
    if kernel_version() < MOUNT_SETATTR:
        return Absence("this kernel cannot make a tree of mounts read-only", "use Linux 5.12 or later")
    return None


MOUNT_SETATTR = (5, 12)
"""The first kernel with mount_setattr(2), which a view of the files needs, and a root of its own."""


def kernel_version() -> tuple[int, int]:
    """Return the major and minor version of the kernel, uname(2)."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


FOR_PRIVILEGED = ("device_policy",)
"""Items without an effect on a service that has no capabilities: its programs make no device nodes, mknod(2)."""
_SECCOMP_ACTIONS = "/proc/sys/kernel/seccomp/actions_avail"
_INSTALL = "install libseccomp2 (Debian: apt install libseccomp2)"


def _bounding_set(workload: WorkloadConfig, value: Any, own: Privileges) -> Absence | None:
    # With no_new_privs, a process without capabilities never has one: there is nothing to drop.
    if workload.namespaces.user or own.has(SETPCAP):
        return None
    if not own.capabilities and values(workload.security)["no_new_privileges"]:
        return None
    return Absence("to drop capabilities needs CAP_SETPCAP, which the service does not have here", "run it as root")


def _ambient(workload: WorkloadConfig, value: Any, own: Privileges) -> Absence | None:
    missing = [] if workload.namespaces.user else [name for name in value if not own.has(NAMES.index(name))]
    if not missing:
        return None
    return Absence(f"the service does not have {', '.join(missing)} itself", "run it as root with these capabilities")


def _secure_bits(workload: WorkloadConfig, value: Any, own: Privileges) -> Absence | None:
    if workload.namespaces.user or own.has(SETPCAP):
        return None
    return Absence("secure bits need CAP_SETPCAP, which the service does not have here", "run it as root")


def _filter(workload: WorkloadConfig, value: Any, own: Privileges) -> Absence | None:
    return missing_seccomp() or _filter_privilege(workload, own)


def missing_seccomp() -> Absence | None:
    """Return why no filter of system calls can be made here; None if it can."""
    from nsupervisor.linux import libseccomp  # imported late: many configurations need no filter

    if reason := libseccomp.missing_reason():
        return Absence(reason, _INSTALL)
    if not os.path.exists(_SECCOMP_ACTIONS):
        return Absence("this kernel has no filters of system calls", "use one with CONFIG_SECCOMP_FILTER")
    return None


def _filter_privilege(workload: WorkloadConfig, own: Privileges) -> Absence | None:
    if workload.namespaces.user or own.has(SYS_ADMIN) or values(workload.security)["no_new_privileges"]:
        return None
    return Absence(
        "without no_new_privileges a filter needs CAP_SYS_ADMIN, which the service does not have here",
        "set no_new_privileges = true",
    )


def _landlock(workload: WorkloadConfig, value: LandlockConfig, own: Privileges) -> Absence | None:
    from nsupervisor.core.landlock import missing_abi  # imported late: few configurations need them
    from nsupervisor.linux import syscalls

    try:
        abi = syscalls.landlock_abi()
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return Absence("Landlock is not active in this kernel", 'boot with "landlock" in lsm=')
        return Absence(f"this kernel has no Landlock: {error.strerror}", "use one with CONFIG_SECURITY_LANDLOCK")
    missing = missing_abi(value, abi)
    if missing is None:
        return None
    key, needed = missing
    return Absence(
        f"{key} needs version {needed.abi} of Landlock's ABI (Linux {needed.kernel}): this kernel has version {abi}, "
        f"which {needed.lack}",
        f"remove {key}, or use a newer kernel",
    )


def _needs_bpf(workload: WorkloadConfig, value: Any, privileges: Privileges) -> Absence | None:
    if privileges.has(SYS_ADMIN) and privileges.uid_map == _INITIAL_USER_NAMESPACE:
        return None
    return Absence(
        "only root with CAP_SYS_ADMIN in the host's user namespace may restrict devices by BPF programs",
        "run the service as root of the host",
    )


_INITIAL_USER_NAMESPACE = ((0, 2**32 - 1),)

CHECKS: Mapping[str, Check] = {
    **{
        attribute.name: needs_mounts
        for attribute in attrs.fields(SandboxConfig)
        if attribute.name not in ("device_policy", "device_allow")
    },
    "capability_bounding_set": _bounding_set,
    "ambient_capabilities": _ambient,
    "secure_bits": _secure_bits,
    "seccomp": _filter,
    "system_call_filter": _filter,
    "restrict_address_families": _filter,
    "restrict_namespaces": _filter,
    "lock_personality": _filter,
    "memory_deny_write_execute": _filter,
    "restrict_realtime": _filter,
    "restrict_suid_sgid": _filter,
    "landlock": _landlock,
    "device_policy": _needs_bpf,
}
"""By key of the table `security`."""
NEED_CGROUPS = frozenset({"device_policy"})
"""Keys whose items are properties of a cgroup."""


def security_support(privileges: Privileges, no_cgroups: Absence | None = None) -> Support:
    """Return a function that says why a process with these privileges cannot provide an item.

    `no_cgroups`: why workloads have no cgroups, if they have none.
    """

    def support(workload: WorkloadConfig, key: str, value: Any) -> Absence | None:
        if key in NEED_CGROUPS and no_cgroups is not None:
            return no_cgroups
        check = CHECKS.get(key)
        return None if check is None else check(workload, value, privileges)

    return support
