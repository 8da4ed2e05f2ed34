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
and deadline. Only changed values are written, unless a file has other keys than before (`whole`). `docs/simulate.md`
describes all of it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.facts import UPTIME
from nsupervisor.config.load import keys_of
from nsupervisor.config.model import Group, Rule, Workload
from nsupervisor.core import events
from nsupervisor.core.actions import Action, Complain, FreezeAll, KillAll, Signal, Spawn, ThawAll
from nsupervisor.core.exits import signal_name
from nsupervisor.core.grouping import Asked, Became, Came, Chose, News, Passed, Saw
from nsupervisor.core.lifecycle import Life, Moment, State
from nsupervisor.core.mind import Adopt, Input, Mind, Seen, Sentence, Thought, Turn
from nsupervisor.core.plain import plain, restored, sparse
from nsupervisor.core.rules import Cause, Engine, Fired, Limits, Memory, Snapshot
from nsupervisor.core.victims import Candidate
from nsupervisor.wire import wire_names

FORMAT = 2
READABLE = (1, 2)
"""Formats that this version reads; format 1 has no groups."""
Line = dict[str, Any]
Deed = dict[str, Any]
"""The record of an action: `action` and its parameters, with the `cause` of a rule or the `why` of any other source."""

LIFE_KEYS = (
    *("type", "restart", "restart_sec", "restart_max_delay_sec", "restart_reset_sec", "start_limit_burst"),
    *("start_limit_interval_sec", "success_exit_status", "kill_signal", "timeout_start_sec", "timeout_stop_sec"),
)
"""Keys of a workload that the lifecycle reads."""

EVENTS: Mapping[str, type[events.Event]] = {
    "Start": events.Start,
    "Stop": events.Stop,
    "Restart": events.Restart,
    "Recycle": events.Recycle,
    "Kill": events.Kill,
    "Freeze": events.Freeze,
    "Thaw": events.Thaw,
    "Execed": events.Execed,
    "Ready": events.Ready,
    "Unhealthy": events.Unhealthy,
    "Exited": events.Exited,
    "Emptied": events.Emptied,
    "Timeout": events.Timeout,
}
"""Inputs of the lifecycle by their wire names."""
_EVENT_NAMES: Mapping[type[events.Event], str] = {kind: name for name, kind in EVENTS.items()}


class TraceError(ValueError):
    """A file that is not a usable trace; the message says which line, and why."""


# ---------------------------------------------------------------------------------------------------------------------
# Writing: sections for workloads, rules and actions


def settings(workload: Workload) -> Line:
    """Return the settings that decide about a workload.

    Leaves out the defaults of rules and resources, so a key that is newer than a trace makes no difference.
    """
    keys = keys_of(Workload)
    return {
        "life": {key: plain(keys[key].get(workload)) for key in LIFE_KEYS},
        "rules": [rule_settings(rule) for rule in workload.policy],
        "resources": sparse(workload.resources),
    }


def group_settings(group: Group) -> Line:
    """Return the settings that decide about a group, as `workload_settings` does for a workload."""
    return {"rules": [rule_settings(rule) for rule in group.policy], "resources": sparse(group.resources)}


def rule_settings(rule: Rule) -> Line:
    """Return a rule's position and the keys that differ from the defaults."""
    return {"name": rule.name, "line": rule.line, "when": rule.when.text, **sparse(rule)}


def bare_rules(section: Line) -> list[Line]:
    """Return the rules of a section from `workload_settings`, each without its position in the file."""
    return [bare(rule) for rule in section["rules"]]


def bare(rule: Line) -> Line:
    """Return a rule without its position in the file."""
    return {key: value for key, value in rule.items() if key not in ("name", "line")}


def deeds(old: Life, thought: Thought, now: float) -> list[Deed]:
    """Return the records of a transition's actions, in order."""
    life, due = thought.mind.life, thought.due
    records: list[Deed] = []
    if due is not None:
        records.append(_rule_record(due.fired, generation=due.generation))
    if thought.event is not None:
        records += [_lifecycle_record(action, life) for action in thought.actions]
    if life.state is not old.state and life.state in (State.BACKOFF, State.FAILED):
        if life.state is State.FAILED:
            records.append({"action": "give up", "generation": life.generation, "why": life.reason})
        else:
            wait = round((life.deadline or now) - now, 6)
            records.append({"action": "wait", "generation": life.generation, "delay_sec": wait, "why": life.reason})
    return records


def telling(fired: Fired, group: str) -> Deed:
    """Return the record of a group rule's action that affects no member."""
    return _rule_record(attrs.evolve(fired, cause=attrs.evolve(fired.cause, group=group)))


def _rule_record(fired: Fired, **context: Any) -> Deed:
    rule = fired.rule
    cause = {key: value for key, value in plain(fired.cause).items() if value is not None}
    fields: Deed = {"dry_run": True} if rule.dry_run else {}
    if fired.action == "signal":
        fields["signal"] = signal_name(rule.signal or 15)
    if fired.settings:
        fields["set"] = plain(fired.settings)
    return {"action": fired.action, **context, **fields, "cause": cause}


def _lifecycle_record(action: Action, life: Life) -> Deed:
    fields: Deed = {}
    match action:
        case Spawn():
            name = "start"
        case Signal(signal=signum, everyone=everyone):
            name, fields = "signal", {"signal": signal_name(signum), **({"everyone": True} if everyone else {})}
        case Complain(text=text):
            return {"action": "complain", "generation": life.generation, "why": text}
        case _:
            name = {KillAll: "kill", FreezeAll: "freeze", ThawAll: "thaw"}[type(action)]
    return {"action": name, "generation": life.generation, **fields, "why": life.reason}


_FileValues = dict[str, dict[str, float]]


class Writer:
    """Writer of the lines of a trace; it remembers what it has written, to write only changes."""

    def __init__(self) -> None:
        self._seen: dict[str, _FileValues] = {}
        self._sampled: dict[str, _FileValues] = {}
        self._limits: dict[str, Limits] = {}
        self._workloads: dict[str, Workload] = {}

    def head(
        self,
        workloads: Mapping[str, Workload],
        groups: Mapping[str, tuple[Group, Sequence[str]]] | None = None,
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
            "workloads": {name: settings(config) for name, config in workloads.items()},
            **({"groups": groups_head} if groups_head else {}),
        }

    def begin(self, name: str, mind: Mind, now: float) -> Line:
        """Return the line with a workload's initial state; none of its rules is pending."""
        return {"t": now, "of": name, "mind": {"life": sparse(mind.life), "memories": sparse(mind.engine.memories)}}

    def begin_group(self, name: str, engine: Engine, quiet_since: float, now: float) -> Line:
        """Return the line with a group's initial state; none of its rules is pending.

        quiet_since: the time since which the group has waited for the outcome of an action.
        """
        state = {"memories": sparse(engine.memories), "quiet_since": plain(quiet_since)}
        return {"t": now, "of": name, "group": state}

    def sample(self, now: float, of: Mapping[str, Snapshot]) -> Line:
        """Return the line with the current values of all workloads' files."""
        changes, whole = {}, {}
        for name, snapshot in of.items():
            changed, replaced = self._news(self._sampled.setdefault(name, {}), snapshot)
            changes[name] = {file: values for file, values in changed.items() if values}
            if replaced:
                whole[name] = replaced
        return {"t": now, "sample": changes, **({"whole": whole} if whole else {})}

    def limits(self, name: str, limits: Limits, now: float) -> Iterable[Line]:
        """Yield a line with the limits in force, if they have changed."""
        if self._limits.get(name) != limits:
            self._limits[name] = dict(limits)
            yield {"t": now, "of": name, "limits": plain(limits)}

    def changed(self, name: str, workload: Workload, now: float) -> Iterable[Line]:
        """Yield a line with the settings that decide about a workload, if they have changed."""
        old, self._workloads[name] = self._workloads[name], workload
        if old is not workload and settings(old) != settings(workload):
            yield {"t": now, "of": name, "changed": settings(workload)}

    def step(
        self, name: str, workload: Workload, before: Mind, what: Input, moment: Moment, thought: Thought
    ) -> Iterable[Line]:
        """Yield the lines of one transition."""
        now, prefix = moment.now, {"t": moment.now, "of": name}
        if name not in self._workloads:
            return  # a reload has added the workload, and the head does not contain it
        yield from self.changed(name, workload, now)
        if isinstance(what, Adopt):
            return
        if isinstance(what, Seen):
            yield from self.limits(name, what.limits, now)
            due = len(thought.mind.due) - len(before.due)
            yield from self._saw(prefix, what.snapshot, thought.mind is not before, {"due": due} if due else {})
            return
        if isinstance(what, Sentence):
            fired = what.fired
            content = {"generation": what.generation, "action": fired.action, "rule": rule_settings(fired.rule)}
            yield {**prefix, "sentence": {**content, "cause": plain(fired.cause.record())}}
            return
        actions, life = deeds(before.life, thought, now), thought.mind.life
        content = {"turn": True} if isinstance(what, Turn) else {"event": _EVENT_NAMES[type(what)], **sparse(what)}
        yield {
            **prefix,
            **content,
            "chance": moment.chance,
            **({"did": actions} if actions else {}),
            "life": [life.state.value, life.generation, life.deadline],
        }

    def group(self, name: str, what: News, now: float) -> Iterable[Line]:
        """Yield the lines of one event of a group."""
        prefix = {"t": now, "of": name}
        match what:
            case Saw(fired=new_firings):
                yield from self.limits(name, what.limits, now)
                firings = Asked.by(new_firings)
                actions = [telling(firing, name) for firing in firings.told]
                fields = {**({"due": firings.turns} if firings.turns else {}), **({"did": actions} if actions else {})}
                yield from self._saw(prefix, what.snapshot, what.learnt, fields)
            case Chose(fired=fired):
                choice = {"action": fired.action, "rule": rule_settings(fired.rule), "victim": what.victim}
                yield {**prefix, "choice": {**choice, "candidates": plain(what.candidates), "tried": dict(what.tried)}}
            case Passed():
                yield {**prefix, "passed": True}
            case Came():
                yield {**prefix, "outcome": plain(what)}
            case Became(config=config):
                yield {**prefix, "changed": group_settings(config)}

    def _saw(self, of: Line, snapshot: Snapshot, learnt: bool, fields: Line) -> Iterable[Line]:
        """Yield a line with an observation, unless no rule changed its state and no value has changed."""
        known = self._seen.setdefault(of["of"], {})
        if learnt or any(known.get(file) != values for file, values in snapshot.items() if file != UPTIME):
            changes, whole = self._news(known, snapshot)
            yield {**of, "seen": changes, **({"whole": whole} if whole else {}), **fields}

    def _news(self, known_files: _FileValues, snapshot: Snapshot) -> tuple[dict[str, dict[str, Any]], list[str]]:
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
            changes[file] = {key: plain(value) for key, value in values.items() if known.get(key) != value}
            known_files[file] = dict(values)
        return changes, whole


def sentence(data: Line) -> Sentence:
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
    fired = Fired(observed_rule, data["action"], restored(Cause, {"candidates": [], **cause}, newer=True))
    return Sentence(data["generation"], fired)


def encode(line: Line) -> bytes:
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
    def began(self) -> float:
        """The time to which other times are relative."""
        began: float = self.head["clock"]["monotonic"]
        return began

    @property
    def complete(self) -> bool:
        """Whether the last line says why the recording ended; otherwise the trace was cut off."""
        return bool(self.lines) and "end" in self.lines[-1]


def read(data: bytes, path: str) -> Trace:
    """Parse the bytes of a trace file; TraceError if it is not a trace, or one of another format."""
    lines: list[Line] = []
    known: dict[str, Line] = {}
    *whole, _truncated = data.split(b"\n")  # text after the last newline was cut off in the middle of a line
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise TraceError(f"{path}:{number}: is no JSON ({error}); is it a trace of `nsupervisor record`?") from None
        if problem := _line_problem(line, known) if lines else _head_problem(line):
            raise TraceError(f"{path}:{number}: {problem}")
        known |= (
            {line["of"]: line["changed"]} if "changed" in line else line.get("workloads", {}) | line.get("groups", {})
        )
        lines.append(line)
    if not lines:
        raise TraceError(f"{path}: is empty; make a trace with `nsupervisor record {path}`")
    return Trace(lines[0], tuple(lines[1:]))


def _head_problem(line: Any) -> str:
    if not isinstance(line, dict) or "trace" not in line:
        return "is not the head of a trace; make one with `nsupervisor record`"
    if line["trace"] not in READABLE:
        formats = " and ".join(map(str, READABLE))
        return f"is a trace of format {line['trace']}, but this version reads {formats}; use the one that wrote it"
    try:
        float(line["clock"]["monotonic"])
        for section in line["workloads"].values():
            _check_settings(section)
        for section in line.get("groups", {}).values():
            _check_group(section)
            restored(tuple[str, ...], section["members"])
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


def _line_problem(line: Any, known: Mapping[str, Line]) -> str:
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
            happened(line)
            state, generation, deadline = line["life"]
            State(state), int(generation), float(deadline or 0), float(line["chance"])
            for deed in line.get("did", ()):
                str(deed["action"]), "cause" not in deed or dict(deed["cause"])
        elif kinds[0] == "sentence":
            sentence(line["sentence"])
        elif kinds[0] == "choice":
            choice = line["choice"]
            restored(tuple[Candidate, ...], choice["candidates"]), restored(dict[str, str], choice["tried"])
            restored(str | None, choice["victim"]), str(choice["action"]), dict(choice["rule"])  # type: ignore[arg-type]
        elif kinds[0] == "outcome":
            restored(Came, line["outcome"])
        elif kinds[0] in ("mind", "group"):
            if kinds[0] == "mind":
                restored(Life, line["mind"]["life"])
            else:
                restored(float, line["group"]["quiet_since"])
            memories = [restored(Memory, memory) for memory in line[kinds[0]]["memories"]]
            for _ in zip(memories, known[line["of"]]["rules"], strict=True):
                pass
        elif kinds[0] == "changed":
            (_check_settings if "life" in known[line["of"]] else _check_group)(line["changed"])
        elif kinds[0] == "limits":
            numbers(line["limits"])
        elif kinds[0] in ("seen", "sample"):
            int(line.get("due", 0))
            wholes = line.get("whole", {}).values() if "sample" in line else (line.get("whole", []),)
            for files in wholes:
                restored(tuple[str, ...], files)
            for deed in line.get("did", ()):
                str(deed["action"]), dict(deed["cause"])
            for snapshot in line["sample"].values() if "sample" in line else (line["seen"],):
                for values in snapshot.values():
                    numbers(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"cannot be replayed: {error}"
    return ""


def happened(line: Line) -> Input:
    """Parse the input in a line with a pending action or an event."""
    if "turn" in line:
        return Turn()
    kind: Any = EVENTS[line["event"]]
    event: events.Event = restored(kind, {name: line[name] for name in wire_names(kind) if name in line})
    return event


def learn(present: dict[str, dict[str, float]], snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
    """Apply the changed values of a line to the known values of the files."""
    for file in whole:
        present[file] = {}
    for file, values in snapshot.items():
        present.setdefault(file, {}).update(numbers(values))


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parse values that `to_json` has written; ValueError if one of them is not a number."""
    return {
        key: value if value is None or type(value) in (int, float) else restored(float, value)
        for key, value in values.items()
    }
