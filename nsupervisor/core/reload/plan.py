"""Plan a reload: the steps from what runs to what a file wants, instance by instance. Pure.

Four rules hold:

1. An instance without differences is left alone; one that differs in live keys alone keeps its process.
2. A stopped instance stays stopped, whatever has changed about it: it takes the change at its next start.
3. A new instance starts if `autostart` says so, after all that it requires, as at the start of the service.
4. An instance is identified by its name. A workload of one instance is NAME, of several NAME@1, NAME@2 and so on: from
   one to several NAME stops and all of those start: they differ in host name, cgroup and NSUPERVISOR_INSTANCE.
"""

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import attrs

from nsupervisor.config import kinds
from nsupervisor.config.checks import find_limit_conflicts
from nsupervisor.config.expansion import Instance
from nsupervisor.config.model import Config, Resources, WorkloadConfig
from nsupervisor.config.relations import ORDERING_KEYS
from nsupervisor.config.to_toml import to_toml
from nsupervisor.core import dependencies
from nsupervisor.core.instances import expand_instances
from nsupervisor.core.reload.differences import (
    Change,
    group_differences,
    merge_limits,
    supervisor_differences,
    workload_differences,
)
from nsupervisor.core.reload.start_changes import START_REVISION, find_start_changes
from nsupervisor.core.states import ALIVE_STATES, State
from nsupervisor.wire_names import by_wire_name

IMMUTABLE_KEYS = ("name", "runtime_directory", "state_directory")
"""Keys of [supervisor] that identify the service and its state; a reload cannot change them."""
_ENVIRONMENT_FILE_KEY = "environment_file"


class InstanceAction(enum.Enum):
    """The action of a reload on one instance."""

    NONE = "none"
    LIVE = "live"
    RESTART = "restart"
    START = "start"
    STOP = "stop"


@attrs.frozen
class EnvironmentFiles:
    """Changes of a program's environment files since it was started."""

    have_changed: bool = False
    """Their contents have changed."""
    problem: str = ""
    """Why they cannot be read now, or ""."""


@attrs.frozen
class CurrentInstance:
    """One instance that the service has."""

    name: str
    workload: WorkloadConfig
    """Its configuration in the file in force."""
    resources: Resources
    """The limits in force: the file's, or those set at run time."""
    state: State = State.STOPPED
    should_run: bool = False
    """Whether it shall run: it runs, it will by itself, or it has ended by itself."""
    is_waiting: bool = False
    """Its start waits for other workloads."""
    was_started: bool = False
    """It has been started at least once."""
    is_being_removed: bool = False
    """An earlier reload is removing it."""
    matches_new_file: bool | None = None
    """For a process started by an earlier supervisor from a different file: whether it matches the new file.

    None if the process was started from `workload`.
    """
    start_revision: int = START_REVISION
    """The revision of the version that started its process (`nsupervisor.core.reload.start_changes`)."""
    environment_files: EnvironmentFiles = EnvironmentFiles()


@attrs.frozen
class InstancePlan:
    """The action for one instance, and its reason."""

    name: str
    action: InstanceAction
    reason: str = ""
    changes: tuple[Change, ...] = ()
    workload: WorkloadConfig | None = None
    """The configuration to apply; None if the instance is removed."""
    number: Instance | None = None
    resources: Resources | None = None
    """The limits to apply to the instance."""
    exists: bool = True
    """The service has the instance already."""
    start_changes: tuple[str, ...] = ()
    """Differences of its next start, if an earlier version started what runs."""


@attrs.frozen
class Plan:
    """Steps for all instances: those of the file in its order, then the removed ones."""

    steps: tuple[InstancePlan, ...]
    supervisor_changes: tuple[Change, ...] = ()
    """Differences in [supervisor] between the files."""
    group_changes: tuple[Change, ...] = ()
    """Differences in groups and in [host]; all of them are live."""

    def to_json(self, path: str) -> dict[str, Any]:
        """Return the object `Plan` of `nsupervisor schema api`; `path` is the path of the file."""
        return {
            "config": path,
            "service": [by_wire_name(change) for change in self.supervisor_changes],
            "groups": [by_wire_name(change) for change in self.group_changes],
            "steps": [
                {
                    "name": step.name,
                    "do": step.action.value,
                    "why": step.reason,
                    "changes": [by_wire_name(change) for change in step.changes],
                    "next_start": list(step.start_changes),
                }
                for step in self.steps
            ],
        }

    @property
    def refused_changes(self) -> tuple[Change, ...]:
        """Return the changes that a running service cannot apply."""
        return tuple(change for change in self.supervisor_changes if change.key in IMMUTABLE_KEYS)


def make_plan(old: Config | None, new: Config, running: Sequence[CurrentInstance]) -> Plan:
    """Plan the steps from what runs to what `new` wants.

    `old` is the file in force, or None if no service runs.
    """
    current_by_name = {current.name: current for current in running}
    instances_of: dict[str, list[CurrentInstance]] = {}
    for current in running:
        instances_of.setdefault(current.workload.name, []).append(current)
    steps: dict[str, InstancePlan] = {}
    for name, (workload_name, number) in expand_instances(new).items():
        workload = new.workloads[workload_name].for_instance(number)
        if (existing := current_by_name.get(name)) is not None:
            steps[name] = attrs.evolve(_plan_existing(existing, workload), workload=workload, number=number)
        else:
            action, reason = _decide_new(workload, instances_of.get(workload_name, ()))
            steps[name] = InstancePlan(name, action, reason, (), workload, number, workload.resources, exists=False)
    _restart_together(steps, current_by_name)
    idle = {instance.name for instance in running if not (instance.should_run or instance.was_started)}
    idle |= {name for name, (workload, _) in expand_instances(new).items() if workload not in instances_of}
    _start_requirements(steps, new, current_by_name, idle)
    for name, current in current_by_name.items():
        if name not in steps:
            steps[name] = InstancePlan(name, InstanceAction.STOP, _removal_reason(current, new))
    service = () if old is None else supervisor_differences(old.supervisor, new.supervisor)
    groups = () if old is None else group_differences(old, new)
    return Plan(tuple(steps.values()), service, groups)


def _plan_existing(current: CurrentInstance, workload: WorkloadConfig) -> InstancePlan:
    """Plan the step of an instance that stays."""
    changes = workload_differences(current.workload, workload)
    if (
        current.environment_files.have_changed
        and _has_started(current)
        and not any(change.key == _ENVIRONMENT_FILE_KEY for change in changes)
    ):
        changes = (*changes, Change(_ENVIRONMENT_FILE_KEY, "contents", None, None, is_live=False))
    resources, limits_note = target_limits(current.workload, workload, current.resources)
    action, reason = _choose_action(current, workload, changes)
    reasons = "; ".join(part for part in (reason, limits_note) if part)
    is_alive = current.state in ALIVE_STATES
    start_changes = find_start_changes(workload, current.start_revision) if is_alive else ()
    return InstancePlan(current.name, action, reasons, changes, resources=resources, start_changes=start_changes)


def _choose_action(
    current: CurrentInstance, workload: WorkloadConfig, changes: Sequence[Change]
) -> tuple[InstanceAction, str]:
    restart_keys = [change.key for change in changes if not change.is_live]
    live_action = InstanceAction.LIVE if changes else InstanceAction.NONE
    if not current.should_run:
        reason = "is stopped" if current.was_started else "was not started"
        when_applied = "; it takes this at its next start" if restart_keys else ""
        autostart = any(change.key == "autostart" for change in changes) and workload.starts_with_service
        hint = f"; autostart counts when the service starts: nsupervisor start {current.name}" if autostart else ""
        return live_action, f"{reason}, and stays so{when_applied}{hint}"
    if current.is_being_removed and current.state in (State.STOPPING, State.STOPPED):
        return InstanceAction.START, "was being removed, and is in the file again"
    if current.is_waiting:
        moved = any(change.key.partition("[")[0] in ORDERING_KEYS for change in changes)
        return (
            (InstanceAction.RESTART, "its start begins to wait again")
            if moved
            else (live_action, "its start still waits for others")
        )
    if current.matches_new_file and current.state in ALIVE_STATES:
        return live_action, "what runs was started with just this"
    if current.matches_new_file is False and not restart_keys and current.state in ALIVE_STATES:
        return (
            InstanceAction.RESTART,
            "what runs was started by an earlier supervisor, with what its file said; it needs a new process",
        )
    if not restart_keys:
        if current.environment_files.problem and current.state in ALIVE_STATES:
            problem = f"{_ENVIRONMENT_FILE_KEY} cannot be read now: {current.environment_files.problem}"
            return live_action, f"it keeps the environment that it has, as {problem}"
        return live_action, ""
    if current.state is State.EXITED:
        return live_action, "has ended by itself; it takes this at its next start"
    names = [change.key.partition(".")[0].partition("[")[0] for change in changes if not change.is_live]
    if any(change.kind == "contents" for change in changes):
        names[-1] = f"contents of {_ENVIRONMENT_FILE_KEY}"
    keys = ", ".join(dict.fromkeys(names))
    reason = f"{keys} {'need' if ', ' in keys or ' ' in keys else 'needs'} a new process"
    if current.state is State.FROZEN:
        reason += ", which thaws it"
    elif current.state not in ALIVE_STATES:
        reason = f"it is in {current.state.value}: tried again with the new {keys}"
    return InstanceAction.RESTART, reason


def _has_started(current: CurrentInstance) -> bool:
    """Check whether the instance uses the environment of its last start.

    An instance at rest reads its environment again when it starts.
    """
    return current.should_run and not current.is_waiting and current.state not in (State.EXITED, State.STOPPED)


def target_limits(old: WorkloadConfig, new: WorkloadConfig, in_force: Resources) -> tuple[Resources, str]:
    """Return the limits to have after a reload, and a note about limits that were set at run time."""
    resources = merge_limits(old.resources, new.resources, in_force)
    if resources == new.resources:
        return resources, ""
    if any(find_limit_conflicts(attrs.evolve(new, resources=resources), ())):
        return new.resources, "limits set at run time do not fit any more, and are given up for the file's"
    return resources, "limits set at run time stay, as the file has not changed them"


def _decide_new(workload: WorkloadConfig, siblings_seen: Iterable[CurrentInstance]) -> tuple[InstanceAction, str]:
    """Decide whether an instance that the service does not have yet is started."""
    siblings = list(siblings_seen)
    if not siblings:
        if workload.starts_with_service:
            return InstanceAction.START, "new"
        why = f"its {workload.starts_by} starts it" if workload.autostart else "not started: autostart = false"
        return InstanceAction.NONE, f"new, and {why}"
    old = siblings[0].workload
    reason = "new" if old.instances == workload.instances else _instances_change(old, workload)
    if any(sibling.should_run for sibling in siblings):
        return InstanceAction.START, reason
    return InstanceAction.NONE, f"{reason}; not started, as {workload.name} is stopped"


def _removal_reason(current: CurrentInstance, new: Config) -> str:
    workload = new.workloads.get(current.workload.name)
    if workload is None:
        return "is not in the file any more"
    reason = _instances_change(current.workload, workload)
    if workload.instances == 1:
        return f"{reason}: a single instance is called {workload.name}"
    if current.name == workload.name:
        names = [workload.instance_name(instance) for instance in workload.instance_ids]
        return f"{reason}: they are called {names[0]} to {names[-1]}"
    return reason


def _instances_change(old: WorkloadConfig, new: WorkloadConfig) -> str:
    return f"instances {to_toml(kinds.INSTANCES, old.instances)} → {to_toml(kinds.INSTANCES, new.instances)}"


def _restart_together(steps: dict[str, InstancePlan], current_by_name: Mapping[str, CurrentInstance]) -> None:
    """Also restart what is bound to, or part of, a workload of which an instance restarts, if it runs."""
    restarting = [
        step.workload.name
        for step in steps.values()
        if step.workload is not None
        and step.action is InstanceAction.RESTART
        and current_by_name[step.name].state in ALIVE_STATES
    ]
    parts: dict[str, list[tuple[str, str]]] = {}
    for name, step in steps.items():
        if step.workload is not None:
            for other, key in dependencies.restarted_with(step.workload).items():
                parts.setdefault(other, []).append((name, key))
    for workload_name in restarting:  # grows in the loop
        for name, key in parts.get(workload_name, ()):
            step, current = steps[name], current_by_name.get(name)
            is_idle = step.action in (InstanceAction.NONE, InstanceAction.LIVE)
            if current is None or step.workload is None or not is_idle:
                continue
            if current.should_run and current.state in ALIVE_STATES:
                reason = f"restarts with {workload_name} ({key})"
                steps[name] = attrs.evolve(step, action=InstanceAction.RESTART, reason=reason)
                restarting.append(step.workload.name)


def _start_requirements(
    steps: dict[str, InstancePlan], new: Config, current_by_name: Mapping[str, CurrentInstance], idle: Collection[str]
) -> None:
    """Also start idle instances that the starting ones require or want; no command has started or stopped them yet.

    The same holds for what a running instance requires or wants only in the new file. If such a requirement is not up
    and cannot be started here, its step says so.
    """
    edges = {name: dependencies.started_along(workload) for name, workload in new.workloads.items()}
    needed_by: dict[str, str] = {}
    newly_required_by: dict[str, str] = {}
    for step in steps.values():
        if step.workload is None:
            continue
        needed = edges[step.workload.name]
        if step.action not in (InstanceAction.START, InstanceAction.RESTART):
            current = current_by_name.get(step.name)
            if current is None or not current.should_run:
                continue
            before = dependencies.started_along(current.workload)
            needed = tuple(name for name in needed if name not in before)
            for name in needed:
                if name in dependencies.names(step.workload.requires):
                    newly_required_by.setdefault(name, step.name)
        for name in dependencies.transitive_closure(needed, edges):
            needed_by.setdefault(name, step.name)
    for name, step in steps.items():
        if (
            name in idle
            and step.action in (InstanceAction.NONE, InstanceAction.LIVE)
            and step.workload
            and step.workload.name in needed_by
        ):
            steps[name] = attrs.evolve(
                step, action=InstanceAction.START, reason=f"{needed_by[step.workload.name]} needs it"
            )
        elif (
            step.action in (InstanceAction.NONE, InstanceAction.LIVE)
            and step.workload
            and step.workload.name in newly_required_by
            and (current := current_by_name.get(name)) is not None
            and (not current.should_run or current.state is State.FAILED)
        ):
            note = f"{newly_required_by[step.workload.name]} requires it now, and runs on without it"
            state = step.reason or f"is {current.state.value}"
            steps[name] = attrs.evolve(step, reason=f"{state}; {note}: nsupervisor start {name}")
