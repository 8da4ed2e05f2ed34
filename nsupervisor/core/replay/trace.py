"""Traces: the inputs of a service's decisions and the resulting actions, one JSON object per line.

The first line is the *head*: the format, the clock, the host, and for each workload the settings that decide about it.
The other lines have a time `t`, in seconds of the service's monotonic clock and with all digits, and are one of:

    {"t", "of", "mind"}                         the state of a workload when its recording began
    {"t", "sample": {workload: {file: values}}} values of files that the service's rules did not observe
    {"t", "of", "limits"}                       the limits in force from here on
    {"t", "of", "seen": {file: values}, "due"}  an observation of the rules, changed values only; how many rules fired
    {"t", "of", "sentence"}                     a rule of a group, or of the host, chose this workload
    {"t", "of", "turn", "chance"}               the pending action of a rule ran
    {"t", "of", "event", …, "chance"}           an event, a command, or a deadline that has passed
    {"t", "of", "changed"}                      the configuration of the workload from here on
    {"t", "end"}                                why the recording ended

Groups, and the host, have `limits`, `sample`, `seen` and `changed` lines, too, and:

    {"t", "of", "group"}                        the state of the group when its recording began
    {"t", "of", "choice"}                       a pending rule ran: all its candidates, and the victim
    {"t", "of", "passed"}                       a pending rule did nothing, after an action on a member in between
    {"t", "of", "outcome"}                      whether an action on a member has helped

The `turn` and `event` lines contain their effects: `did`, a list of action records, and `life`, the state, generation
and deadline. Only changed values are written, unless a file has other keys than before (`whole`). `docs/internals.md`
describes all of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from nsupervisor.config.condition_terms import UPTIME
from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.load import key_slots
from nsupervisor.config.model import GroupConfig, Rule, WorkloadConfig
from nsupervisor.config.probes import EndingProbeConfig, ProbeConfig
from nsupervisor.config.urls import public_url
from nsupervisor.core import events
from nsupervisor.core.actions import (
    Action,
    EndHook,
    FreezeAll,
    KillAll,
    ReleaseSurvivors,
    ReportLeft,
    RunHook,
    Signal,
    Spawn,
    ThawAll,
)
from nsupervisor.core.decider import (
    ConfigChanged,
    GroupAction,
    Observation,
    RunPending,
    Transition,
    WorkloadInput,
    WorkloadState,
)
from nsupervisor.core.exits import signal_name
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Instant, Lifecycle, State, start_type
from nsupervisor.core.phases import HOOK_KEYS
from nsupervisor.core.records import describe_survivors
from nsupervisor.core.rules.group_policy import (
    ActionOutcome,
    Firings,
    GroupConfigChanged,
    GroupEvent,
    GroupObserved,
    Skipped,
    VictimChosen,
)
from nsupervisor.core.rules.rules import Cause, Engine, Firing, Limits, RuleState, Snapshot
from nsupervisor.core.rules.victims import Candidate
from nsupervisor.core.serialize import from_json, to_json, to_json_sparse
from nsupervisor.wire_names import wire_names

FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Formats that this version reads; format 1 has no groups."""
Line = dict[str, Any]
ActionRecord = dict[str, Any]
"""The record of an action: `action` and its parameters, with the `cause` of a rule or the `why` of any other source."""

LIFECYCLE_KEYS = (
    *("type", "restart", "restart_sec", "restart_max_delay_sec", "restart_reset_sec", "start_limit_burst"),
    *("start_limit_interval_sec", "success_exit_status", "kill_signal", "timeout_start_sec", "timeout_stop_sec"),
)
LATER_LIFECYCLE_KEYS = (
    *("restart_prevent_exit_status", "restart_force_exit_status", "runtime_max_sec", "runtime_randomized_extra_sec"),
    *("startup", "readiness", "liveness"),
    *("restart_mode", "min_ready_sec", "kill_mode", "send_sighup", "final_kill_signal", "reload_signal", "exit_type"),
    *("exec_reload", "exec_condition", "exec_start_pre", "exec_start_post", "exec_stop", "exec_stop_post"),
)
"""Keys of a workload that the lifecycle reads; the later ones are in a trace only if they have other values than the
default, so that a trace without them is that of an earlier version."""

INPUTS: Mapping[str, type[events.Input]] = {
    "Start": events.Start,
    "Stop": events.Stop,
    "Restart": events.Restart,
    "Recycle": events.PolicyRestart,
    "Kill": events.Kill,
    "Freeze": events.Freeze,
    "Thaw": events.Thaw,
    "Reload": events.Reload,
    "Execed": events.Execed,
    "Ready": events.Ready,
    "Reloading": events.Reloading,
    "HookDone": events.HookDone,
    "Stopping": events.Stopping,
    "RestartReset": events.RestartReset,
    "NotReady": events.NotReady,
    "Extend": events.Extend,
    "NewMain": events.NewMain,
    "Unhealthy": events.Unhealthy,
    "Exited": events.Exited,
    "Emptied": events.Emptied,
    "Timeout": events.Timeout,
}
"""Inputs of the lifecycle by their wire names."""
_INPUT_NAMES: Mapping[type[events.Input], str] = {kind: name for name, kind in INPUTS.items()}


class TraceError(ValueError):
    """A file that is not a usable trace; the message says which line, and why."""


# ---------------------------------------------------------------------------------------------------------------------
# Writing: sections for workloads, rules and actions


def workload_settings(workload: WorkloadConfig) -> Line:
    """Return the settings that decide about a workload.

    Leaves out the defaults of rules and resources, also those of the security profile, so a key that is newer than a
    trace makes no difference.
    """
    keys = key_slots(WorkloadConfig)
    return {
        "life": {key: to_json(keys[key].value_in(workload)) for key in LIFECYCLE_KEYS}
        | {"start_limit_burst": workload.start_limit}  # the one in force, as in earlier traces
        | {
            key: _later_setting(key, value)
            for key in LATER_LIFECYCLE_KEYS
            if (value := keys[key].value_in(workload)) != keys[key].default
        },
        "rules": [rule_settings(rule) for rule in workload.policy],
        "resources": {
            name: value
            for name, value in to_json_sparse(workload.resources).items()
            if name not in workload.resources.of_profile
        },
    }


def _later_setting(key: str, value: Any) -> Any:
    if key in HOOK_KEYS.values():  # the prefixes alone decide, and a command may contain what is secret
        return [command[0][:1] if command[0][:1] == "-" else "" for command in value]
    return _probe_settings(value) if isinstance(value, ProbeConfig) else to_json(value)


def _probe_settings(probe: ProbeConfig) -> Line:
    """Return what the lifecycle reads of a probe. The rest decides nothing there, and its headers may be secret."""
    grace = probe.termination_grace_period_sec if isinstance(probe, EndingProbeConfig) else None
    return {} if grace is None else {"termination_grace_period_sec": to_json(grace)}


def group_settings(group: GroupConfig) -> Line:
    """Return the settings that decide about a group, as `workload_settings` does for a workload."""
    return {"rules": [rule_settings(rule) for rule in group.policy], "resources": to_json_sparse(group.resources)}


def rule_settings(rule: Rule) -> Line:
    """Return a rule's position and the keys that differ from the defaults."""
    settings = {"name": rule.name, "line": rule.line, "when": rule.when.text, **to_json_sparse(rule)}
    return _without_secrets(settings)


def _without_secrets(rule: Line) -> Line:
    """Return a rule without the secret part of its URL; traces of version 0.1.0 have all of it."""
    return {**rule, "webhook": public_url(rule["webhook"])} if "webhook" in rule else rule


def rules_without_position(section: Line) -> list[Line]:
    """Return the rules of a section from `workload_settings`, each without its position in the file."""
    return [without_position(rule) for rule in section["rules"]]


def without_position(rule: Line) -> Line:
    """Return a rule without its position in the file."""
    return {key: value for key, value in _without_secrets(rule).items() if key not in ("name", "line")}


def action_records(old: Lifecycle, transition: Transition, now: float) -> list[ActionRecord]:
    """Return the records of a transition's actions, in order."""
    lifecycle, executed = transition.state.lifecycle, transition.executed
    records: list[ActionRecord] = []
    if executed is not None:
        records.append(_rule_record(executed.firing, generation=executed.generation))
    if transition.lifecycle_input is not None:
        records += [_lifecycle_record(action, lifecycle) for action in transition.actions]
    if lifecycle.state is not old.state and lifecycle.state in (State.BACKOFF, State.FAILED):
        if lifecycle.state is State.FAILED:
            records.append({"action": "give up", "generation": lifecycle.generation, "why": lifecycle.reason})
        else:
            wait = round((lifecycle.deadline or now) - now, 6)
            records.append(
                {"action": "wait", "generation": lifecycle.generation, "delay_sec": wait, "why": lifecycle.reason}
            )
    return records


def notification_record(firing: Firing, group: str) -> ActionRecord:
    """Return the record of a group rule's action that affects no member."""
    return _rule_record(attrs.evolve(firing, cause=attrs.evolve(firing.cause, group=group)))


def _rule_record(firing: Firing, **context: Any) -> ActionRecord:
    rule = firing.rule
    cause = {key: value for key, value in to_json(firing.cause).items() if value is not None}
    fields: ActionRecord = {"dry_run": True} if rule.dry_run else {}
    if firing.action == "signal":
        fields["signal"] = signal_name(rule.signal or 15)
    if firing.limits:
        fields["set"] = to_json(firing.limits)
    return {"action": firing.action, **context, **fields, "cause": cause}


def _lifecycle_record(action: Action, lifecycle: Lifecycle) -> ActionRecord:
    fields: ActionRecord = {}
    match action:
        case Spawn():
            name, fields = "start", {"debug": True} if lifecycle.is_debug else {}
        case Signal(signal=signum, whole_cgroup=everyone):
            name, fields = "signal", {"signal": signal_name(signum), **({"everyone": True} if everyone else {})}
        case RunHook(phase=phase, step=step):
            name, fields = "hook", {"hook": f"{HOOK_KEYS[phase]}[{step}]"}
        case EndHook():
            name = "end hook"
        case ReleaseSurvivors(seconds=seconds):
            return {"action": "complain", "generation": lifecycle.generation, "why": describe_survivors(seconds)}
        case _:
            name = {KillAll: "kill", ReportLeft: "report", FreezeAll: "freeze", ThawAll: "thaw"}[type(action)]
    return {"action": name, "generation": lifecycle.generation, **fields, "why": lifecycle.reason}


_FileValues = dict[str, dict[str, float]]


class TraceWriter:
    """Writer of the lines of a trace; it remembers what it has written, to write only changes."""

    def __init__(self) -> None:
        self._observed: dict[str, _FileValues] = {}
        self._sampled: dict[str, _FileValues] = {}
        self._limits: dict[str, Limits] = {}
        self._workloads: dict[str, WorkloadConfig] = {}

    def head(
        self,
        workloads: Mapping[str, WorkloadConfig],
        groups: Mapping[str, tuple[GroupConfig, Sequence[str]]] | None = None,
        **context: Any,
    ) -> Line:
        """Return the first line: workloads by instance name, and groups by full name, with their members."""
        self._workloads = dict(workloads)
        groups_head = {
            name: {**group_settings(config), "members": list(members)}
            for name, (config, members) in (groups or {}).items()
        }
        return {
            "trace": FORMAT,
            **context,
            "workloads": {name: workload_settings(config) for name, config in workloads.items()},
            **({"groups": groups_head} if groups_head else {}),
        }

    def workload_start(self, name: str, state: WorkloadState, now: float) -> Line:
        """Return the line with a workload's initial state; none of its rules is pending."""
        lifecycle = state.lifecycle
        if lifecycle.started_type == start_type(
            self._workloads[name]
        ):  # the head has it; version 0.1.0 does not read the key
            lifecycle = attrs.evolve(lifecycle, started_type="")
        return {
            "t": now,
            "of": name,
            "mind": {"life": to_json_sparse(lifecycle), "memories": to_json_sparse(state.engine.states)},
        }

    def group_start(self, name: str, engine: Engine, quiet_since: float, now: float) -> Line:
        """Return the line with a group's initial state; none of its rules is pending.

        quiet_since: the time since which the group has waited for the outcome of an action.
        """
        state = {"memories": to_json_sparse(engine.states), "quiet_since": to_json(quiet_since)}
        return {"t": now, "of": name, "group": state}

    def sample(self, now: float, snapshots: Mapping[str, Snapshot]) -> Line:
        """Return the line with the current values of all workloads' files."""
        changes, whole = {}, {}
        for name, snapshot in snapshots.items():
            changed, replaced = self._changed_values(self._sampled.setdefault(name, {}), snapshot)
            changes[name] = {file: values for file, values in changed.items() if values}
            if replaced:
                whole[name] = replaced
        return {"t": now, "sample": changes, **({"whole": whole} if whole else {})}

    def limits(self, name: str, limits: Limits, now: float) -> Iterable[Line]:
        """Yield a line with the limits in force, if they have changed."""
        if self._limits.get(name) != limits:
            self._limits[name] = dict(limits)
            yield {"t": now, "of": name, "limits": to_json(limits)}

    def config_change(self, name: str, workload: WorkloadConfig, now: float) -> Iterable[Line]:
        """Yield a line with the settings that decide about a workload, if they have changed."""
        old, self._workloads[name] = self._workloads[name], workload
        if old is not workload and workload_settings(old) != workload_settings(workload):
            yield {"t": now, "of": name, "changed": workload_settings(workload)}

    def transition(
        self,
        name: str,
        workload: WorkloadConfig,
        before: WorkloadState,
        input_: WorkloadInput,
        instant: Instant,
        transition: Transition,
    ) -> Iterable[Line]:
        """Yield the lines of one transition."""
        now, prefix = instant.now, {"t": instant.now, "of": name}
        if name not in self._workloads:
            return  # a reload has added the workload, and the head does not contain it
        yield from self.config_change(name, workload, now)
        if isinstance(input_, ConfigChanged):
            return
        if isinstance(input_, Observation):
            yield from self.limits(name, input_.limits, now)
            fired_count = len(transition.state.pending) - len(before.pending)
            yield from self._observation(
                prefix, input_.snapshot, transition.state is not before, {"due": fired_count} if fired_count else {}
            )
            return
        if isinstance(input_, GroupAction):
            firing = input_.firing
            content = {"generation": input_.generation, "action": firing.action, "rule": rule_settings(firing.rule)}
            yield {**prefix, "sentence": {**content, "cause": to_json(firing.cause.to_record())}}
            return
        actions, lifecycle = action_records(before.lifecycle, transition, now), transition.state.lifecycle
        content = (
            {"turn": True}
            if isinstance(input_, RunPending)
            else {"event": _INPUT_NAMES[type(input_)], **to_json_sparse(input_)}
        )
        if isinstance(input_, events.Command) and not input_.requested_by.is_in_text:
            content["initiator"] = input_.requested_by.parts()
        yield {
            **prefix,
            **content,
            "chance": instant.jitter,
            **({"did": actions} if actions else {}),
            "life": [lifecycle.state.value, lifecycle.generation, lifecycle.deadline],
        }

    def group_event(self, name: str, event: GroupEvent, now: float) -> Iterable[Line]:
        """Yield the lines of one event of a group."""
        prefix = {"t": now, "of": name}
        match event:
            case GroupObserved(firings=new_firings):
                yield from self.limits(name, event.limits, now)
                firings = Firings.split(new_firings)
                actions = [notification_record(firing, name) for firing in firings.notifications]
                fields = {
                    **({"due": firings.pending_count} if firings.pending_count else {}),
                    **({"did": actions} if actions else {}),
                }
                yield from self._observation(prefix, event.snapshot, event.changed_rules, fields)
            case VictimChosen(firing=fired):
                choice = {"action": fired.action, "rule": rule_settings(fired.rule), "victim": event.victim}
                yield {
                    **prefix,
                    "choice": {**choice, "candidates": _candidates_json(event.candidates), "tried": dict(event.tried)},
                }
            case Skipped():
                yield {**prefix, "passed": True}
            case ActionOutcome():
                yield {**prefix, "outcome": to_json(event)}
            case GroupConfigChanged(config=config):
                yield {**prefix, "changed": group_settings(config)}

    def _observation(self, prefix: Line, snapshot: Snapshot, changed_rules: bool, fields: Line) -> Iterable[Line]:
        """Yield a line with an observation, unless no rule changed its state and no value has changed."""
        known = self._observed.setdefault(prefix["of"], {})
        if changed_rules or any(known.get(file) != values for file, values in snapshot.items() if file != UPTIME):
            changes, whole = self._changed_values(known, snapshot)
            yield {**prefix, "seen": changes, **({"whole": whole} if whole else {}), **fields}

    def _changed_values(
        self, known_files: _FileValues, snapshot: Snapshot
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return the changed values of each file, and the files that have other keys than before.

        The latter are written completely.
        """
        changes: dict[str, dict[str, Any]] = {}
        whole: list[str] = []
        for file, values in snapshot.items():
            known = known_files.get(file)
            if known is not None and known.keys() != values.keys():
                whole.append(file)
                known = {}
            known = known or {}
            changes[file] = {key: to_json(value) for key, value in values.items() if known.get(key) != value}
            known_files[file] = dict(values)
        return changes, whole


_LATER_DEFAULTS = (("frozen", False), ("freed_by_kill", None))
"""Keys of candidates that version 0.1.0 does not know, each with its default."""


def _candidates_json(candidates: Sequence[Candidate]) -> list[Line]:
    """Convert candidates, without the keys that version 0.1.0 does not read if they say nothing."""
    lines: list[Line] = to_json(candidates)
    return [{key: value for key, value in line.items() if (key, value) not in _LATER_DEFAULTS} for line in lines]


def parse_group_action(data: Line) -> GroupAction:
    """Parse the group action that `TraceWriter.transition` wrote."""
    rule, cause = data["rule"], data["cause"]
    observed_rule = Rule(
        when=parse_condition(rule["when"]),
        action=rule["action"],
        signal=rule.get("signal"),
        dry_run=rule.get("dry_run", False),
        name=rule.get("name", ""),
        line=rule.get("line", 0),
    )
    firing = Firing(observed_rule, data["action"], from_json(Cause, {"candidates": [], **cause}, ignore_unknown=True))
    return GroupAction(data["generation"], firing)


def encode_line(line: Line) -> bytes:
    """Encode one line as JSON."""
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


# ---------------------------------------------------------------------------------------------------------------------
# Reading: the whole file, with every line checked


@attrs.frozen
class Trace:
    """A complete trace, its lines already checked."""

    head: Line
    lines: tuple[Line, ...]

    @property
    def began_at(self) -> float:
        """The time to which other times are relative."""
        began: float = self.head["clock"]["monotonic"]
        return began

    @property
    def is_complete(self) -> bool:
        """Whether the last line says why the recording ended; otherwise the trace was cut off."""
        return bool(self.lines) and "end" in self.lines[-1]


def parse_trace(data: bytes, path: str) -> Trace:
    """Parse the bytes of a trace file; TraceError if it is not a trace, or one of another format."""
    lines: list[Line] = []
    known_sections: dict[str, Line] = {}
    *whole, _truncated = data.split(b"\n")  # text after the last newline was cut off in the middle of a line
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise TraceError(f"{path}:{number}: is no JSON ({error}); is it a trace of `nsupervisor record`?") from None
        if problem := _line_problem(line, known_sections) if lines else _head_problem(line):
            raise TraceError(f"{path}:{number}: {problem}")
        known_sections |= (
            {line["of"]: line["changed"]} if "changed" in line else line.get("workloads", {}) | line.get("groups", {})
        )
        lines.append(line)
    if not lines:
        raise TraceError(f"{path}: is empty; make a trace with `nsupervisor record {path}`")
    return Trace(lines[0], tuple(lines[1:]))


def _head_problem(line: Any) -> str:
    if not isinstance(line, dict) or "trace" not in line:
        return "is not the head of a trace; make one with `nsupervisor record`"
    if line["trace"] not in READABLE_FORMATS:
        formats = " and ".join(map(str, READABLE_FORMATS))
        return f"is a trace of format {line['trace']}, but this version reads {formats}; use the one that wrote it"
    try:
        float(line["clock"]["monotonic"])
        for section in line["workloads"].values():
            _check_settings(section)
        for section in line.get("groups", {}).values():
            _check_group(section)
            from_json(tuple[str, ...], section["members"])
    except (KeyError, TypeError, AttributeError, ValueError):
        return "lacks the clock or the workloads that the head of a trace has"
    return ""


def _check_settings(section: Any) -> None:
    dict(section["life"])
    _check_group(section)


def _check_group(section: Any) -> None:
    dict(section["resources"])
    for rule in section["rules"]:
        str(rule["name"]), rule["when"]


def _line_problem(line: Any, known_sections: Mapping[str, Line]) -> str:
    if not isinstance(line, dict) or not isinstance(line.get("t"), float | int):
        return "has no time; it is not a line of a trace"
    all_kinds = (
        *("mind", "sample", "limits", "seen", "sentence", "turn", "event", "changed", "end"),
        *("group", "choice", "passed", "outcome"),
    )
    kinds = [key for key in all_kinds if key in line]
    if len(kinds) != 1:
        return "is of no kind of line that a trace has"
    if kinds[0] not in ("sample", "end") and not isinstance(line.get("of"), str):
        return "does not say which workload it is about"
    try:
        if kinds[0] in ("turn", "event"):
            parse_input(line)
            state, generation, deadline = line["life"]
            State(state), int(generation), float(deadline or 0), float(line["chance"])
            for record in line.get("did", ()):
                str(record["action"]), "cause" not in record or dict(record["cause"])
        elif kinds[0] == "sentence":
            parse_group_action(line["sentence"])
        elif kinds[0] == "choice":
            choice = line["choice"]
            from_json(tuple[Candidate, ...], choice["candidates"]), from_json(dict[str, str], choice["tried"])
            from_json(str | None, choice["victim"]), str(choice["action"]), dict(choice["rule"])  # type: ignore[arg-type]
        elif kinds[0] == "outcome":
            from_json(ActionOutcome, line["outcome"])
        elif kinds[0] in ("mind", "group"):
            if kinds[0] == "mind":
                from_json(Lifecycle, line["mind"]["life"])
            else:
                from_json(float, line["group"]["quiet_since"])
            memories = [from_json(RuleState, memory) for memory in line[kinds[0]]["memories"]]
            for _ in zip(memories, known_sections[line["of"]]["rules"], strict=True):
                pass
        elif kinds[0] == "changed":
            (_check_settings if "life" in known_sections[line["of"]] else _check_group)(line["changed"])
        elif kinds[0] == "limits":
            parse_numbers(line["limits"])
        elif kinds[0] in ("seen", "sample"):
            int(line.get("due", 0))
            wholes = line.get("whole", {}).values() if "sample" in line else (line.get("whole", []),)
            for files in wholes:
                from_json(tuple[str, ...], files)
            for record in line.get("did", ()):
                str(record["action"]), dict(record["cause"])
            for snapshot in line["sample"].values() if "sample" in line else (line["seen"],):
                for values in snapshot.values():
                    parse_numbers(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"cannot be replayed: {error}"
    return ""


def parse_input(line: Line) -> WorkloadInput:
    """Parse the input in a line with a pending action or an event."""
    if "turn" in line:
        return RunPending()
    kind: Any = INPUTS[line["event"]]
    input_: events.Input = from_json(kind, {name: line[name] for name in wire_names(kind) if name in line})
    if "initiator" in line and isinstance(input_, events.Command):
        return attrs.evolve(input_, requested_by=Initiator.from_parts(line["initiator"]))
    return input_


def apply_changes(
    values_by_file: dict[str, dict[str, float]], snapshot: Mapping[str, Any], whole: Sequence[str]
) -> None:
    """Apply the changed values of a line to the known values of the files."""
    for file in whole:
        values_by_file[file] = {}
    for file, values in snapshot.items():
        values_by_file.setdefault(file, {}).update(parse_numbers(values))


def parse_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parse values that `to_json` has written; ValueError if one of them is not a number."""
    return {
        key: value if value is None or type(value) in (int, float) else from_json(float, value)
        for key, value in values.items()
    }
