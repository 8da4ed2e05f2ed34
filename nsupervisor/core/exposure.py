"""How exposed the host is to a workload: a score with its reasons, like that of `systemd-analyze security`. Pure.

Each check has a weight. The score is ten times the share of the weights of those that fail: 0.0 is the most confined,
10.0 a program that may do all that root can. It compares settings, and does not know what the program does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.security import values

POWERFUL = frozenset(
    (
        *("SYS_ADMIN", "SYS_MODULE", "SYS_RAWIO", "SYS_PTRACE", "SYS_BOOT", "SYS_TIME", "MKNOD", "BPF", "PERFMON"),
        *("DAC_READ_SEARCH", "NET_ADMIN", "NET_RAW", "MAC_ADMIN", "MAC_OVERRIDE", "SYSLOG"),
    )
)
"""Capabilities by which a program can take control of the host, or observe others."""
LEVELS = ((9.0, "unsafe"), (7.5, "exposed"), (5.0, "medium"), (1.0, "ok"), (0.1, "safe"), (0.0, "perfect"))
"""Lowest score of each level; the names are those of systemd."""

Values = Mapping[str, Any]


class Check(NamedTuple):
    """One item of the score. `is_exposed`: whether it fails. `line`: what to write in the table of the workload."""

    name: str
    weight: float
    reason: str
    line: str
    is_exposed: Callable[[WorkloadConfig, Values], bool]


class Exposure(NamedTuple):
    """The result for a workload; `findings` are the checks that fail, the heaviest one first."""

    score: float
    level: str
    findings: tuple[Check, ...]


def _namespace(name: str, weight: float, reason: str) -> Check:
    return Check(
        f"namespaces.{name}", weight, reason, f"namespaces.{name} = true", lambda w, _: not getattr(w.namespaces, name)
    )


def _security(
    key: str,
    weight: float,
    reason: str,
    value: str = "true",
    is_exposed: Callable[[Any], bool] = lambda found: not found,
) -> Check:
    return Check(f"security.{key}", weight, reason, f"security.{key} = {value}", lambda _, v: is_exposed(v[key]))


def _view(key: str, weight: float, reason: str, value: str = "true", of_host: bool = False) -> Check:
    """Return a check of a key that has no effect without a mount namespace.

    `of_host`: it is about files of the host, which a program with a root of its own does not see.
    """
    return Check(
        f"security.{key}",
        weight,
        reason,
        f"security.{key} = {value}",
        lambda workload, found: (
            not workload.namespaces.mount
            or (found[key] in (False, "default", "auto") and not (of_host and workload.root.is_own))
        ),
    )


def _is_root(workload: WorkloadConfig, _: Values) -> bool:
    is_own = workload.namespaces.user or workload.dynamic_user
    return workload.user in (None, "", "root", "0", 0) and not is_own


CHECKS = (
    Check("user", 15, "the program is root for the host's files", 'user = "NAME"', _is_root),
    _namespace("mount", 8, "mounts of the program are those of the host"),
    _namespace("pid", 8, "the program sees and may signal processes of the host"),
    _namespace("network", 8, "the program uses the host's network: its ports, and its abstract sockets"),
    _namespace("ipc", 3, "the program uses the host's shared memory and message queues"),
    _namespace("cgroup", 2, "the program sees the names of the host's cgroups"),
    _namespace("uts", 1, "the program sees, and with privileges sets, the host's name"),
    _security("no_new_privileges", 6, "set-user-id programs and file capabilities give privileges"),
    _security(
        "capability_bounding_set",
        12,
        "the program can have capabilities that control the host",
        "[]",
        lambda found: bool(POWERFUL & set(found)),
    ),
    Check(
        "security.capability_bounding_set (usual)",
        3,
        "the program can have the usual capabilities of containers, such as that to ignore the modes of files",
        "security.capability_bounding_set = []",
        lambda _, found: bool(found["capability_bounding_set"]),
    ),
    _security("seccomp", 10, "every system call is allowed", '"default"', lambda found: found in ("off", "log")),
    Check(
        "resources.pids_max",
        2,
        "the program can use up the process numbers of the host",
        "resources.pids_max = 2048",
        lambda workload, _: workload.resources.pids_max is None,
    ),
    _security("system_call_filter", 3, "calls that few programs need are allowed", '["@system-service"]'),
    _view("protect_system", 6, "/usr and /boot are writable for root", of_host=True),
    Check(
        "security.protect_system (strict)",
        3,
        "files outside of /usr and /boot are writable for root",
        'security.protect_system = "strict"',
        lambda workload, found: (
            not workload.namespaces.mount or (found["protect_system"] != "strict" and not workload.root.is_own)
        ),
    ),
    _view("protect_home", 3, "home directories are visible", of_host=True),
    _view("private_tmp", 2, "the program shares /tmp and /var/tmp with the host", of_host=True),
    _view("private_devices", 6, "devices of the host are visible"),
    _view("device_policy", 4, "each device may be opened", '"closed"'),
    _view("protect_kernel_tunables", 6, "settings of the kernel in /proc and /sys are writable for root"),
    _view("protect_control_groups", 5, "cgroups are writable for root"),
    _view("protect_kernel_modules", 0.5, "the kernel's modules can be read", of_host=True),
    _view("protect_kernel_logs", 0.5, "the kernel's messages can be read with privileges"),
    _view("protect_clock", 0.5, "the clock's device is visible"),
    _view("protect_proc", 1, "/proc shows the processes of other users", '"invisible"'),
    _security(
        "restrict_address_families", 1, "sockets of all families are allowed", '["AF_UNIX", "AF_INET", "AF_INET6"]'
    ),
    _security("restrict_namespaces", 1, "no filter of its own refuses new namespaces"),
    _security("restrict_suid_sgid", 1, "the program may make set-user-id files"),
    _security(
        "landlock",
        1,
        "no Landlock rules limit the files and TCP ports that it may use",
        '{ write = ["/tmp"], connect_tcp = [443], bind_tcp = [] }',
    ),
    _security("restrict_realtime", 0.5, "real-time scheduling is not refused"),
    _security("lock_personality", 0.5, "the execution domain may be changed"),
    _security("memory_deny_write_execute", 1, "memory may be written and executed"),
)
_TOTAL = sum(check.weight for check in CHECKS)


def exposure(workload: WorkloadConfig) -> Exposure:
    """Return the score of a workload with its reasons."""
    found = values(workload.security)
    failed = sorted((check for check in CHECKS if check.is_exposed(workload, found)), key=lambda check: -check.weight)
    score = round(10 * sum(check.weight for check in failed) / _TOTAL, 1)
    level = next(name for lowest, name in LEVELS if score >= lowest)
    return Exposure(score, level, tuple(failed))


def share(check: Check) -> float:
    """Return the part of the score that a check makes up."""
    return round(10 * check.weight / _TOTAL, 2)
