"""Read what a scrape of the metrics shows of instances and groups."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.core.phases import HOOK_KEYS
from nsupervisor.metrics.counters import EXIT_KINDS, RESTART_CAUSES, STREAMS
from nsupervisor.metrics.snapshot import GroupSnapshot, InstanceSnapshot
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


async def read_snapshots(
    actors: Mapping[str, Actor], groups: Mapping[str, Group]
) -> tuple[list[InstanceSnapshot], list[GroupSnapshot]]:
    """Read the present values of all instances and groups, including the files of their cgroups.

    Other tasks run after each instance: a rule must not wait for a thousand of them.
    """
    instances = []
    for actor in list(actors.values()):
        instances.append(_read_instance(actor))
        await trio.lowlevel.checkpoint()
    return instances, [
        GroupSnapshot({"group": group.config.name}, len(group.members), _read_files(group.cgroup))
        for group in groups.values()
    ]


def _read_instance(actor: Actor) -> InstanceSnapshot:
    lifecycle, counters = actor.lifecycle, actor.counters
    labels = {"workload": actor.workload.name}
    if actor.instance is not None:
        labels["workload_instance"] = str(actor.instance)
    return InstanceSnapshot(
        labels=labels,
        state=lifecycle.state.value,
        is_ready=lifecycle.is_alive and actor.is_up,
        generation=lifecycle.generation,
        uptime=trio.current_time() - lifecycle.started_at if lifecycle.is_alive else None,
        exits=dict.fromkeys(EXIT_KINDS, 0) | counters.exits,
        restarts=dict.fromkeys(RESTART_CAUSES, 0) | counters.restarts,
        actions={(rule.name, rule.action): 0 for rule in actor.workload.policy} | counters.actions,
        probes={(kind, success): 0 for kind in actor.workload.probes for success in (True, False)} | counters.probes,
        probe_verdicts={
            kind: latest.state.verdict
            for kind, latest in actor.probe_results.items()
            if latest.state.verdict is not None
        },
        probe_seconds={kind: latest.took_s for kind, latest in actor.probe_results.items()},
        hook_seconds=dict(counters.hook_seconds),
        hook_failures={key: 0 for key in HOOK_KEYS.values() if getattr(actor.workload, key)} | counters.hook_failures,
        output={stream: (volume.bytes, volume.lines) for stream, volume in counters.output.items()},
        dropped_lines={stream: volume.dropped_lines for stream, volume in counters.output.items()},
        limited_bytes={stream: volume.limited_bytes for stream, volume in counters.output.items()},
        blocked_sec=dict.fromkeys(STREAMS, 0.0)
        | {stream: blockage.seconds for stream, blockage in actor.output.blockages().items()},
        traffic=actor.traffic(),
        files=_read_files(actor.cgroup),
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
