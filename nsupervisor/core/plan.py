"""What a reload has to do: from what runs to what a file wants, instance by instance. Pure.

Four rules hold:

1. What does not differ is left alone; what differs in live keys alone keeps its process.
2. What somebody has stopped stays stopped, whatever has changed about it: it takes the change at its next start.
3. What is new starts if ``autostart`` says so, after all that it requires, as at the service's start.
4. An instance is known by its name. A workload of one instance is NAME, of several NAME@1, NAME@2 and so on: from one
   to several NAME stops and all of those start: they differ in host name, cgroup and NSUPERVISOR_INSTANCE.
"""

import enum
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import attrs

from nsupervisor.config.checks import limit_conflicts
from nsupervisor.config.model import Config, Resources, Workload
from nsupervisor.core import order
from nsupervisor.core.differences import Change, differences, group_differences, merged, supervisor_differences
from nsupervisor.core.instances import instances
from nsupervisor.core.states import ALIVE, State

FIXED = ("name", "runtime_directory")
"""Keys of [supervisor] that say which service it is: one that runs cannot become another."""
_FILES = "environment_file"
_ORDER_KEYS = ("requires", "wants", "after")


class Do(enum.Enum):
    """What is done to an instance."""

    NONE = "none"
    LIVE = "live"
    RESTART = "restart"
    START = "start"
    STOP = "stop"


@attrs.frozen
class Files:
    """What has become of the environment files of a program since it was started."""

    differ: bool = False
    """They say something else now."""
    problem: str = ""
    """They cannot be read now, and why."""


@attrs.frozen
class Running:
    """One instance that the service has."""

    name: str
    workload: Workload
    """As the file that is in force has it."""
    resources: Resources
    """The limits in force: the file's, or what somebody has set since."""
    state: State = State.STOPPED
    wanted: bool = False
    """Somebody wants it to run: it runs, it will by itself, or it has ended by itself."""
    waits: bool = False
    """Its start waits for others."""
    touched: bool = False
    """It has been started once."""
    leaving: bool = False
    """It is on its way out, by an earlier reload."""
    fits: bool | None = None
    """Of what an earlier supervisor had started with another file than the one in force: whether it was with what the
    file says that is to come. None: it was started with ``workload``."""
    files: Files = Files()


@attrs.frozen
class Step:
    """What becomes of one instance, and why."""

    name: str
    do: Do
    why: str = ""
    changes: tuple[Change, ...] = ()
    workload: Workload | None = None
    """What it is to be; None where it goes."""
    instance: int | None = None
    resources: Resources | None = None
    """The limits that it is to have."""
    known: bool = True
    """The service has it already."""


@attrs.frozen
class Plan:
    """Steps for all instances: those of the file in its order, then those that go."""

    steps: tuple[Step, ...]
    service: tuple[Change, ...] = ()
    """What differs in [supervisor]."""
    groups: tuple[Change, ...] = ()
    """What differs in groups and in [host]; all of that is live."""

    def plain(self, path: str) -> dict[str, Any]:
        """The object `Plan` of `nsupervisor schema api`; ``path`` is the file's."""
        return {
            "config": path,
            "service": [attrs.asdict(change) for change in self.service],
            "groups": [attrs.asdict(change) for change in self.groups],
            "steps": [
                {
                    "name": step.name,
                    "do": step.do.value,
                    "why": step.why,
                    "changes": [attrs.asdict(change) for change in step.changes],
                }
                for step in self.steps
            ],
        }

    @property
    def refused(self) -> tuple[Change, ...]:
        """What no service can do while it runs."""
        return tuple(change for change in self.service if change.key in FIXED)


def plan(old: Config | None, new: Config, running: Sequence[Running]) -> Plan:
    """How to come from what runs to what ``new`` wants. ``old`` is the file in force; None where no service runs."""
    known = {one.name: one for one in running}
    family: dict[str, list[Running]] = {}
    for one in running:
        family.setdefault(one.workload.name, []).append(one)
    steps: dict[str, Step] = {}
    for name, (workload_name, number) in instances(new).items():
        workload = new.workloads[workload_name]
        if (present := known.get(name)) is not None:
            steps[name] = attrs.evolve(_step(present, workload), workload=workload, instance=number)
        else:
            do, why = _newcomer(workload, family.get(workload_name, ()))
            steps[name] = Step(name, do, why, (), workload, number, workload.resources, known=False)
    idle = {one.name for one in running if not (one.wanted or one.touched)}
    idle |= {name for name, (workload, _) in instances(new).items() if workload not in family}
    _with_requirements(steps, new, idle)
    for name, one in known.items():
        if name not in steps:
            steps[name] = Step(name, Do.STOP, _farewell(one, new))
    service = () if old is None else supervisor_differences(old.supervisor, new.supervisor)
    groups = () if old is None else group_differences(old, new)
    return Plan(tuple(steps.values()), service, groups)


def _step(present: Running, workload: Workload) -> Step:
    """What becomes of an instance that stays."""
    changes = differences(present.workload, workload)
    if present.files.differ and _has_started(present) and not any(change.key == _FILES for change in changes):
        changes = (*changes, Change(_FILES, "contents", None, None, live=False))
    resources, kept = _limits(present, workload)
    do, why = _choice(present, workload, changes)
    return Step(present.name, do, "; ".join(part for part in (why, kept) if part), changes, resources=resources)


def _choice(present: Running, workload: Workload, changes: Sequence[Change]) -> tuple[Do, str]:
    heavy = [change.key for change in changes if not change.live]
    taken = Do.LIVE if changes else Do.NONE
    if not present.wanted:
        why = "is stopped" if present.touched else "was not started"
        later = "; it takes this at its next start" if heavy else ""
        autostart = any(change.key == "autostart" for change in changes) and workload.autostart
        hint = f"; autostart counts when the service starts: nsupervisor start {present.name}" if autostart else ""
        return taken, f"{why}, and stays so{later}{hint}"
    if present.leaving and present.state in (State.STOPPING, State.STOPPED):
        return Do.START, "was on its way out, and is in the file again"
    if present.waits:
        moved = any(change.key.partition("[")[0] in _ORDER_KEYS for change in changes)
        return (Do.RESTART, "its start waits anew") if moved else (taken, "its start still waits for others")
    if present.fits and present.state in ALIVE:
        return taken, "what runs was started with just this"
    if present.fits is False and not heavy and present.state in ALIVE:
        return (
            Do.RESTART,
            "what runs was started by an earlier supervisor, with what its file said; it needs a new process",
        )
    if not heavy:
        if present.files.problem and present.state in ALIVE:
            return (
                taken,
                f"it keeps the environment that it has, as {_FILES} cannot be read anew: {present.files.problem}",
            )
        return taken, ""
    if present.state is State.EXITED:
        return taken, "has ended by itself; it takes this at its next start"
    names = [change.key.partition(".")[0].partition("[")[0] for change in changes if not change.live]
    if any(change.how == "contents" for change in changes):
        names[-1] = f"contents of {_FILES}"
    keys = ", ".join(dict.fromkeys(names))
    what = f"{keys} {'need' if ', ' in keys or ' ' in keys else 'needs'} a new process"
    if present.state is State.FROZEN:
        what += ", which thaws it"
    elif present.state not in ALIVE:
        what = f"it is in {present.state.value}: tried anew with the new {keys}"
    return Do.RESTART, what


def _has_started(present: Running) -> bool:
    """And its environment counts: what rests takes the environment that there is when it starts anyway."""
    return present.wanted and not present.waits and present.state not in (State.EXITED, State.STOPPED)


def _limits(present: Running, workload: Workload) -> tuple[Resources, str]:
    """The limits to go to, and what is to be said of those that somebody has set at run time."""
    resources = merged(present.workload.resources, workload.resources, present.resources)
    if resources == workload.resources:
        return resources, ""
    if any(limit_conflicts(attrs.evolve(workload, resources=resources), ())):
        return workload.resources, "limits set at run time do not fit any more, and are given up for the file's"
    return resources, "limits set at run time stay, as the file has not changed them"


def _newcomer(workload: Workload, family: Iterable[Running]) -> tuple[Do, str]:
    """Whether an instance that the service has not got yet is started."""
    siblings = list(family)
    if not siblings:
        return (Do.START, "new") if workload.autostart else (Do.NONE, "new, and not started: autostart = false")
    before = siblings[0].workload.instances
    why = f"instances {before} → {workload.instances}" if before != workload.instances else "new"
    if any(one.wanted for one in siblings):
        return Do.START, why
    return Do.NONE, f"{why}; not started, as {workload.name} is stopped"


def _farewell(one: Running, new: Config) -> str:
    workload = new.workloads.get(one.workload.name)
    if workload is None:
        return "is not in the file any more"
    why = f"instances {one.workload.instances} → {workload.instances}"
    if workload.instances == 1:
        return f"{why}: a single instance is called {workload.name}"
    if one.name == workload.name:
        return f"{why}: they are called {one.name}@1 to {one.name}@{workload.instances}"
    return why


def _with_requirements(steps: dict[str, Step], new: Config, idle: Collection[str]) -> None:
    """Start, too, what those that start require or want, of what is idle: nobody has started or stopped it yet."""
    edges = {name: (*workload.requires, *workload.wants) for name, workload in new.workloads.items()}
    needs: dict[str, str] = {}
    for step in steps.values():
        if step.do in (Do.START, Do.RESTART) and step.workload is not None:
            for name in order.closure(edges[step.workload.name], edges):
                needs.setdefault(name, step.name)
    for name, step in steps.items():
        if name in idle and step.do in (Do.NONE, Do.LIVE) and step.workload and step.workload.name in needs:
            steps[name] = attrs.evolve(step, do=Do.START, why=f"{needs[step.workload.name]} needs it")
