"""The table `security` of a workload: a profile, and a key for each of its items.

A key that is left out (None) has the value of the profile: `nsupervisor.core.security` resolves them.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config import security_kinds as security
from nsupervisor.config.kinds import Choice, ListOf, PrefixedKeys, TableOf, key
from nsupervisor.config.landlock import LandlockConfig
from nsupervisor.config.sandbox import SandboxConfig

Profile = Literal["default", "strict", "none"]

PROFILE_LIMITS = {"pids_max": 2048}
"""Keys of the table `resources` that each profile but "none" sets, unless the file has them. As in podman."""

DYNAMIC_USER_KEYS: dict[str, Any] = {
    "no_new_privileges": True,
    "restrict_suid_sgid": True,
    "protect_system": "strict",
    "protect_home": "read-only",
    "private_tmp": True,
}
"""The keys that `dynamic_user` sets, as systemd's DynamicUser= does: no file of its user may outlive the program but in
its own directories, as another program may have the number later."""
STRONGER: dict[str, tuple[Any, ...]] = {"protect_home": (True, "tmpfs")}
"""By key of `DYNAMIC_USER_KEYS`, further values that protect as much."""


@frozen(repr=False)
class SecurityConfig(SandboxConfig):
    """[workload.NAME.security]: what the program is allowed to do."""

    profile: Profile = field(
        default="default",
        metadata=key(Choice.of(Profile), "the values of all keys that are left out"),
    )
    no_new_privileges: bool | None = field(
        default=None,
        metadata=key(kinds.BOOLEAN, "set-user-id programs and file capabilities give nothing"),
    )
    capability_bounding_set: tuple[str, ...] | None = field(
        default=None,
        metadata=key(
            ListOf(security.BOUNDED_CAPABILITY),
            'the capabilities it can ever have; "+NAME", "-NAME": those of the profile, with and without it',
        ),
    )
    ambient_capabilities: tuple[str, ...] | None = field(
        default=None,
        metadata=key(ListOf(security.CAPABILITY), "the capabilities that it has also if its user is not root"),
    )
    secure_bits: tuple[str, ...] | None = field(
        default=None,
        metadata=key(ListOf(security.SECURE_BIT), "how the kernel treats root: noroot, no-setuid-fixup, keep-caps …"),
    )
    seccomp: str | None = field(
        default=None,
        metadata=key(
            security.SECCOMP, "the filter of system calls: default, off, log (report, refuse nothing), or an OCI file"
        ),
    )
    system_call_filter: tuple[str, ...] | None = field(
        default=None,
        metadata=key(
            ListOf(security.SYSTEM_CALL), 'the only system calls that it may use, or with "~" may not: names, groups'
        ),
    )
    restrict_address_families: tuple[str, ...] | None = field(
        default=None,
        metadata=key(
            ListOf(security.ADDRESS_FAMILY), 'the only address families of its sockets, or with "~" those refused'
        ),
    )
    restrict_namespaces: tuple[str, ...] | None = field(
        default=None,
        metadata=key(security.RESTRICTED_NAMESPACES, "it may not make or enter namespaces; or only these kinds"),
    )
    """The kinds that are refused, each with "~" before it."""
    lock_personality: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "it may not change its execution domain, personality(2)")
    )
    memory_deny_write_execute: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "no memory may be both written and executed")
    )
    restrict_realtime: bool | None = field(default=None, metadata=key(kinds.BOOLEAN, "no real-time scheduling"))
    restrict_suid_sgid: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "it may not make files that are set-user-id or set-group-id")
    )
    landlock: LandlockConfig | None = field(
        default=None, metadata=key(TableOf(LandlockConfig), "the files and TCP ports that it may use; default: all")
    )
    rlimits: dict[str, tuple[int, int]] = field(
        factory=dict,
        hash=False,
        metadata=key(PrefixedKeys("limit_", kinds.RLIMITS), 'resource limits: a number, "SOFT:HARD" or "infinity"'),
    )
    """Limits by setrlimit(2)'s names in lower case, without "limit_": {"nofile": (soft, hard)}; -1 is infinity."""
    unavailable: frozenset[str] = frozenset()
    """Keys of which the host cannot provide the profile's value; not a key of the file."""
