"""The table `security.landlock` of a workload: the files and TCP ports that its program may use, by Landlock's rights.

systemd has no such keys. They are named by what landlock(7) restricts, and each restricts only what its name says.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config.kinds import ListOf, Scalar, key
from nsupervisor.config.quoting import alternatives, did_you_mean
from nsupervisor.config.sandbox import PROTECTED_PATHS
from nsupervisor.config.table import Table

Scope = Literal["abstract-unix-socket", "signal"]
SCOPES = ("abstract-unix-socket", "signal")


def _scope(value: Any) -> str:
    if value in SCOPES:
        return str(value)
    hint = did_you_mean(value, SCOPES) if isinstance(value, str) else ""
    raise ValueError(f"is not one of the choices{hint}; write {alternatives(SCOPES)}")


_PORTS = ListOf(kinds.integer(0, 65535, 8080))
_SCOPES = ListOf(Scalar(_scope, {"enum": list(SCOPES)}))


@frozen(repr=False)
class LandlockConfig(Table):
    """[workload.NAME.security.landlock]: a key that is left out restricts nothing; an empty list allows nothing."""

    read: tuple[str, ...] | None = field(
        default=None,
        metadata=key(PROTECTED_PATHS, 'the only files and directories that it may read; "-/path" may be missing'),
    )
    write: tuple[str, ...] | None = field(
        default=None,
        metadata=key(PROTECTED_PATHS, "the only ones that it may write to, and in which it may make and remove files"),
    )
    execute: tuple[str, ...] | None = field(
        default=None, metadata=key(PROTECTED_PATHS, "the only ones that it may execute; it may read them, too")
    )
    ioctl_device: tuple[str, ...] | None = field(
        default=None, metadata=key(PROTECTED_PATHS, "the only devices that it may control by ioctl(2)")
    )
    connect_tcp: tuple[int, ...] | None = field(
        default=None, metadata=key(_PORTS, "the only TCP ports, of any host, that it may connect to")
    )
    bind_tcp: tuple[int, ...] | None = field(
        default=None, metadata=key(_PORTS, "the only TCP ports that it may bind; 0: one that the kernel chooses")
    )
    scope: tuple[Scope, ...] | None = field(
        default=None,
        metadata=key(_SCOPES, "what it may use only of its own processes: abstract-unix-socket, signal"),
    )
