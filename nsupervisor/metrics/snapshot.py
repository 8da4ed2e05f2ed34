"""The values that a scrape shows, read in the event loop; a thread renders them as text later."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.metrics.measures import Histogram, Measures

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsupervisor.logs import Journal


@attrs.frozen
class InstanceSnapshot:
    """The values of one workload instance."""

    labels: Mapping[str, str]
    state: str
    is_ready: bool
    generation: int
    uptime: float | None
    """Seconds since the generation started; None while no process of the instance is alive."""
    exits: Mapping[str, int]
    restarts: Mapping[str, int]
    actions: Mapping[tuple[str, str], int]
    """By (rule, action), for all rules of its policy; 0 for a rule that has not fired yet."""
    probes: Mapping[tuple[str, bool], int]
    """By (probe, success): the number of results."""
    probe_verdicts: Mapping[str, bool]
    """By probe, for those with a verdict: whether it passes."""
    probe_seconds: Mapping[str, float]
    """By probe: how long the latest one took."""
    hook_seconds: Mapping[str, float]
    """By key of a hook, such as "exec_stop": how long its latest command took."""
    hook_failures: Mapping[str, int]
    """By key of a hook, for all that it has: how many of its commands have failed."""
    output: Mapping[str, tuple[int, int]]
    """By stream: (bytes, lines)."""
    dropped_lines: Mapping[str, int]
    """By stream: lines that a destination lacks."""
    limited_bytes: Mapping[str, int]
    """By stream: bytes that the rate limit has dropped."""
    blocked_sec: Mapping[str, float]
    """By stream: for how long its output cannot be written already; 0 if it can."""
    traffic: Mapping[str, int | None]
    """By name of the value, as from `read_traffic`."""
    files: Mapping[str, Mapping[str, float]]
    """By v2 name, as from `Cgroup.read_once`; without the files that this host does not have."""


@attrs.frozen
class GroupSnapshot:
    """The values of a group: what its members use together."""

    labels: Mapping[str, str]
    members: int
    files: Mapping[str, Mapping[str, float]]
    """By v2 name, as `InstanceSnapshot.files`."""


@attrs.frozen
class TimerSnapshot:
    """The values of the timer of a workload. Times are seconds since 1970; None: there is none."""

    workload: str
    next_at: float | None
    last_run_at: float | None
    last_success_at: float | None
    lag: float | None
    """How late the last run began, in seconds."""
    outcomes: Mapping[str, int]
    """By outcome: run, skipped, missed."""


@attrs.frozen
class ServiceSnapshot:
    """The values of the service itself."""

    loop_lag: Histogram
    reaction: Histogram
    keeper_round_trip: Mapping[str, Histogram]
    dropped: int
    is_journal_failing: bool
    keeper_pid: int
    connection_errors: Mapping[tuple[str, str], int]
    """The number of errors by (listener, kind)."""

    @classmethod
    def from_measures(
        cls, measures: Measures, journal: Journal, keeper_pid: int, errors: ConnectionErrors
    ) -> ServiceSnapshot:
        """Take a snapshot of the service's own measurements."""
        return cls(
            loop_lag=measures.loop_lag.copy(),
            reaction=measures.reaction.copy(),
            keeper_round_trip={request: histogram.copy() for request, histogram in measures.keeper_round_trip.items()},
            dropped=journal.dropped,
            is_journal_failing=journal.error is not None,
            keeper_pid=keeper_pid,
            connection_errors=errors.counts.copy(),
        )
