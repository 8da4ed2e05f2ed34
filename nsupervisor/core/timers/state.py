"""The state of one timer, which is saved, apart from what decides about it: few services load that."""

from __future__ import annotations

from typing import Literal

import attrs

from nsupervisor.wire_names import wire

RunMode = Literal["start", "replace", "restart", "instance"]


@attrs.frozen
class TimerState:
    """The complete state of a timer."""

    is_armed: bool = attrs.field(default=False, metadata=wire("armed"))
    disarmed_reason: str = attrs.field(default="", metadata=wire("disarmed"))
    handled_until: float = attrs.field(default=0.0, metadata=wire("until"))
    """Occurrences up to here have run, or were skipped or missed; seconds since 1970."""
    occurrence: int | None = attrs.field(default=None, metadata=wire("occurrence"))
    """The next occurrence."""
    due: float | None = attrs.field(default=None, metadata=wire("due"))
    """When it runs: later than the occurrence by the offset and the random delay."""
    monotonic_due: float | None = attrs.field(default=None, metadata=wire("monotonic_due"))
    monotonic_key: str = attrs.field(default="", metadata=wire("monotonic_key"))
    """The key of the configuration that `monotonic_due` follows from."""
    elapsed_keys: tuple[str, ...] = attrs.field(default=(), metadata=wire("elapsed"))
    """The keys, on_boot_sec or on_startup_sec, that have elapsed."""
    startup_at: float = attrs.field(default=0.0, metadata=wire("startup"))
    """When the service started, on the monotonic clock."""
    active_at: float | None = attrs.field(default=None, metadata=wire("active"))
    inactive_at: float | None = attrs.field(default=None, metadata=wire("inactive"))
    triggered_at: float | None = attrs.field(default=None, metadata=wire("triggered"))
    """When it was last due, on the monotonic clock, also if the run was skipped."""
    is_queued: bool = attrs.field(default=False, metadata=wire("queued"))
    last_run_at: float | None = attrs.field(default=None, metadata=wire("last"))
    """When it last started a run, in seconds since 1970."""
    last_success_at: float | None = attrs.field(default=None, metadata=wire("success"))
    """When a run last ended successfully, in seconds since 1970."""
    runs: int = attrs.field(default=0, metadata=wire("runs"))
    skipped: int = attrs.field(default=0, metadata=wire("skipped"))
    missed: int = attrs.field(default=0, metadata=wire("missed"))
