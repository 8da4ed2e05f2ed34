"""The table `security` of a workload: a profile, and a key for each of its items.

A key that is left out (None) has the value of the profile: `nsupervisor.core.security` resolves them.
"""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config.kinds import Choice, PrefixedKeys, key
from nsupervisor.config.sandbox import SandboxConfig

Profile = Literal["default", "strict", "none"]


@frozen(repr=False)
class SecurityConfig(SandboxConfig):
    """[workload.NAME.security]: what the program is allowed to do."""

    profile: Profile = field(
        default="none",
        metadata=key(Choice.of(Profile), "the values of all keys that are left out"),
    )
    no_new_privileges: bool | None = field(
        default=None,
        metadata=key(kinds.BOOLEAN, "set-user-id programs and file capabilities give nothing"),
    )
    rlimits: dict[str, tuple[int, int]] = field(
        factory=dict,
        metadata=key(PrefixedKeys("limit_", kinds.RLIMITS), 'resource limits: a number, "SOFT:HARD" or "infinity"'),
    )
    """Limits by setrlimit(2)'s names in lower case, without "limit_": {"nofile": (soft, hard)}; -1 is infinity."""
