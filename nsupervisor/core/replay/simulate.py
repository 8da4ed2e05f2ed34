"""Simulate a configuration on a trace: the actions of all workloads and groups, compared with the recorded ones."""

import random
from collections.abc import Mapping

import attrs

from nsupervisor.config.model import Config
from nsupervisor.core.instances import expand_instances
from nsupervisor.core.replay.compare import ComparisonRow, TimedAction, align
from nsupervisor.core.replay.group import ReplayedGroups
from nsupervisor.core.replay.trace import Line, Trace
from nsupervisor.core.replay.workload import ReplayedWorkload


@attrs.frozen
class SimulationResult:
    """The result of a simulation."""

    rows: tuple[ComparisonRow, ...]
    warnings: tuple[str, ...]
    diverged_at: Mapping[str, float]
    """Workloads and groups whose simulated lifecycle diverged from the recorded one, with the time of it."""
    duration_s: float
    """The duration of the trace, in seconds."""
    groups: frozenset[str] = frozenset()
    """The names in `diverged_at` and in the rows that belong to groups or to the host."""


def simulate(config: Config, trace: Trace, seed: int = 0) -> SimulationResult:
    """Replay a trace through a configuration; `seed` determines the jitter."""
    recorded: Mapping[str, Line] = trace.head["workloads"]
    recorded_groups = frozenset(trace.head.get("groups", {}))
    workloads: dict[str, ReplayedWorkload] = {}
    instances = expand_instances(config)
    warnings: list[str] = []
    for name, recorded_config in recorded.items():
        workload = config.workloads.get(name.partition("@")[0])
        if workload is not None and name in instances:
            workload = workload.for_instance(instances[name][1])
        if workload is None:
            warnings.append(f"{name} is in the trace, but not in the configuration: nothing would have been done")
        else:
            jitter = random.Random(f"{seed}:{name}")  # noqa: S311 - no secret
            workloads[name] = ReplayedWorkload(
                name, workload, recorded_config, jitter, recorded_groups, lambda group: groups.is_uncertain(group)
            )
    recorded_workloads = {name.partition("@")[0] for name in recorded}
    warnings += [
        f"{name} is not in the trace: nothing is known of it"
        for name in config.workloads
        if name not in recorded_workloads
    ]
    groups = ReplayedGroups(config, trace, workloads)
    other_actions: list[TimedAction] = []
    end = trace.began_at
    for line in trace.lines:
        end = max(end, float(line["t"]))
        if "sample" in line:
            for name, snapshot in line["sample"].items():
                if name in workloads:
                    workloads[name].handle_sample(line["t"], snapshot, line.get("whole", {}).get(name, ()))
            groups.handle_sample(line)
        elif (addressed := workloads.get(line.get("of", ""))) is not None:
            if line.get("event") == "Execed" and line["generation"] == addressed.state.lifecycle.generation:
                groups.member_started(addressed.name)
            addressed.handle_line(line)
        elif (group := groups.by_name.get(line.get("of", ""))) is not None:
            group.handle_line(line)
        elif "of" in line:
            other_actions += [TimedAction(line["t"], record) for record in line.get("did", ())]
    for lifecycle in workloads.values():
        lifecycle.advance_to(end)
        warnings += lifecycle.warnings()
    warnings += groups.warnings()
    if not trace.is_complete:
        warnings.append("the trace has no end: it was cut off, and something may be missing")
    rows = [row for lifecycle in workloads.values() for row in lifecycle.rows(trace.began_at)]
    missing = [name for name in recorded if name not in workloads]
    rows += [row for name in missing for row in align(name, _recorded_actions(trace, name), [], trace.began_at)]
    rows += [
        row
        for group in groups.by_name.values()
        for row in align(group.name, group.recorded_actions, group.simulated_actions, trace.began_at)
    ]
    rows.sort(key=lambda row: row.time_s)  # a stable sort: actions at one time keep their order
    times = {name: lifecycle.diverged_at for name, lifecycle in workloads.items()} | groups.diverged_at()
    diverged_at = {name: round(at - trace.began_at, 6) for name, at in times.items() if at is not None}
    return SimulationResult(
        tuple(rows), tuple(warnings), diverged_at, round(end - trace.began_at, 6), frozenset(groups.by_name)
    )


def _recorded_actions(trace: Trace, name: str) -> list[TimedAction]:
    return [
        TimedAction(line["t"], record)
        for line in trace.lines
        if line.get("of") == name
        for record in line.get("did", ())
    ]
