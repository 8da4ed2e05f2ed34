"""The invariants of each history: checked at each record and process, when all is quiet, and after the end."""

from __future__ import annotations

import json
import signal
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nsupervisor.config.changes import parse_changes
from nsupervisor.config.model import NOTIFY_TYPES, Resources, WorkloadConfig
from nsupervisor.config.units import Percent
from nsupervisor.core.lifecycle import PROBED, start_type
from tests.chaos.invariants import AT_REST, STATES
from tests.simulation.configs import BRIEF_S, JOB_FILE, LAZY_ADDRESS, SERVED_ADDRESS, WEB_FILE, Kind
from tests.simulation.machine import LIMIT_FILES, ROOT, Cgroup, Machine, Process

if TYPE_CHECKING:
    from tests.simulation.history import Command, History

UP = frozenset({"running", "ready", "frozen"})
EPSILON_S = 0.001
"""Seconds by which the times of a decision and of its effect may differ."""
BETWEEN_GENERATIONS = frozenset({"stopped", "stopping", "backoff", "exited", "failed"})
REACTION_S = 3.0
"""Seconds that a rule has to react to a counter, with the next supervisor included."""


PAGE_SIZE = 4096
FILE_LIMITS = {
    ("group/batch", "memory_max"): "memory",
    ("group/batch", "pids_max"): "pids",
    ("part", "memory_max"): "share",
    ("part", "pids_max"): "part pids",
}
"""The choices of the kind "limits" by the limits that they change."""


def parse_limit(key: str, value: str) -> Mapping[str, Any]:
    """Return the changes of `nsupervisor set KEY=VALUE`."""
    return parse_changes({key: int(value) if value.isdecimal() else value})


class Watch:
    """Looks at each record and each process of a history, as they come."""

    def __init__(
        self, machine: Machine, kind: Kind, workloads: Mapping[str, WorkloadConfig], edited: Collection[str]
    ) -> None:
        self.machine, self.kind, self.workloads = machine, kind, workloads
        self.edited = edited
        """The choices that the history's steps edit; `workloads` are those before."""
        self.problems: list[str] = []
        self.shown: list[tuple[Any, ...]] = []
        """All records, without what differs from run to run."""
        self.records: list[tuple[float, str, dict[str, Any]]] = []
        self.starts: list[tuple[float, str]] = []
        """When each program was executed."""
        self.lives: list[float] = []
        """When each supervisor started."""
        self.reloads: list[float] = []
        self.adopted: set[str] = set()
        """Instances whose processes a supervisor found without a note of them: it took the oldest for the program, and
        began again with generation 1."""
        self.hits: set[int] = set()
        """The pids of programs that something outside has ended."""
        self.executed: dict[tuple[int, str], Process] = {}
        """By run of the service and id: each program that was executed."""
        self.removed: list[tuple[str, Process]] = []
        """The programs of instances that have been removed since."""
        self.may_repeat = False
        """Whether a supervisor may not know of a program that has ended: its checkpoint was not written, or the keeper
        died at about the same time as the supervisor."""
        self.epoch = 0
        """How often the service has stopped in order; generations are numbered from 1 after each time."""
        self.epoch_begins = [0]
        """The length of the stream of records at the begin of each epoch."""
        self.stopping_since: float | None = None
        self.states: dict[str, str] = {}
        self.limit_hits: list[float] = []
        """When a process was refused in the group, for the rule about that counter."""
        self.removals: Counter[str] = Counter()
        """How often an instance of each name has been removed."""
        self.stops: dict[str, float] = {}
        """By instance that stops: when its stop began; without those that were killed by a command or a rule."""
        self.early_kills: dict[str, tuple[float, str]] = {}
        """By instance: when it was killed too early, and the problem, unless the record of a rule's kill follows."""
        self.begun: dict[str, float] = {}
        """By instance: when its latest start was decided."""
        self.were_ready: set[str] = set()
        """The instances whose present generation has been ready."""
        machine.started_listeners.append(self._on_process)
        machine.limit_listeners.append(self._on_limit)
        machine.signal_listeners.append(self._on_signal)
        machine.kill_listeners.append(self._on_kill)

    def problem(self, text: str) -> None:
        """Note that something is wrong."""
        if text not in self.problems:
            self.machine.log("WRONG", text)
            self.problems.append(text)

    def on_start(self) -> None:
        """A supervisor starts."""
        self.lives.append(self.machine.now)
        self.stopping_since = None
        self.states.clear()
        self.were_ready.clear()  # the readiness that the supervisor before it learnt in its last moment is not saved

    def on_end(self, stream_length: int) -> None:
        """The service has ended in order."""
        self.epoch += 1
        self.epoch_begins.append(stream_length)

    def on_removed(self, name: str) -> None:
        """An instance has been removed; one of the same name begins with its first generation."""
        self.removals[name] += 1
        for key in [key for key in self.executed if key[1].rpartition("#")[0] == name]:
            self.removed.append((key[1], self.executed.pop(key)))

    def hit(self, process: Process) -> None:
        """Something outside ends a program."""
        self.hits.add(process.pid)

    def on_record(self, event: str, fields: Mapping[str, Any]) -> None:
        """A record has been made."""
        fields = dict(fields)
        self.records.append((self.machine.now, event, fields))
        self.shown.append(
            (round(self.machine.now, 6), event, fields.get("workload"), fields.get("to"), fields.get("code"))
        )
        if event == "supervisor stopping":
            self.stopping_since = self.machine.now
        if event == "reload":
            self.reloads.append(self.machine.now)
        if event == "orphans":
            self.adopted.add(fields["workload"])
        if event == "action" and fields.get("workload") == "brief" and "rule" in fields["cause"]:
            self._on_brief(f"brief#{fields['generation']}")
        if event == "state":
            name, state = fields["workload"], fields["to"]
            if state == "starting" and self._may_not_start(fields["from"]):
                self.problem(f"nothing starts: {name} starts after the service began to stop")
            if self.states.get(name, fields["from"]) != fields["from"]:
                self.problem(f"states chain: {name} goes from {fields['from']}, but was {self.states[name]}")
            self.states[name] = state
            self._on_state(name, fields["from"], state, fields["reason"])
        if event == "action" and fields["action"] == "kill":
            self.stops.pop(fields.get("workload", ""), None)
            self.early_kills.pop(fields.get("workload", ""), None)  # a rule kills whatever the stop that is in progress
        for name, (at, text) in list(self.early_kills.items()):
            if at < self.machine.now:
                self.problem(text)
                del self.early_kills[name]
        if (
            event == "action"
            and fields["action"] == "freeze"
            and "rule" in fields["cause"]
            and "group" in fields["cause"]
        ) and self.states.get(fields["workload"]) == "frozen":
            self.problem(f"victims: {fields['workload']} is frozen already and chosen again")

    def _may_not_start(self, state: str) -> bool:
        """Return whether the service stops, so that no generation begins from a state."""
        if self.stopping_since is None or state not in BETWEEN_GENERATIONS:
            return False
        # A restart whose exit was reported before the signal may be handled just after it.
        return state == "stopped" or self.machine.now > self.stopping_since

    def _on_brief(self, id_: str) -> None:
        began = max((at for at, other in self.starts if other == id_), default=self.machine.now)
        if self.machine.now - began < BRIEF_S:
            self.problem(f"own generation: a rule acts on {id_}, whose level has not held for {BRIEF_S:g} s")

    def _on_state(self, name: str, before: str, state: str, reason: str) -> None:
        """Check the timeout that a change of state comes from."""
        now, workload = self.machine.now, self.workloads.get(name.partition("@")[0])
        self.stops.pop(name, None)
        if state == "stopping" and "killed by" not in reason:
            self.stops[name] = now
        if state == "starting":
            self.begun[name] = now
            self.were_ready.discard(name)
        if state == "ready":
            self.were_ready.add(name)
        if not reason.startswith(("not started within", "not ready within")) or state != "stopping" or not workload:
            return
        is_complete = (
            before == "ready"
            or name in self.were_ready
            or (before == "running" and start_type(workload) not in (*NOTIFY_TYPES, PROBED))
        )
        if is_complete and "type" not in self.edited:
            self.problem(f"timeouts: {name} is stopped as {reason}, and its start was complete")
        elif now - self.begun.get(name, now - 1000) < workload.timeout_start_sec - EPSILON_S:
            self.problem(f"timeouts: {name} is stopped as {reason}, too early")

    def _on_kill(self, cgroup: Cgroup) -> None:
        """Check that a stop has its whole time until SIGKILL."""
        name = cgroup.path.rpartition("/")[2]
        began, workload = self.stops.get(name), self.workloads.get(name.partition("@")[0])
        if began is None or workload is None or self.may_repeat:
            return
        took = self.machine.now - began
        if took < workload.timeout_stop_sec - EPSILON_S:
            text = f"timeouts: {name} is killed after {took:.3f} s, and has {workload.timeout_stop_sec:g} s"
            self.early_kills[name] = (self.machine.now, text)

    def _on_limit(self, cgroup: Cgroup, file: str) -> None:
        if cgroup.path.endswith("/group.batch") and file == "pids.events":
            self.limit_hits.append(self.machine.now)

    def _on_signal(self, process: Process, signum: int) -> None:
        if signum == signal.SIGABRT and process.pid not in self.hits:
            self.problem(f"watchdog: {process.id} gets SIGABRT, and has done all that was asked of it")

    def _on_process(self, process: Process) -> None:
        name, _, number = process.id.rpartition("#")
        for other in self.machine.living():
            other_name, _, other_number = other.id.rpartition("#")
            if other_name == name and other_number != number:
                self.problem(f"one generation: {process.id} starts while {other.id} lives")
            if name != other_name and {name, other_name.partition("@")[0]} == {"pool"} and self.kind.name == "chain":
                self.problem(f"order: {process.id} starts while {other.id} lives, which it replaces")
        if self.kind.name == "related":
            self._on_related(process, name)
        if process.is_leader:
            if (self.epoch, process.id) in self.executed and not self.may_repeat:
                self.problem(f"nothing twice: {process.id} is executed twice")
            self.executed[self.epoch, process.id] = process
            self.starts.append((self.machine.now, process.id))

    def _on_related(self, process: Process, name: str) -> None:
        """Check that what conflicts does not run together, and that nothing runs without what it is bound to."""
        living = {other.id.rpartition("#")[0] for other in self.machine.living()}
        if {"blue", "green"} <= living | {name} and name in ("blue", "green"):
            self.problem(f"conflicts: {process.id} starts while both would run")
        if name in ("check", "checked") and "path" not in self.edited:
            self.problem(f"conditions: {process.id} starts, and its condition is not met")
        if name == "web" and "db" not in living and "key" not in self.edited:
            last = max((at for at, id_ in self.starts if id_.startswith("db#")), default=None)
            if last is None:
                self.problem(f"order: {process.id} starts, and db never did")


def _related(history: History, states: Mapping[str, str]) -> list[str]:
    """Check that related workloads run together, and that each end has started what it should."""
    if history.kind.name != "related" or history.disk_was_full:
        return []
    wrong = []
    is_edited = any(step.target == "key" for step in history.steps)
    if not is_edited and states.get("web") in UP and states.get("db") not in UP:
        wrong.append(f"bound: web is {states.get('web')}, and db is {states.get('db')}")
    if states.get("blue") in UP and states.get("green") in UP:
        wrong.append("conflicts: blue and green both run")
    stopped = {command.name for command in history.commands if command.verb == "stop"}
    if states.get("web") in ("running", "ready") and states.get("helper") not in UP and "helper" not in stopped:
        wrong.append(f"upheld: helper is {states.get('helper')}, and web runs")
    has_noted = any(id_.startswith("note#") for _, id_ in history.watch.executed)
    if states.get("job") in ("exited", "failed") and not has_noted and "note" not in stopped:
        wrong.append("on_success: job has ended, and note never ran")
    return wrong


TIMER_PERIODS_S = {"tick": 2.0, "poll": 3.0}
LATEST_RUN_S = 3.0
"""Seconds by which a run may be later than its time: the last one may have to end first."""


def _timed(history: History) -> list[str]:
    """Timers run on until the end, unless a command is about their workloads."""
    if history.kind.name != "timed" or history.disk_was_full:
        return []
    wrong = []
    touched = {step.target for step in history.steps}
    for name, period in TIMER_PERIODS_S.items():
        last = max((at for at, id_ in history.watch.starts if id_.startswith(f"{name}#")), default=0.0)
        service_age = history.machine.now - history.watch.lives[-1]
        if name not in touched and min(history.machine.now - last, service_age) > period + LATEST_RUN_S:
            wrong.append(f"timers: {name} has not run for {history.machine.now - last:.1f} s")
    return wrong


def _activated(history: History, states: Mapping[str, str]) -> list[str]:
    """The last change of a file has acted, and no connection waits, unless a command or a failure keeps it."""
    if history.kind.name != "activated" or history.disk_was_full:
        return []
    wrong = []
    ended = any(step.do == "SIGTERM" for step in history.steps)
    stopped = {command.name for command in history.commands if command.verb in ("stop", "kill")}
    for name, path in (("job", JOB_FILE), ("web", WEB_FILE)):
        written = history.written.get(path)
        started = max((at for at, id_ in history.watch.starts if id_.startswith(f"{name}#")), default=-1.0)
        is_kept = ended or name in stopped or states.get(name) in ("failed", "frozen")
        if written is not None and started < written and not is_kept:
            wrong.append(f"paths: {path} was written at {written:.3f}, and {name} has not been started since")
    for name, address in (("lazy", LAZY_ADDRESS), ("served", SERVED_ADDRESS)):
        waiting = sum(
            one.waiting for one in history.machine.listeners if one.address == address and history.machine.holds(one)
        )
        if waiting and states.get(name) in AT_REST and states[name] != "failed" and name not in stopped:
            wrong.append(f"sockets: {waiting} connections wait for {name}, which is {states[name]}")
    return wrong


def when_quiet(history: History, status: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything has settled: who runs, and with which limits."""
    wrong: list[str] = []
    machine = history.machine
    living: dict[str, list[Process]] = defaultdict(list)
    for process in machine.living():
        living[process.id.rpartition("#")[0]].append(process)
    states = {one["name"]: one["state"] for one in status}
    known = {one["name"] for one in status}
    wrong += [f"none lost: {name} lives, and the service does not know it" for name in living if name not in known]
    for one in status:
        name, state = one["name"], one["state"]
        if name == "brief" or history.kind.name == "timed":
            continue  # it is never quiet
        # If a start was not noted and the keeper died, the processes that the program leaves are taken for it.
        is_adopted = name in history.watch.adopted
        has_remains = living[name] and (is_adopted or history.watch.may_repeat)
        leader = next((process for process in living[name] if process.is_leader), None)
        if state not in STATES:
            wrong.append(f"{name} is in a state {state!r}")
        elif state in AT_REST and living[name]:
            wrong.append(f"none lost: {name} is {state}, but {living[name][0].id} lives")
        elif state in UP and leader is None and not has_remains:
            wrong.append(f"none lost: {name} is {state}, but does not live")
        elif state == "starting" and history.kind.name == "bursts":
            pass  # its group has no room for another process, and it tries again and again
        elif state in ("starting", "stopping"):
            wrong.append(f"settled: {name} is still {state}")
        elif leader is not None and leader.id != f"{name}#{one['generation']}" and not is_adopted:
            wrong.append(f"none lost: {name} is #{one['generation']}, but {leader.id} lives")
        waits = history.kind.requires.get(name)
        if waits is None or states.get(waits) in ("running", "ready"):
            wrong += _wanted(history, name, state)
        if name == "says" and state in ("starting", "running") and not one["ready"]:
            wrong.append(f"readiness: {name} has been ready for long, and is {state}")
    wrong += _related(history, states)
    wrong += _limits(history)
    wrong += _limits_in_force(history)
    wrong += _limits_set(history)
    wrong += _counters(history)
    wrong += _timed(history)
    wrong += _activated(history, states)
    return wrong


def _counters(history: History) -> list[str]:
    """A counter that rises lets its rule act, whatever is reloaded and whichever process dies meanwhile."""
    edited = {step.target for step in history.steps if step.do in ("edit", "reload", "SIGHUP")}
    if "counter" in edited or history.disk_was_full:
        return []
    acted = [
        at
        for at, event, fields in history.watch.records
        if (event == "action" and "rule" in fields.get("cause", {}) and fields.get("workload") in ("first", "second"))
        or (event == "warning" and "group" in fields)
    ]
    return [
        f"counters: the group's limit was hit at {hit - history.started_at:.3f}, and no rule acted"
        for hit in history.watch.limit_hits
        if history.machine.now - hit > REACTION_S and not any(hit - 3.0 < at < hit + REACTION_S for at in acted)
    ]


def _last_command(history: History, name: str) -> Command | None:
    commands = [
        command for command in history.commands if command.name == name and command.verb in ("start", "stop", "restart")
    ]
    return commands[-1] if commands else None


def _wanted(history: History, name: str, state: str) -> list[str]:
    """The last word of an operator counts."""
    command = _last_command(history, name)
    if name.startswith("pool@") and any(step.target == "instances" for step in history.steps):
        return []  # an instance that was removed in between is a new one
    # The next supervisor does not know of a stop that a full disk kept out of the checkpoint.
    if not history.disk_was_full and command is not None and command.verb == "stop" and command.ok:
        later = any(other.at >= command.at and other.verb in ("start", "restart") for other in history.commands)
        if state != "stopped" and not later:
            return [f"stops kept: {name} was stopped by an operator, and is {state}"]
    if name not in history.kind.lasting:
        return []
    if name == "trap" and any(step.target == "trap" and step.value == "SIGTERM" for step in history.steps):
        return []  # its rule judges this exit, which the service has not caused
    if name == "trap" and history.disk_was_full:
        return []  # its rule judges the exit of a restart that a full disk kept out of the checkpoint
    stops = [other for other in history.commands if other.verb == "stop"]
    if not stops and state not in UP:
        return [f"wanted: {name} is {state}, without a stop by an operator"]
    has_started = command is not None and command.verb in ("start", "restart") and command.ok
    if command is not None and has_started and state not in UP and all(other.at < command.at for other in stops):
        return [f"wanted: {name} is {state} after an operator's {command.verb}"]
    return []


def _limits(history: History) -> list[str]:
    """Limits that were set are in force."""
    wrong = []
    if history.kind.name != "group" or history.disk_was_full:
        return wrong
    cgroup = history.machine.cgroups.get(f"{ROOT}/sim/group.batch")
    if cgroup is None:
        return ["limits: the group has no cgroup"]
    latest: dict[str, Command] = {}
    for command in history.commands:
        if command.verb == "set group":
            latest[command.value.partition("=")[0]] = command
    for key, command in latest.items():
        same = [other for other in history.commands if other.value.startswith(f"{key}=")]
        if not command.ok or len(same) > 1 or any(at >= command.at for at in history.watch.reloads):
            continue
        file, value = key.replace("_", ".", 1), command.value.partition("=")[2]
        number = int(value[:-1]) << 20 if value.endswith("M") else int(value)
        if cgroup.limits.get(file) != str(number):
            wrong.append(f"limits: {key} of the group was set to {value}, and is {cgroup.limits.get(file)}")
    return wrong


LIMIT_KEYS = ("memory_max", "pids_max", "cpu_weight")


def _kernel_limit(cgroup: Cgroup, key: str) -> str:
    file = key.replace("_", ".", 1)
    return cgroup.limits.get(file, LIMIT_FILES[file])


def _limit_owners(history: History) -> Iterator[tuple[str, Cgroup, Resources, Resources]]:
    """Yield the groups and the instances that run.

    Each has its cgroup, the limits that the service has for it, and those of the file in force.
    """
    service = history.site.service
    assert service is not None
    assert service.supervisor is not None
    groups, actors = service.supervisor.groups.by_name.values(), service.supervisor.actors.values()
    owners = [(group.name, group.cgroup.path, group.resources, group.config.resources) for group in groups]
    owners += [
        (actor.name, actor.cgroup.path, actor.resources, actor.configured.resources)
        for actor in actors
        if actor.lifecycle.state.value in UP
    ]
    for name, path, in_force, configured in owners:
        if (cgroup := history.machine.cgroups.get(path)) is not None:
            yield name, cgroup, in_force, configured


def _limits_in_force(history: History) -> list[str]:
    """The kernel has the limits that the service reports, and these are the file's, unless a command has set them."""
    wrong = []
    were_set = {(command.name, command.value.partition("=")[0]) for command in history.commands}
    for name, cgroup, resources, configured in _limit_owners(history) if not history.disk_was_full else ():
        for key in LIMIT_KEYS:
            wanted, in_file = getattr(resources, key), getattr(configured, key)
            if wanted != in_file and (name, key) not in were_set:
                wrong.append(f"limits: {key} of {name} is {wanted}, and {in_file} in the file")
            if wanted is None:
                continue
            if isinstance(wanted, Percent):
                assert cgroup.parent is not None
                around = _kernel_limit(cgroup.parent, key)
                wanted = wanted.share_of(int(around)) // PAGE_SIZE * PAGE_SIZE
            if _kernel_limit(cgroup, key) != str(wanted):
                wrong.append(f"limits: {key} of {name} is {_kernel_limit(cgroup, key)}, and the service has {wanted}")
    return wrong


def _limits_set(history: History) -> list[str]:
    """A limit is that of the latest change: a command's, or that of a file that has changed it."""
    wrong = []
    if history.kind.name != "limits" or history.disk_was_full:
        return wrong
    cgroups = {name: cgroup for name, cgroup, *_ in _limit_owners(history)}
    commands = [command for command in history.commands if command.verb in ("set", "set group")]
    for name, key in {(command.name, command.value.partition("=")[0]): None for command in commands}:
        if name not in cgroups or FILE_LIMITS.get((name, key)) in history.watch.edited:
            continue
        same = [command for command in commands if command.name == name and command.value.startswith(f"{key}=")]
        sure = max((command.at for command in same if command.ok), default=None)
        if sure is None:
            continue  # none was answered: it is not known whether it counts
        # Of commands at about the same time any may be the last; one without an answer may count.
        values = {
            parse_limit(*other.value.split("="))[key]
            for other in same
            if other.at >= sure or (other.answered_at or sure) >= sure
        }
        if _kernel_limit(cgroups[name], key) not in map(str, values):
            text = " or ".join(map(str, sorted(values)))
            wrong.append(f"limits: {key} of {name} was set to {text}, and is {_kernel_limit(cgroups[name], key)}")
    return wrong


def after_the_end(history: History) -> list[str]:
    """The service has ended in order: nothing is left, and each end is in the records."""
    machine, wrong = history.machine, []
    wrong += [f"nothing left: {process.id} lives" for process in machine.living()]
    wrong += [f"nothing left: the cgroup {path}" for path in machine.cgroups if path != ROOT]
    wrong += [f"nothing left: the socket {path}" for path in machine.sockets if history.site.lives == 1]
    wrong += [f"nothing left: the file {path.name}" for path in machine.files if path.name == "state.json"]
    keeper = history.site.keepers.current
    if keeper is not None and not keeper.is_dead:
        wrong.append("nothing left: the keeper")
    if not history.disk_was_full:
        wrong += _ends(history)
    return wrong


def _ends(history: History) -> list[str]:
    """Each program's end is recorded once, as it was; again only marked as a duplicate."""
    wrong = []
    found: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    begins = [*history.watch.epoch_begins, len(history.site.stream)]
    for epoch, (begin, end) in enumerate(pairwise(begins)):
        for line in history.site.stream[begin:end].splitlines():
            record = json.loads(line)
            if record["event"] in ("exited", "not started") and "generation" in record:
                found[epoch, f"{record['workload']}#{record['generation']}"].append(record)
    for (epoch, id_), process in history.watch.executed.items():
        records = found[epoch, id_]
        if not records:
            wrong.append(f"no exit lost: the end of {id_} is not recorded")
        again = history.watch.removals[id_.rpartition("#")[0]]
        ends = [record for record in records if not record.get("duplicate")]
        if len(ends) > 1 + again:
            wrong.append(f"nothing twice: the end of {id_} is recorded twice")
        for record in records if not again else ():
            if record["event"] == "exited" and not record.get("unknown"):
                status = process.status or 0
                code = status >> 8 if not status & 127 else None
                if record["code"] != code:
                    wrong.append(f"exits: {id_} ended with {status}, recorded as {record['code']}, {record['signal']}")
    return wrong
