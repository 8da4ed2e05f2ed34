"""The values that a scrape shows, read in the event loop; a thread renders them as text later."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.metrics.counters import EXIT_KINDS, RESTART_CAUSES, STREAMS
from nsupervisor.metrics.measures import Histogram, Measures

TYPE_CHECKING = False
if TYPE_CHECKING:  # the service imports us
    from nsupervisor.logs import Journal
    from nsupervisor.service.group.group import Group
    from nsupervisor.service.instance.actor import Actor

FILES = (
    "memory.current",
    "memory.max",
    "memory.events",
    "memory.pressure",
    "cpu.stat",
    "cpu.pressure",
    "pids.current",
    "pids.max",
    "io.stat",
    "io.pressure",
)
"""The cgroup files that a scrape reads."""


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
    output: Mapping[str, tuple[int, int]]
    """By stream: (bytes, lines)."""
    dropped_lines: Mapping[str, int]
    """By stream: lines that a destination lacks."""
    limited_bytes: Mapping[str, int]
    """By stream: bytes that the rate limit has dropped."""
    blocked_sec: Mapping[str, float]
    """By stream: for how long its output cannot be written already; 0 if it can."""
    files: Mapping[str, Mapping[str, float]]
    """By v2 name, as from `Cgroup.read_once`; without the files that this host does not have."""

    @classmethod
    def from_actor(cls, actor: Actor) -> InstanceSnapshot:
        """Take a snapshot of an instance, including its cgroup's files."""
        lifecycle, counters = actor.lifecycle, actor.counters
        labels = {"workload": actor.workload.name}
        if actor.instance is not None:
            labels["workload_instance"] = str(actor.instance)
        return cls(
            labels=labels,
            state=lifecycle.state.value,
            is_ready=lifecycle.is_alive and actor.is_up,
            generation=lifecycle.generation,
            uptime=trio.current_time() - lifecycle.started_at if lifecycle.is_alive else None,
            exits=dict.fromkeys(EXIT_KINDS, 0) | counters.exits,
            restarts=dict.fromkeys(RESTART_CAUSES, 0) | counters.restarts,
            actions={(rule.name, rule.action): 0 for rule in actor.workload.policy} | counters.actions,
            output={stream: (volume.bytes, volume.lines) for stream, volume in counters.output.items()},
            dropped_lines={stream: volume.dropped_lines for stream, volume in counters.output.items()},
            limited_bytes={stream: volume.limited_bytes for stream, volume in counters.output.items()},
            blocked_sec=dict.fromkeys(STREAMS, 0.0)
            | {stream: blockage.seconds for stream, blockage in actor.output.blockages().items()},
            files=_read_files(actor.cgroup),
        )


@attrs.frozen
class GroupSnapshot:
    """The values of a group: what its members use together."""

    labels: Mapping[str, str]
    members: int
    files: Mapping[str, Mapping[str, float]]
    """By v2 name, as `InstanceSnapshot.files`."""

    @classmethod
    def from_group(cls, group: Group) -> GroupSnapshot:
        """Take a snapshot of a group, including its cgroup's files."""
        return cls({"group": group.config.name}, len(group.members), _read_files(group.cgroup))


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


def _read_files(cgroup: Cgroup) -> dict[str, Mapping[str, float]]:
    # Not kept open: a thousand workloads have ten thousand files, which may be the service's limit.
    values: dict[str, Mapping[str, float]] = {}
    for file in FILES:
        try:
            values[file] = cgroup.read_once(file)
        except CgroupError:  # the controller is not enabled, or this kernel does not have the file
            pass
    return values
