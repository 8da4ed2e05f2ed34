"""What a scrape shows, read at one moment in the event loop; text is made of it elsewhere, by somebody with time."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio

from nsupervisor.api.http.errors import ConnectionErrors
from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.metrics.counters import EXITS, RESTARTS
from nsupervisor.metrics.measures import Histogram, Measures

TYPE_CHECKING = False
if TYPE_CHECKING:  # the service imports us
    from nsupervisor.logs import Journal
    from nsupervisor.service.actor import Actor
    from nsupervisor.service.group import Group

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
class Instance:
    """One workload instance."""

    labels: Mapping[str, str]
    state: str
    ready: bool
    generation: int
    uptime: float | None
    """Seconds; None while it does not live."""
    exits: Mapping[str, int]
    restarts: Mapping[str, int]
    actions: Mapping[tuple[str, str], int]
    """By (rule, action): those of all its rules, also those that have not gone off yet."""
    output: Mapping[str, tuple[int, int]]
    """By stream: (bytes, lines)."""
    files: Mapping[str, Mapping[str, float]]
    """By v2 name, as `Cgroup.read` has them; without those that this host has not."""

    @classmethod
    def of(cls, actor: Actor) -> Instance:
        """As it is now. Reads the cgroup's files."""
        life, counters = actor.life, actor.counters
        labels = {"workload": actor.workload.name}
        if actor.instance is not None:
            labels["workload_instance"] = str(actor.instance)
        return cls(
            labels=labels,
            state=life.state.value,
            ready=life.alive and actor.up,
            generation=life.generation,
            uptime=trio.current_time() - life.started_at if life.alive else None,
            exits=dict.fromkeys(EXITS, 0) | counters.exits,
            restarts=dict.fromkeys(RESTARTS, 0) | counters.restarts,
            actions={(rule.name, rule.action): 0 for rule in actor.workload.policy} | counters.actions,
            output={stream: (volume.bytes, volume.lines) for stream, volume in counters.output.items()},
            files=_files(actor.cgroup),
        )


@attrs.frozen
class Together:
    """What the members of a group use together."""

    labels: Mapping[str, str]
    members: int
    files: Mapping[str, Mapping[str, float]]
    """As `Instance.files`."""

    @classmethod
    def of(cls, group: Group) -> Together:
        """As it is now. Reads the cgroup's files."""
        return cls({"group": group.config.name}, len(group.members), _files(group.cgroup))


@attrs.frozen
class Service:
    """The service itself."""

    loop: Histogram
    reaction: Histogram
    keeper: Mapping[str, Histogram]
    dropped: int
    journal_fails: bool
    keeper_pid: int
    connection_errors: Mapping[tuple[str, str], int]
    """By (listener, kind)."""

    @classmethod
    def of(cls, measures: Measures, journal: Journal, keeper_pid: int, errors: ConnectionErrors) -> Service:
        """As it is now."""
        return cls(
            loop=measures.loop.copy(),
            reaction=measures.reaction.copy(),
            keeper={request: histogram.copy() for request, histogram in measures.keeper.items()},
            dropped=journal.dropped,
            journal_fails=journal.error is not None,
            keeper_pid=keeper_pid,
            connection_errors=errors.counts.copy(),
        )


def _files(cgroup: Cgroup) -> dict[str, Mapping[str, float]]:
    # Not kept open: of a thousand workloads they would be ten thousand, and a service may have so many in all.
    found: dict[str, Mapping[str, float]] = {}
    for file in FILES:
        try:
            found[file] = cgroup.look(file)
        except CgroupError:  # its controller is not there, or this kernel does not measure that
            pass
    return found
