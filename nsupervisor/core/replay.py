"""Replay a trace through another configuration, and compare the simulated actions with the recorded ones.

Each workload of the trace has a decision state with the tried configuration, and receives the inputs of the trace. As
long as its lifecycle equals the recorded one, the result is exact: with an unchanged configuration the same actions
come out, at the same times.

When the two lifecycles *diverge* (this one restarts while that one does not, or the other way round), the trace no
longer describes this program: its observations and its events are those of another lifecycle. So, until both have
started a new generation:

* no observation reaches the rules, and no event reaches the lifecycle;
* every action is assumed to succeed at once: a program that is started runs, and is ready; one that is asked to stop
  exits from that signal, and leaves no process behind; one that runs continues without events;
* its own deadlines pass when they are due, and operators' commands apply as they were recorded.

When each has started a generation since, the recorded program stands for this one: observations and events count again,
the first values of counters as a baseline. Every action after the first divergence is marked `diverged`: it is a guess.
So is every action after a rule that is not in the trace's configuration has sent a signal or set a limit (or one that
is there, and no longer here, did): that may have changed the behaviour of the program, too.

Rules of groups and of the host choose their victims among these lifecycles (`nsupervisor.core.replay.group`). If the
trace has no groups, the recorded actions of such rules apply to the simulated lifecycle, too.

Everything is a function of the configuration, the trace, and the seed of the jitter that the trace does not have.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from nsupervisor.config.facts import EXIT
from nsupervisor.config.model import Config, Workload
from nsupervisor.core import events
from nsupervisor.core.actions import KillAll, Signal, Spawn
from nsupervisor.core.beside import Done, Row, pairs
from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Life, Moment, State
from nsupervisor.core.mind import Input, Mind, Seen, Sentence, Thought, Turn, take
from nsupervisor.core.plain import restored
from nsupervisor.core.replay_groups import ReplayedGroups, begun_anew, remembered, unjudged
from nsupervisor.core.rules import Engine, Fired
from nsupervisor.core.trace import (
    Line,
    Trace,
    bare,
    bare_rules,
    deeds,
    happened,
    learn,
    numbers,
    sentence,
    settings,
)

_UP = frozenset({State.STARTING, State.RUNNING, State.READY})
_PROGRAM_EFFECTS = ("signal", "set")
"""Rule actions that change how a program continues, and leave its lifecycle as it is."""


@attrs.frozen
class Result:
    """The result of a simulation."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    parted: Mapping[str, float]
    """Workloads and groups whose simulated lifecycle diverged from the recorded one, with the time of it."""
    seconds: float
    """The duration of the trace, in seconds."""
    groups: frozenset[str] = frozenset()
    """The names in `diverged_at` and in the rows that belong to groups or to the host."""


def simulate(config: Config, trace: Trace, seed: int = 0) -> Result:
    """Replay a trace through a configuration; `seed` determines the jitter."""
    recorded: Mapping[str, Line] = trace.head["workloads"]
    lives: dict[str, Replayed] = {}
    warnings: list[str] = []
    for name, recorded_config in recorded.items():
        workload = config.workloads.get(name.partition("@")[0])
        if workload is None:
            warnings.append(f"{name} is in the trace, but not in the configuration: nothing would have been done")
        else:
            jitter = random.Random(f"{seed}:{name}")  # noqa: S311 - no secret
            lives[name] = Replayed(name, workload, recorded_config, jitter, lambda: groups)
    recorded_workloads = {name.partition("@")[0] for name in recorded}
    warnings += [
        f"{name} is not in the trace: nothing is known of it"
        for name in config.workloads
        if name not in recorded_workloads
    ]
    groups = ReplayedGroups(config, trace, lives)
    others: list[Done] = []
    end = trace.began
    for line in trace.lines:
        end = max(end, float(line["t"]))
        if "sample" in line:
            for name, snapshot in line["sample"].items():
                if name in lives:
                    lives[name].sampled(line["t"], snapshot, line.get("whole", {}).get(name, ()))
            groups.sampled(line)
        elif (addressed := lives.get(line.get("of", ""))) is not None:
            addressed.take(line)
        elif (group := groups.by_name.get(line.get("of", ""))) is not None:
            group.take(line)
        elif "of" in line:
            others += [Done(line["t"], deed) for deed in line.get("did", ())]
    for life in lives.values():
        life.advance(end)
        warnings += life.warnings()
    warnings += groups.warnings()
    if not trace.complete:
        warnings.append("the trace has no end: it was cut off, and something may be missing")
    rows = [row for life in lives.values() for row in life.rows(trace.began)]
    missing = [name for name in recorded if name not in lives]
    rows += [row for name in missing for row in pairs(name, _recorded_actions(trace, name), [], trace.began)]
    rows += [row for group in groups.by_name.values() for row in pairs(group.name, group.was, group.would, trace.began)]
    rows.sort(key=lambda row: row.at)  # a stable sort: actions at one time keep their order
    times = {name: life.parted for name, life in lives.items()} | groups.parted()
    parted = {name: round(at - trace.began, 6) for name, at in times.items() if at is not None}
    return Result(tuple(rows), tuple(warnings), parted, round(end - trace.began, 6), frozenset(groups.by_name))


@attrs.define(eq=False)
class Replayed:
    """One workload of the simulation, with its recorded and its simulated state."""

    name: str
    workload: Workload
    known: Line
    """Its configuration as recorded in the trace."""
    chance: random.Random
    groups: Callable[[], ReplayedGroups]
    mind: Mind = attrs.field(init=False)
    own: Line = attrs.field(init=False)
    """The tried configuration, in the form of a trace."""
    same_rules: bool = attrs.field(init=False)
    apart: bool = False
    """The trace does not describe the current generation of this workload."""
    parted: float | None = None
    begun: bool = False
    recorded_begun: bool = False
    """With `restarted`: each side has started a generation since they diverged."""
    offset: int = 0
    """The difference between the simulated and the recorded generation numbers."""
    recorded_due: int = 0
    """The number of pending recorded rules; while there are some, the simulated rules wait, too."""
    recorded_life: tuple[State, int, float | None] = (State.STOPPED, 0, None)
    seen: dict[str, dict[str, float]] = attrs.field(factory=dict)
    """The values of the latest recorded observation, by file; `sampled_files` has those of samples."""
    samples: dict[str, dict[str, float]] = attrs.field(factory=dict)
    limits: Mapping[str, float | None] = attrs.field(factory=dict)
    was: list[Done] = attrs.field(factory=list)
    would: list[Done] = attrs.field(factory=list)
    changed_at: float | None = None
    awaited: Fired | None = None
    """A group rule's firing that is recorded too; the trace says when it takes effect."""
    unrecorded: list[Fired] = attrs.field(factory=list)
    """Firings of group rules that are not recorded."""

    def __attrs_post_init__(self) -> None:
        self.mind = Mind(Life(), Engine.of(self.workload.policy))
        self.own = settings(self.workload)
        self.same_rules = bare_rules(self.known) == bare_rules(self.own)

    # ---- lines of the trace

    def take(self, line: Line) -> None:
        """Handle a line about this workload."""
        now = float(line["t"])
        self.advance(now)
        if "mind" in line:
            self._begin(line["mind"])
        elif "limits" in line:
            self.limits = numbers(line["limits"])
        elif "seen" in line:
            self.recorded_due += line.get("due", 0)
            self._see(now, line["seen"], line.get("whole", ()))
        elif "changed" in line:
            self.known = line["changed"]
            self.same_rules = bare_rules(self.known) == bare_rules(self.own)
            self.changed_at = now if self.changed_at is None else self.changed_at
        elif "sentence" in line:
            self.recorded_due += 1
            self._hear(sentence(line["sentence"]), now)
        elif "turn" in line or "event" in line:
            self._step(line)

    def _hear(self, recorded: Sentence, now: float) -> None:
        """Handle a recorded action of a group's rule on this workload.

        If the trace has the group, the simulated group must have chosen this workload, too.
        """
        fired, self.awaited = self.awaited, None
        if recorded.fired.cause.group not in self.groups().by_name:
            fired = recorded.fired
        if fired is not None and not self.apart:
            self._think(Sentence(recorded.generation + self.offset, fired), now)
        elif fired is None and recorded.fired.action == "signal" and not recorded.fired.rule.dry_run:
            self._part(now)

    def hit(self, fired: Fired, now: float) -> None:
        """Apply a group rule's action that the recording does not have."""
        self.unrecorded.append(fired)
        self._think(Sentence(self.mind.life.generation, fired), now)
        self._turns(now)

    def memory(self) -> float:
        """Return the latest known memory usage in bytes."""
        return (self._known("memory.current") or {}).get("", 0.0)

    def sampled(self, now: float, snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
        """Handle values that only the recorder read; rules that the recorded service did not have observe them."""
        self.advance(now)
        learn(self.samples, snapshot, whole)
        if not self.exact and not self.apart:
            self._think(Seen({file: dict(values) for file, values in self.samples.items()}, self.limits), now)
            self._turns(now)

    def advance(self, now: float) -> None:
        """Let the lifecycle's own deadlines pass, up to `now`.

        If the recorded lifecycle has the same deadline, the trace says when it took effect.
        """
        while (deadline := self.mind.life.deadline) is not None and deadline <= now:
            if not self.apart and self.recorded_life[2] is not None and abs(self.recorded_life[2] - deadline) < 1e-6:
                return
            before = self.mind.life
            self._think(events.Timeout(), deadline)
            if self.mind.life is before:  # only in a trace that no service has written
                return

    @property
    def exact(self) -> bool:
        """Whether the rules observe exactly what the recorded ones did, at the same times."""
        return self.same_rules and self.parted is None

    def _begin(self, recorded: Line) -> None:
        """Restore the state at the start of the recording, or at a restart of it for a replaced instance.

        Rules that existed then keep their state.
        """
        life = restored(Life, recorded["life"])
        self.mind = Mind(life, remembered(self.mind.engine, self.own, self.known, recorded["memories"]))
        self.recorded_life = life.state, life.generation, life.deadline
        self.apart, self.offset, self.recorded_due = False, 0, 0

    def _see(self, now: float, snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
        learn(self.seen, snapshot, whole)
        if self.apart:
            return
        observed = {file: dict(self.seen[file]) for file in snapshot}
        if not self.exact:
            observed.pop(
                EXIT, None
            )  # the exit itself is observed in `_exit`, as the recorded rules may not reference it
            joint_files = [
                joint_file
                for file in observed
                for joint_file in self.mind.engine.together(file)
                if joint_file not in observed
            ]
            observed |= {
                joint_file: dict(latest)
                for joint_file in joint_files
                if (latest := self._known(joint_file)) is not None
            }
        self._think(Seen(observed, self.limits), now)
        if not self.exact:
            self._turns(now)

    def _known(self, file: str) -> Mapping[str, float] | None:
        return self.samples.get(file, self.seen.get(file))

    def _exit(self, event: events.Exited, now: float, chance: float) -> None:
        """Handle an exit as the service does: the rules observe it and run before the lifecycle does."""
        thoughts = []
        if event.generation == self.mind.life.generation and (facts := event.exit.facts()):
            thoughts.append(self._take(Seen({EXIT: facts}, self.limits), now, None))
            while self.mind.due:
                thoughts.append(self._take(Turn(), now, None))
        thoughts.append(self._take(event, now, chance))
        for thought in thoughts:
            self._follow(*thought, now)

    def _step(self, line: Line) -> None:
        """Handle an event, a command, or a pending action."""
        now, what = float(line["t"]), happened(line)
        state, generation, deadline = line["life"]
        self.recorded_life = State(state), generation, deadline
        for deed in line.get("did", ()):
            self.was.append(Done(now, deed))
            if deed["action"] in _PROGRAM_EFFECTS and "cause" in deed and not self._has(deed["cause"]):
                self._part(now)
        if isinstance(what, events.Execed):
            self.recorded_begun = True
        if isinstance(what, Turn):
            self.recorded_due = max(self.recorded_due - 1, 0)
        if self.apart and not isinstance(what, events.Wish):
            self._rejoin(now)
            return
        if isinstance(what, events.Fact):
            what = attrs.evolve(what, generation=what.generation + self.offset)
        if isinstance(what, Turn) and not self.exact:
            self._turns(now)
        elif isinstance(what, events.Exited) and not self.exact:
            self._exit(what, now, float(line["chance"]))
        else:
            self._think(what, now, float(line["chance"]))
            if self.mind.due and not self.recorded_due:
                self._turns(now)

    # ---- simulation

    def _think(self, what: Input, now: float, chance: float | None = None) -> None:
        """Apply an input, and check whether the simulation diverges by it."""
        self._follow(*self._take(what, now, chance), now)

    def _take(self, what: Input, now: float, chance: float | None) -> tuple[Thought, bool]:
        """Apply an input and record the simulated actions; return whether a rule's action affects the program."""
        before = self.mind.life
        thought = take(self.mind, what, Moment(now, self.chance.random() if chance is None else chance), self.workload)
        self.mind = thought.mind
        is_guess = self.parted is not None or (
            thought.due is not None and self.groups().doubtful(thought.due.fired.cause.group)
        )
        self.would += [Done(now, deed, is_guess) for deed in deeds(before, thought, now)]
        fired = None if thought.due is None or thought.due.fired.rule.dry_run else thought.due.fired
        return thought, fired is not None and fired.action in _PROGRAM_EFFECTS and not self._knows(fired)

    def _follow(self, thought: Thought, treats: bool, now: float) -> None:
        """Handle the consequences of a transition; assume them while the trace does not know them."""
        if treats:
            self._part(now)
        if self._differs():
            self._part(now)
            self.apart, self.begun, self.recorded_begun = True, False, False
            self.mind = attrs.evolve(self.mind, due=())
        if self.apart:
            self._assume(thought, now)

    def _turns(self, now: float) -> None:
        """Run all pending rules, but not before the pending recorded ones have run."""
        if self.recorded_due or self.apart:
            return
        thoughts = []
        while self.mind.due:
            thoughts.append(self._take(Turn(), now, None))
        for thought in thoughts or [(Thought(self.mind), False)]:
            self._follow(*thought, now)

    def _assume(self, thought: Thought, now: float) -> None:
        """Assume that the program follows every action at once; the trace cannot contain the results."""
        generation = thought.mind.life.generation
        for action in thought.actions:
            match action:
                case Spawn():
                    self.begun = True
                    self._think(events.Execed(generation), now)
                    if self.workload.type == "notify":
                        self._think(events.Ready(generation), now)
                case Signal(signal=signum) if self.mind.life.state is State.STOPPING:
                    self._think(events.Exited(generation, Exit(signal=signum), populated=False), now)
                case KillAll():
                    self._think(events.Exited(generation, Exit(signal=9), populated=False), now)
        self._rejoin(now)

    # ---- divergence

    def _differs(self) -> bool:
        """Check whether this lifecycle differs from the recorded one."""
        life, (state, generation, _) = self.mind.life, self.recorded_life
        is_same_state = life.state is state or (life.state in _UP and state in _UP)
        return not self.apart and not (is_same_state and life.generation == generation + self.offset)

    def _part(self, now: float) -> None:
        self.parted = now if self.parted is None else self.parted

    def _rejoin(self, now: float) -> None:
        """Rejoin the trace: both sides have restarted and run, so the recorded program stands for this one."""
        if not (self.apart and self.begun and self.recorded_begun):
            return
        if self.mind.life.state not in _UP or self.recorded_life[0] not in _UP:
            return
        self.apart, self.offset = False, self.mind.life.generation - self.recorded_life[1]
        engine, counters = begun_anew(self.mind.engine)
        self.mind = Mind(self.mind.life, engine)
        base_line = {file: dict(latest) for file in counters if (latest := self._known(file)) is not None}
        self._think(Seen(base_line, self.limits), now)

    def _has(self, cause: Line) -> bool:
        """Check whether a recorded rule is in the tried configuration; rules of groups are not this workload's."""
        return (
            self.same_rules
            or "group" in cause
            or any(bare(rule) in bare_rules(self.own) for rule in self.known["rules"] if rule["name"] == cause["rule"])
        )

    def _knows(self, fired: Fired) -> bool:
        """Check whether a tried rule is recorded too; a rule of a group must have chosen this workload there."""
        if fired.cause.group is not None:
            return fired not in self.unrecorded
        return any(
            bare(rule) in bare_rules(self.known) for rule in self.own["rules"] if rule["name"] == fired.rule.name
        )

    # ---- results

    def warnings(self) -> Iterator[str]:
        """Yield what the trace could not provide."""
        for rule in self.workload.policy:
            if what := unjudged(rule, self.known, self.samples, self.seen):
                yield f"{self.name}: {rule.name} (line {rule.line}) cannot be judged: {what} was not recorded"
        if self.known["resources"] != self.own["resources"]:
            yield f"{self.name}: its resources differ from the recorded ones; the limits here are those of the trace"
        if self.changed_at is not None:
            yield f"{self.name}: its configuration was changed during the recording; what came then is no longer exact"

    def rows(self, began: float) -> list[Row]:
        """Align the recorded actions with the simulated ones."""
        return pairs(self.name, self.was, self.would, began)


def _recorded_actions(trace: Trace, name: str) -> list[Done]:
    return [Done(line["t"], deed) for line in trace.lines if line.get("of") == name for deed in line.get("did", ())]
