"""Traces: what the minds of a service took in, and what they did about it, one JSON object a line.

The first line is the *head*: the format, the clock, the host, and of each workload what decided about it. The others
have a time ``t``, in seconds of the service's monotonic clock and with all digits, and are one of::

    {"t", "of", "mind"}                         what was remembered of a workload when its recording began
    {"t", "sample": {workload: {file: values}}} what the files said; the service's rules did not see it
    {"t", "of", "limits"}                       the limits in force from here on
    {"t", "of", "seen": {file: values}, "due"}  what the rules saw, and how many it set off; what is no news is left out
    {"t", "of", "sentence"}                     a rule of a group, or of the host, had chosen this one
    {"t", "of", "turn", "chance"}               a rule that had gone off had its turn
    {"t", "of", "event", …, "chance"}           a fact, a wish, or a deadline that has passed
    {"t", "of", "changed"}                      the configuration of it, from here on
    {"t", "end"}                                why the recording ended

Groups, and the host, are told of by ``limits``, ``sample``, ``seen`` and ``changed``, too, and by::

    {"t", "of", "group"}                        what was remembered of it when its recording began
    {"t", "of", "choice"}                       a rule's turn, with all whom it may hit, and whom it does
    {"t", "of", "passed"}                       a rule's turn, when something was done to a member meanwhile
    {"t", "of", "outcome"}                      whether an act on a member has helped

Turns and events tell what came of them: ``did``, a list of deeds, and ``life``, the state, generation and deadline.
Of values only what has changed is written, unless a file has other keys than before (``whole``). `docs/simulate.md`
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
"""Formats; the first one has no groups."""
Line = dict[str, Any]
Deed = dict[str, Any]
"""Something that was done: ``action`` and what belongs to it, ``cause`` of a rule's, ``why`` of all others."""

LIFE_KEYS = (
    *("type", "restart", "restart_sec", "restart_max_delay_sec", "restart_reset_sec", "start_limit_burst"),
    *("start_limit_interval_sec", "success_exit_status", "kill_signal", "timeout_start_sec", "timeout_stop_sec"),
)
"""What the lifecycle reads of a workload."""

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
"""Events by their wire names."""
_EVENT_NAMES: Mapping[type[events.Event], str] = {kind: name for name, kind in EVENTS.items()}


class TraceError(ValueError):
    """A file is no trace that can be used: which line, and why."""


# ---------------------------------------------------------------------------------------------------------------------
# What is written of a workload, a thought


def settings(workload: Workload) -> Line:
    """What decides about a workload. Defaults are left out of rules and resources, so that a key that is newer than a
    trace makes no difference."""
    keys = keys_of(Workload)
    return {
        "life": {key: plain(keys[key].get(workload)) for key in LIFE_KEYS},
        "rules": [rule_settings(rule) for rule in workload.policy],
        "resources": sparse(workload.resources),
    }


def group_settings(group: Group) -> Line:
    """What decides about a group, as `settings`."""
    return {"rules": [rule_settings(rule) for rule in group.policy], "resources": sparse(group.resources)}


def rule_settings(rule: Rule) -> Line:
    """A rule: what differs from the defaults, and where it is written."""
    return {"name": rule.name, "line": rule.line, "when": rule.when.text, **sparse(rule)}


def bare_rules(told: Line) -> list[Line]:
    """The rules of `settings`, each without its place in the file."""
    return [bare(rule) for rule in told["rules"]]


def bare(rule: Line) -> Line:
    """A rule without its place in the file."""
    return {key: value for key, value in rule.items() if key not in ("name", "line")}


def deeds(old: Life, thought: Thought, now: float) -> list[Deed]:
    """What is done because of a thought, in order."""
    life, due = thought.mind.life, thought.due
    done: list[Deed] = []
    if due is not None:
        done.append(_of_rule(due.fired, generation=due.generation))
    if thought.event is not None:
        done += [_deed(action, life) for action in thought.actions]
    if life.state is not old.state and life.state in (State.BACKOFF, State.FAILED):
        if life.state is State.FAILED:
            done.append({"action": "give up", "generation": life.generation, "why": life.reason})
        else:
            wait = round((life.deadline or now) - now, 6)
            done.append({"action": "wait", "generation": life.generation, "delay_sec": wait, "why": life.reason})
    return done


def telling(fired: Fired, group: str) -> Deed:
    """What a rule of a group does that concerns no member."""
    return _of_rule(attrs.evolve(fired, cause=attrs.evolve(fired.cause, group=group)))


def _of_rule(fired: Fired, **about: Any) -> Deed:
    rule = fired.rule
    cause = {key: value for key, value in plain(fired.cause).items() if value is not None}
    more: Deed = {"dry_run": True} if rule.dry_run else {}
    if fired.action == "signal":
        more["signal"] = signal_name(rule.signal or 15)
    if fired.settings:
        more["set"] = plain(fired.settings)
    return {"action": fired.action, **about, **more, "cause": cause}


def _deed(action: Action, life: Life) -> Deed:
    more: Deed = {}
    match action:
        case Spawn():
            name = "start"
        case Signal(signal=signum, everyone=everyone):
            name, more = "signal", {"signal": signal_name(signum), **({"everyone": True} if everyone else {})}
        case Complain(text=text):
            return {"action": "complain", "generation": life.generation, "why": text}
        case _:
            name = {KillAll: "kill", FreezeAll: "freeze", ThawAll: "thaw"}[type(action)]
    return {"action": name, "generation": life.generation, **more, "why": life.reason}


_Files = dict[str, dict[str, float]]


class Writer:
    """Makes the lines of a trace. It remembers what it has told, to tell it once."""

    def __init__(self) -> None:
        self._seen: dict[str, _Files] = {}
        self._sampled: dict[str, _Files] = {}
        self._limits: dict[str, Limits] = {}
        self._workloads: dict[str, Workload] = {}

    def head(
        self,
        workloads: Mapping[str, Workload],
        groups: Mapping[str, tuple[Group, Sequence[str]]] | None = None,
        **about: Any,
    ) -> Line:
        """The first line; the workloads by instance, the groups by their full names, with their members."""
        self._workloads = dict(workloads)
        told = {
            name: {**group_settings(one), "members": list(members)} for name, (one, members) in (groups or {}).items()
        }
        return {
            "trace": FORMAT,
            **about,
            "workloads": {name: settings(one) for name, one in workloads.items()},
            **({"groups": told} if told else {}),
        }

    def begin(self, name: str, mind: Mind, now: float) -> Line:
        """What is remembered of a workload; no rule of it waits for its turn."""
        return {"t": now, "of": name, "mind": {"life": sparse(mind.life), "memories": sparse(mind.engine.memories)}}

    def begin_group(self, name: str, engine: Engine, quiet_since: float, now: float) -> Line:
        """What is remembered of a group, and since when it waits for what an act leads to; no rule of it waits for its
        turn."""
        told = {"memories": sparse(engine.memories), "quiet_since": plain(quiet_since)}
        return {"t": now, "of": name, "group": told}

    def sample(self, now: float, of: Mapping[str, Snapshot]) -> Line:
        """What the files of all workloads say."""
        news, whole = {}, {}
        for name, snapshot in of.items():
            told, anew = self._news(self._sampled.setdefault(name, {}), snapshot)
            news[name] = {file: values for file, values in told.items() if values}
            if anew:
                whole[name] = anew
        return {"t": now, "sample": news, **({"whole": whole} if whole else {})}

    def limits(self, name: str, limits: Limits, now: float) -> Iterable[Line]:
        """The limits in force, where they are news."""
        if self._limits.get(name) != limits:
            self._limits[name] = dict(limits)
            yield {"t": now, "of": name, "limits": plain(limits)}

    def changed(self, name: str, workload: Workload, now: float) -> Iterable[Line]:
        """What decides about a workload, where it is news."""
        old, self._workloads[name] = self._workloads[name], workload
        if old is not workload and settings(old) != settings(workload):
            yield {"t": now, "of": name, "changed": settings(workload)}

    def step(
        self, name: str, workload: Workload, before: Mind, what: Input, moment: Moment, thought: Thought
    ) -> Iterable[Line]:
        """One step of a mind."""
        now, of = moment.now, {"t": moment.now, "of": name}
        if name not in self._workloads:
            return  # it has come by a reload, and the head does not have it
        yield from self.changed(name, workload, now)
        if isinstance(what, Adopt):
            return
        if isinstance(what, Seen):
            yield from self.limits(name, what.limits, now)
            due = len(thought.mind.due) - len(before.due)
            yield from self._saw(of, what.snapshot, thought.mind is not before, {"due": due} if due else {})
            return
        if isinstance(what, Sentence):
            fired = what.fired
            told = {"generation": what.generation, "action": fired.action, "rule": rule_settings(fired.rule)}
            yield {**of, "sentence": {**told, "cause": plain(fired.cause.record())}}
            return
        done, life = deeds(before.life, thought, now), thought.mind.life
        told = {"turn": True} if isinstance(what, Turn) else {"event": _EVENT_NAMES[type(what)], **sparse(what)}
        yield {
            **of,
            **told,
            "chance": moment.chance,
            **({"did": done} if done else {}),
            "life": [life.state.value, life.generation, life.deadline],
        }

    def group(self, name: str, what: News, now: float) -> Iterable[Line]:
        """Something that a group went through."""
        of = {"t": now, "of": name}
        match what:
            case Saw(fired=fired):
                yield from self.limits(name, what.limits, now)
                asked = Asked.by(fired)
                did = [telling(one, name) for one in asked.told]
                more = {**({"due": asked.turns} if asked.turns else {}), **({"did": did} if did else {})}
                yield from self._saw(of, what.snapshot, what.learnt, more)
            case Chose(fired=fired):
                told = {"action": fired.action, "rule": rule_settings(fired.rule), "victim": what.victim}
                yield {**of, "choice": {**told, "candidates": plain(what.candidates), "tried": dict(what.tried)}}
            case Passed():
                yield {**of, "passed": True}
            case Came():
                yield {**of, "outcome": plain(what)}
            case Became(config=config):
                yield {**of, "changed": group_settings(config)}

    def _saw(self, of: Line, snapshot: Snapshot, learnt: bool, more: Line) -> Iterable[Line]:
        """What rules saw, unless nobody has learnt anything from it."""
        present = self._seen.setdefault(of["of"], {})
        if learnt or any(present.get(file) != values for file, values in snapshot.items() if file != UPTIME):
            news, whole = self._news(present, snapshot)
            yield {**of, "seen": news, **({"whole": whole} if whole else {}), **more}

    def _news(self, present: _Files, snapshot: Snapshot) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Of each file the values that are news; and the files that have other keys than before, of which all are."""
        news: dict[str, dict[str, Any]] = {}
        whole: list[str] = []
        for file, values in snapshot.items():
            known = present.get(file)
            if known is not None and known.keys() != values.keys():
                whole.append(file)
                known = {}
            known = known or {}
            news[file] = {key: plain(value) for key, value in values.items() if known.get(key) != value}
            present[file] = dict(values)
        return news, whole


def sentence(told: Line) -> Sentence:
    """What `Writer.step` told of one."""
    rule, cause = told["rule"], told["cause"]
    made = Rule(
        when=parse_condition(rule["when"]),
        action=rule["action"],
        signal=rule.get("signal"),
        dry_run=rule.get("dry_run", False),
        name=rule.get("name", ""),
        line=rule.get("line", 0),
    )
    fired = Fired(made, told["action"], restored(Cause, {"candidates": [], **cause}, newer=True))
    return Sentence(told["generation"], fired)


def encode(line: Line) -> bytes:
    """One line."""
    return json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@attrs.frozen
class Trace:
    """A whole trace."""

    head: Line
    lines: tuple[Line, ...]

    @property
    def began(self) -> float:
        """The time that others are shown against."""
        began: float = self.head["clock"]["monotonic"]
        return began

    @property
    def complete(self) -> bool:
        """Its last line says why it ended; else it was cut off."""
        return bool(self.lines) and "end" in self.lines[-1]


def read(data: bytes, path: str) -> Trace:
    """A trace from the bytes of its file. TraceError where it is none, or of another format."""
    lines: list[Line] = []
    known: dict[str, Line] = {}
    *whole, _cut = data.split(b"\n")  # what comes after the last newline was cut off in the middle
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise TraceError(f"{path}:{number}: is no JSON ({error}); is it a trace of `nsupervisor record`?") from None
        if problem := _problem(line, known) if lines else _head_problem(line):
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
        for one in line["workloads"].values():
            _check_settings(one)
        for one in line.get("groups", {}).values():
            _check_group(one)
            restored(tuple[str, ...], one["members"])
    except (KeyError, TypeError, AttributeError, ValueError):
        return "lacks the clock or the workloads that the head of a trace has"
    return ""


def _check_settings(one: Any) -> None:
    dict(one["life"])
    _check_group(one)


def _check_group(one: Any) -> None:
    dict(one["resources"])
    for rule in one["rules"]:
        str(rule["name"]), rule["when"]


def _problem(line: Any, known: Mapping[str, Line]) -> str:
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
            told = line["choice"]
            restored(tuple[Candidate, ...], told["candidates"]), restored(dict[str, str], told["tried"])
            restored(str | None, told["victim"]), str(told["action"]), dict(told["rule"])  # type: ignore[arg-type]
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
    """The input that a turn's or an event's line tells of."""
    if "turn" in line:
        return Turn()
    kind: Any = EVENTS[line["event"]]
    event: events.Event = restored(kind, {name: line[name] for name in wire_names(kind) if name in line})
    return event


def learn(present: dict[str, dict[str, float]], snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
    """Take the news of a line into what is known of the files."""
    for file in whole:
        present[file] = {}
    for file, values in snapshot.items():
        present.setdefault(file, {}).update(numbers(values))


def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as `plain` has written them; ValueError where some are none."""
    return {
        key: value if value is None or type(value) in (int, float) else restored(float, value)
        for key, value in values.items()
    }
