"""Errors of cgroups, described so that a person can act on them."""

from __future__ import annotations

from typing import NamedTuple


class CgroupError(Exception):
    """A cgroup could not be made, limited, read, signalled or removed. The message says what, which one, and why."""


class CgroupGoneError(CgroupError):
    """The cgroup has been removed."""


class UnsupportedValueError(CgroupError):
    """A value that this host cannot apply. reason: a sentence without full stop; remedy: what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}; {remedy}")


class HostProblem(NamedTuple):
    """A requested feature that this host cannot provide.

    key: the configuration key ("memory_high") or the cgroup file ("memory.pressure") it is about. reason: a sentence
    without full stop. remedy: what to do about it, in the same form.
    """

    key: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}; {self.remedy}"
