"""The seccomp filters of a workload, as rules on system calls by name. Pure.

There may be several: the restrictions of single keys, `system_call_filter`, and the default filter or that of an OCI
file. The kernel applies each, and the strictest action counts (seccomp(2)). They are installed in the order of
`filters`: each but the last allows seccomp(2), with which the next one is installed.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nsupervisor.config.system_calls import (
    ADDRESS_FAMILIES,
    BY_CAPABILITY,
    DEFAULT,
    LAST_FAMILY,
    REFUSED_FAMILIES,
    expand,
)

ALLOW, LOG, KILL = "allow", "log", "kill"
"""Actions. A number is the errno with which the call fails."""
Action = str | int
NAMESPACE_FLAGS = {
    "mount": 0x0002_0000, "cgroup": 0x0200_0000, "uts": 0x0400_0000, "ipc": 0x0800_0000, "user": 0x1000_0000,
    "pid": 0x2000_0000, "network": 0x4000_0000, "time": 0x80,
}  # fmt: skip
"""The flags of clone(2), unshare(2) and setns(2), by the names of `namespaces`."""
_CLONE_FLAGS = sum(flag for name, flag in NAMESPACE_FLAGS.items() if name != "time")
"""The flags of namespaces that clone(2) has: CLONE_NEWTIME has the bits of its signal."""
_PERSONALITIES = (0x0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)
"""PER_LINUX, PER_LINUX32, both with UNAME26, and the query: personality(2)."""
_QUERY_PERSONALITY = 0xFFFF_FFFF
_INT = 0xFFFF_FFFF
_SCHED_RESET_ON_FORK = 0x4000_0000
_NETLINK_AUDIT = 9
_NETLINK_PROTOCOLS = 32  # MAX_LINKS of linux/netlink.h
_REALTIME_POLICIES = (1, 2, 6)  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE: sched(7)
_PROT_WRITE, _PROT_EXEC, _SHM_EXEC = 2, 4, 0o100000
_MODE_ARGUMENTS = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "mkdir": 1, "mkdirat": 2, "mknod": 1,
                   "mknodat": 2, "creat": 1}  # fmt: skip
_SET_ID_BITS = (0o4000, 0o2000)
_O_CREAT = 0o100
_IMPLICIT = ("@default", "writev")
"""Calls that each `system_call_filter` allows: without them no program starts, nor reports why it does not."""


_PROTECTED_GROUPS = {
    "protect_kernel_modules": "@module",
    "protect_kernel_logs": "syslog",
    "protect_clock": "@clock",
}
"""System calls that are refused together with the files of the same purpose, as in systemd."""


class Condition(NamedTuple):
    """A condition on an argument: "==", "!=", "<", "<=", ">", ">=", or "&" (the bits of `value` are `second`)."""

    argument: int
    comparison: str
    value: int
    second: int = 0


class Rule(NamedTuple):
    """The action for a call if all conditions hold."""

    action: Action
    call: str
    conditions: tuple[Condition, ...] = ()


class Filter(NamedTuple):
    """A filter. `default`: the action for calls without a rule. `unknown`: that for calls without a name here."""

    default: Action
    rules: tuple[Rule, ...]
    unknown: Action | None = None


TERMINAL_FILTER = Filter(
    ALLOW, tuple(Rule(errno.EPERM, "ioctl", (Condition(1, "&", _INT, request),)) for request in (0x5412, 0x541C))
)
"""Refuses to put input into a terminal, TIOCSTI and TIOCLINUX (ioctl_tty(2)): for a program on a terminal that a shell
outside reads, too. Only the lower 32 bits count, as the kernel ignores the others."""


def filters(values: Mapping[str, Any], oci: Filter | None = None) -> tuple[Filter, ...]:
    """Return the filters for the values of the table `security`, in the order in which they are to be installed.

    `oci`: the filter of the file that `seccomp` names.
    """
    seccomp = values["seccomp"]
    found = []
    if restrictions := tuple(_restrictions(values)):
        found.append(Filter(ALLOW, restrictions))
    if values["system_call_filter"]:
        found.append(_system_call_filter(values["system_call_filter"], needs_seccomp=seccomp != "off"))
    if oci is not None:
        found.append(oci)
    elif seccomp != "off":
        found.append(default_filter(values["capability_bounding_set"], is_log=seccomp == "log"))
    return tuple(found)


def default_filter(capabilities: Iterable[str], is_log: bool = False) -> Filter:
    """Return the default filter for a program with this bounding set. `is_log`: report instead of refuse."""
    capabilities = frozenset(capabilities)
    allowed = set(DEFAULT)
    for name in capabilities:
        allowed |= BY_CAPABILITY.get(name, frozenset())
    rules = [Rule(ALLOW, call) for call in sorted(allowed)]
    if "clone" not in allowed:
        rules.append(Rule(ALLOW, "clone", (Condition(0, "&", _CLONE_FLAGS, 0),)))
        rules.append(
            Rule(LOG if is_log else errno.ENOSYS, "clone3")
        )  # its flags are in memory; libraries use clone then
    families = sorted(set(range(LAST_FAMILY + 1)) - REFUSED_FAMILIES)
    # A comparison of all 64 bits: an argument with other upper bits is no family.
    if not capabilities & {"AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE"}:
        families.remove(ADDRESS_FAMILIES["AF_NETLINK"])
        rules += _netlink_without_audit(is_log)
    rules += [Rule(ALLOW, "socket", (Condition(0, "==", family),)) for family in families]
    rules += [Rule(ALLOW, "personality", (Condition(0, "==", value),)) for value in _PERSONALITIES]
    return Filter(LOG if is_log else errno.EPERM, tuple(rules), None if is_log else errno.ENOSYS)


def _netlink_without_audit(is_log: bool) -> Iterable[Rule]:
    """EINVAL is the answer of a kernel without audit system, which libraries such as that of PAM expect."""
    family = Condition(0, "==", ADDRESS_FAMILIES["AF_NETLINK"])
    for protocol in range(_NETLINK_PROTOCOLS):
        action = ALLOW if protocol != _NETLINK_AUDIT else LOG if is_log else errno.EINVAL
        yield Rule(action, "socket", (family, Condition(2, "==", protocol)))


def _system_call_filter(words: Iterable[str], needs_seccomp: bool) -> Filter:
    words = tuple(words)
    allowed = expand(word for word in words if not word.startswith("~"))
    refused = expand(word[1:] for word in words if word.startswith("~"))
    implicit = expand(_IMPLICIT) | ({"seccomp"} if needs_seccomp else set())
    if not allowed:
        return Filter(ALLOW, tuple(Rule(errno.EPERM, call) for call in sorted(refused - implicit)))
    return Filter(
        errno.EPERM, tuple(Rule(ALLOW, call) for call in sorted((allowed - refused) | implicit)), errno.ENOSYS
    )


def _restrictions(values: Mapping[str, Any]) -> Iterable[Rule]:
    if values["restrict_address_families"]:
        yield from _address_families(values["restrict_address_families"])
    if values["restrict_namespaces"]:
        yield from _namespaces(values["restrict_namespaces"])
    if values["lock_personality"]:
        yield Rule(errno.EPERM, "personality", (Condition(0, "!=", _QUERY_PERSONALITY),))
    if values["memory_deny_write_execute"]:
        both = _PROT_WRITE | _PROT_EXEC
        yield Rule(errno.EPERM, "mmap", (Condition(2, "&", both, both),))
        for call in ("mprotect", "pkey_mprotect"):
            yield Rule(errno.EPERM, call, (Condition(2, "&", _PROT_EXEC, _PROT_EXEC),))
        yield Rule(errno.EPERM, "shmat", (Condition(2, "&", _SHM_EXEC, _SHM_EXEC),))
    if values["restrict_realtime"]:
        for policy in _REALTIME_POLICIES:
            condition = Condition(1, "&", _INT & ~_SCHED_RESET_ON_FORK, policy)
            yield Rule(errno.EPERM, "sched_setscheduler", (condition,))
        yield Rule(errno.EPERM, "sched_setattr")  # its policy is in memory
    if values["restrict_suid_sgid"]:
        yield from _set_id_bits()
    for key, group in _PROTECTED_GROUPS.items():
        if values[key]:
            yield from (Rule(errno.EPERM, call) for call in sorted(expand([group])))


def _address_families(words: tuple[str, ...]) -> Iterable[Rule]:
    named = {ADDRESS_FAMILIES[word.removeprefix("~")] for word in words if word != "none"}
    is_refusal = words[0].startswith("~")
    every = set(range(LAST_FAMILY + 1))
    for family in sorted(named if is_refusal else every - named):
        yield Rule(errno.EAFNOSUPPORT, "socket", (Condition(0, "&", _INT, family),))
    if not is_refusal:
        yield Rule(errno.EAFNOSUPPORT, "socket", (Condition(0, ">", LAST_FAMILY),))


def _namespaces(refused: tuple[str, ...]) -> Iterable[Rule]:
    for name in (word.removeprefix("~") for word in refused):
        flag = NAMESPACE_FLAGS[name]
        condition = Condition(0, "&", flag, flag)
        if name != "time":
            yield Rule(errno.EPERM, "clone", (condition,))
        yield Rule(errno.EPERM, "unshare", (condition,))
        yield Rule(errno.EPERM, "setns", (Condition(1, "&", flag, flag),))
    yield Rule(errno.EPERM, "setns", (Condition(1, "&", _INT, 0),))  # any kind
    yield Rule(errno.ENOSYS, "clone3")


def _set_id_bits() -> Iterable[Rule]:
    for bit in _SET_ID_BITS:
        for call, argument in _MODE_ARGUMENTS.items():
            yield Rule(errno.EPERM, call, (Condition(argument, "&", bit, bit),))
        for call, argument in (("open", 1), ("openat", 2)):
            creates = Condition(argument, "&", _O_CREAT, _O_CREAT)
            yield Rule(errno.EPERM, call, (creates, Condition(argument + 1, "&", bit, bit)))
    yield Rule(errno.ENOSYS, "openat2")  # its mode is in memory


# ---- files of container engines

_OCI_COMPARISONS = {
    "SCMP_CMP_NE": "!=", "SCMP_CMP_LT": "<", "SCMP_CMP_LE": "<=", "SCMP_CMP_EQ": "==", "SCMP_CMP_GE": ">=",
    "SCMP_CMP_GT": ">", "SCMP_CMP_MASKED_EQ": "&",
}  # fmt: skip
_OCI_ACTIONS: dict[str, Action] = {
    "SCMP_ACT_ALLOW": ALLOW, "SCMP_ACT_LOG": LOG, "SCMP_ACT_KILL": KILL, "SCMP_ACT_KILL_THREAD": KILL,
    "SCMP_ACT_KILL_PROCESS": KILL,
}  # fmt: skip


class OciError(ValueError):
    """The file is not a filter that can be used; the text ends the sentence "THE FILE …"."""


def parse_oci(text: str, capabilities: Iterable[str], machine: str) -> Filter:
    """Parse the filter in a file of the OCI runtime specification (linux.seccomp), or of Docker or podman.

    In the latter, rules depend on capabilities and architectures ("includes", "excludes"). `machine`: "x86_64" or
    "aarch64". Raises OciError.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise OciError("is not JSON") from None
    for key in ("linux", "seccomp"):
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
    if not isinstance(document, dict) or "defaultAction" not in document:
        raise OciError('has no "defaultAction"; write a filter of the OCI runtime specification')
    try:
        default = _oci_action(document["defaultAction"], document.get("defaultErrnoRet"))
        rules = [
            rule
            for entry in document.get("syscalls") or ()
            if _applies(entry, frozenset(capabilities), machine)
            for rule in _oci_rules(entry)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise OciError(f"is not a filter of the OCI runtime specification: {type(error).__name__}: {error}") from None
    return Filter(default, tuple(rules))


def _oci_action(name: str, code: int | None) -> Action:
    if name == "SCMP_ACT_ERRNO":
        number = errno.EPERM if code is None else int(code)
        if not 0 <= number <= 4095:
            raise OciError(f"has the error number {number}; write one from 0 to 4095")
        return number
    if name not in _OCI_ACTIONS:
        raise OciError(f"has the action {name!r:.40}; only {', '.join(('SCMP_ACT_ERRNO', *_OCI_ACTIONS))} are possible")
    return _OCI_ACTIONS[name]


def _oci_rules(entry: dict[str, Any]) -> Iterable[Rule]:
    action = _oci_action(entry["action"], entry.get("errnoRet"))
    conditions = tuple(
        Condition(int(item["index"]), _OCI_COMPARISONS[item["op"]], int(item["value"]), int(item.get("valueTwo") or 0))
        for item in entry.get("args") or ()
    )
    for name in entry.get("names") or (entry["name"],):
        if not isinstance(name, str):
            raise TypeError(f"{name!r:.40} is not a name")
        # Several conditions on one argument are alternatives, as in runc; libseccomp takes one for each argument.
        if len({condition.argument for condition in conditions}) < len(conditions):
            yield from (Rule(action, name, (condition,)) for condition in conditions)
        else:
            yield Rule(action, name, conditions)


_OCI_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def _applies(entry: dict[str, Any], capabilities: frozenset[str], machine: str) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    own = _OCI_MACHINES.get(machine, machine)

    def held(part: dict[str, Any]) -> set[str]:
        return {name.removeprefix("CAP_") for name in part.get("caps") or ()} & capabilities

    if includes.get("arches") and own not in includes["arches"]:
        return False
    if includes.get("caps") and not held(includes):
        return False
    return own not in (excludes.get("arches") or ()) and not held(excludes)
