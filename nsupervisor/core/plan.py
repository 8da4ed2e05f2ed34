"""Plan a reload: the steps from what runs to what a file wants, instance by instance. Pure.

Four rules hold:

1. An instance without differences is left alone; one that differs in live keys alone keeps its process.
2. A stopped instance stays stopped, whatever has changed about it: it takes the change at its next start.
3. A new instance starts if `autostart` says so, after all that it requires, as at the start of the service.
4. An instance is identified by its name. A workload of one instance is NAME, of several NAME@1, NAME@2 and so on: from
   one to several NAME stops and all of those start: they differ in host name, cgroup and NSUPERVISOR_INSTANCE.
"""

import enum
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import attrs

from nsupervisor.config.checks import ORDERING_KEYS, limit_conflicts
from nsupervisor.config.model import Config, Resources, Workload
from nsupervisor.core import order
from nsupervisor.core.differences import Change, differences, group_differences, merged, supervisor_differences
from nsupervisor.core.instances import instances
from nsupervisor.core.states import ALIVE, State
from nsupervisor.wire import by_wire_name

FIXED = ("name", "runtime_directory")
"""Keys of [supervisor] that identify the service; a reload cannot change them."""
_FILES = "environment_file"


class Do(enum.Enum):
    """The action of a reload on one instance."""

    NONE = "none"
    LIVE = "live"
    RESTART = "restart"
    START = "start"
    STOP = "stop"


@attrs.frozen
class Files:
    """Changes of a program's environment files since it was started."""

    differ: bool = False
    """Their contents have changed."""
    problem: str = ""
    """Why they cannot be read now, or ""."""


@attrs.frozen
class Running:
    """One instance that the service has."""

    name: str
    workload: Workload
    """Its configuration in the file in force."""
    resources: Resources
    """The limits in force: the file's, or those set at run time."""
    state: State = State.STOPPED
    wanted: bool = False
    """Whether it shall run: it runs, it will by itself, or it has ended by itself."""
    waits: bool = False
    """Its start waits for other workloads."""
    touched: bool = False
    """It has been started at least once."""
    leaving: bool = False
    """An earlier reload is removing it."""
    fits: bool | None = None
    """For a process started by an earlier supervisor from a different file: whether it matches the new file.

    None if the process was started from `workload`.
    """
    files: Files = Files()


@attrs.frozen
class Step:
    """The action for one instance, and its reason."""

    name: str
    do: Do
    why: str = ""
    changes: tuple[Change, ...] = ()
    workload: Workload | None = None
    """The configuration to apply; None if the instance is removed."""
    instance: int | None = None
    resources: Resources | None = None
    """The limits to apply to the instance."""
    known: bool = True
    """The service has the instance already."""


@attrs.frozen
class Plan:
    """Steps for all instances: those of the file in its order, then the removed ones."""

    steps: tuple[Step, ...]
    service: tuple[Change, ...] = ()
    """Differences in [supervisor] between the files."""
    groups: tuple[Change, ...] = ()
    """Differences in groups and in [host]; all of them are live."""

    def plain(self, path: str) -> dict[str, Any]:
        """Return the object `Plan` of `nsupervisor schema api`; `path` is the path of the file."""
        return {
            "config": path,
            "service": [by_wire_name(change) for change in self.service],
            "groups": [by_wire_name(change) for change in self.groups],
            "steps": [
                {
                    "name": step.name,
                    "do": step.do.value,
                    "why": step.why,
                    "changes": [by_wire_name(change) for change in step.changes],
                }
                for step in self.steps
            ],
        }

    @property
    def refused(self) -> tuple[Change, ...]:
        """Return the changes that a running service cannot apply."""
        return tuple(change for change in self.service if change.key in FIXED)


def plan(old: Config | None, new: Config, running: Sequence[Running]) -> Plan:
    """Plan the steps from what runs to what `new` wants.

    `old` is the file in force, or None if no service runs.
    """
    known = {current.name: current for current in running}
    family: dict[str, list[Running]] = {}
    for current in running:
        family.setdefault(current.workload.name, []).append(current)
    steps: dict[str, Step] = {}
    for name, (workload_name, number) in instances(new).items():
        workload = new.workloads[workload_name]
        if (existing := known.get(name)) is not None:
            steps[name] = attrs.evolve(_plan_existing(existing, workload), workload=workload, instance=number)
        else:
            do, why = _decide_new(workload, family.get(workload_name, ()))
            steps[name] = Step(name, do, why, (), workload, number, workload.resources, known=False)
    idle = {instance.name for instance in running if not (instance.wanted or instance.touched)}
    idle |= {name for name, (workload, _) in instances(new).items() if workload not in family}
    _start_requirements(steps, new, idle)
    for name, current in known.items():
        if name not in steps:
            steps[name] = Step(name, Do.STOP, _removal_reason(current, new))
    service = () if old is None else supervisor_differences(old.supervisor, new.supervisor)
    groups = () if old is None else group_differences(old, new)
    return Plan(tuple(steps.values()), service, groups)


def _plan_existing(current: Running, workload: Workload) -> Step:
    """Plan the step of an instance that stays."""
    changes = differences(current.workload, workload)
    if current.files.differ and _has_started(current) and not any(change.key == _FILES for change in changes):
        changes = (*changes, Change(_FILES, "contents", None, None, live=False))
    resources, limits_note = _target_limits(current, workload)
    action, reason = _choose_action(current, workload, changes)
    return Step(
        current.name, action, "; ".join(part for part in (reason, limits_note) if part), changes, resources=resources
    )


def _choose_action(current: Running, workload: Workload, changes: Sequence[Change]) -> tuple[Do, str]:
    restart_keys = [change.key for change in changes if not change.live]
    live_action = Do.LIVE if changes else Do.NONE
    if not current.wanted:
        reason = "is stopped" if current.touched else "was not started"
        when_applied = "; it takes this at its next start" if restart_keys else ""
        autostart = any(change.key == "autostart" for change in changes) and workload.autostart
        hint = f"; autostart counts when the service starts: nsupervisor start {current.name}" if autostart else ""
        return live_action, f"{reason}, and stays so{when_applied}{hint}"
    if current.leaving and current.state in (State.STOPPING, State.STOPPED):
        return Do.START, "was being removed, and is in the file again"
    if current.waits:
        moved = any(change.key.partition("[")[0] in ORDERING_KEYS for change in changes)
        return (
            (Do.RESTART, "its start begins to wait again")
            if moved
            else (live_action, "its start still waits for others")
        )
    if current.fits and current.state in ALIVE:
        return live_action, "what runs was started with just this"
    if current.fits is False and not restart_keys and current.state in ALIVE:
        return (
            Do.RESTART,
            "what runs was started by an earlier supervisor, with what its file said; it needs a new process",
        )
    if not restart_keys:
        if current.files.problem and current.state in ALIVE:
            problem = f"{_FILES} cannot be read now: {current.files.problem}"
            return live_action, f"it keeps the environment that it has, as {problem}"
        return live_action, ""
    if current.state is State.EXITED:
        return live_action, "has ended by itself; it takes this at its next start"
    names = [change.key.partition(".")[0].partition("[")[0] for change in changes if not change.live]
    if any(change.how == "contents" for change in changes):
        names[-1] = f"contents of {_FILES}"
    keys = ", ".join(dict.fromkeys(names))
    reason = f"{keys} {'need' if ', ' in keys or ' ' in keys else 'needs'} a new process"
    if current.state is State.FROZEN:
        reason += ", which thaws it"
    elif current.state not in ALIVE:
        reason = f"it is in {current.state.value}: tried again with the new {keys}"
    return Do.RESTART, reason


def _has_started(current: Running) -> bool:
    """Check whether the instance uses the environment of its last start.

    An instance at rest reads its environment again when it starts.
    """
    return current.wanted and not current.waits and current.state not in (State.EXITED, State.STOPPED)


def _target_limits(current: Running, workload: Workload) -> tuple[Resources, str]:
    """Return the limits to apply, and a note about limits that were set at run time."""
    resources = merged(current.workload.resources, workload.resources, current.resources)
    if resources == workload.resources:
        return resources, ""
    if any(limit_conflicts(attrs.evolve(workload, resources=resources), ())):
        return workload.resources, "limits set at run time do not fit any more, and are given up for the file's"
    return resources, "limits set at run time stay, as the file has not changed them"


def _decide_new(workload: Workload, family: Iterable[Running]) -> tuple[Do, str]:
    """Decide whether an instance that the service does not have yet is started."""
    siblings = list(family)
    if not siblings:
        return (Do.START, "new") if workload.autostart else (Do.NONE, "new, and not started: autostart = false")
    old_count = siblings[0].workload.instances
    reason = f"instances {old_count} → {workload.instances}" if old_count != workload.instances else "new"
    if any(sibling.wanted for sibling in siblings):
        return Do.START, reason
    return Do.NONE, f"{reason}; not started, as {workload.name} is stopped"


def _removal_reason(current: Running, new: Config) -> str:
    workload = new.workloads.get(current.workload.name)
    if workload is None:
        return "is not in the file any more"
    reason = f"instances {current.workload.instances} → {workload.instances}"
    if workload.instances == 1:
        return f"{reason}: a single instance is called {workload.name}"
    if current.name == workload.name:
        return f"{reason}: they are called {current.name}@1 to {current.name}@{workload.instances}"
    return reason


def _start_requirements(steps: dict[str, Step], new: Config, idle: Collection[str]) -> None:
    """Also start idle instances that the starting ones require or want; no command has started or stopped them yet."""
    edges = {name: (*workload.requires, *workload.wants) for name, workload in new.workloads.items()}
    needed_by: dict[str, str] = {}
    for step in steps.values():
        if step.do in (Do.START, Do.RESTART) and step.workload is not None:
            for name in order.closure(edges[step.workload.name], edges):
                needed_by.setdefault(name, step.name)
    for name, step in steps.items():
        if name in idle and step.do in (Do.NONE, Do.LIVE) and step.workload and step.workload.name in needed_by:
            steps[name] = attrs.evolve(step, do=Do.START, why=f"{needed_by[step.workload.name]} needs it")
