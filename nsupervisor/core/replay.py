"""A trace through another configuration: what would have been done, beside what was done.

Each workload of the trace has a mind of the configuration that is tried, and takes in what the trace tells. As long as
its life is what the recorded one was, that is exact: with an unchanged configuration the same deeds come out, at the
same times.

When the two lives come *apart* (this one restarts where that one did not, or the other way round), the trace knows
nothing of this program any more: its readings and its facts are another life's. So, until both have begun anew:

* no reading is shown to the rules, and no fact is told;
* what this life asks for is assumed to work at once: a program that is started runs, and is ready; one that is told to
  stop ends, by that signal, and leaves nobody behind; one that runs goes on running quietly;
* its own deadlines pass when they are due, and people's wishes are heard as they were.

When each has started a generation since, the recorded program stands for this one: readings and facts count again, the
first values of counters as a base line. Whatever is done from the first parting on is marked ``after``: it may have
come otherwise. So is what is done after a rule that is not in the trace's configuration sent a signal or set a limit
(or one that is there, and no longer here, did): that may have changed what the program did, too.

Rules of groups and of the host choose their victims among these lives (`nsupervisor.core.replay_groups`). Of a trace
that has no groups, what such a rule did is done to the simulated life, too.

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
_TREATS = ("signal", "set")
"""Actions of rules that change how a program goes on, and leave its life as it is."""


@attrs.frozen
class Result:
    """What a simulation found."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    parted: Mapping[str, float]
    """Workloads whose simulated life came apart from the recorded one, and their groups, and when."""
    seconds: float
    """How long the trace is."""
    groups: frozenset[str] = frozenset()
    """The names among these that are of groups, or the host's."""


def simulate(config: Config, trace: Trace, seed: int = 0) -> Result:
    """Replay a trace through a configuration."""
    recorded: Mapping[str, Line] = trace.head["workloads"]
    lives: dict[str, Replayed] = {}
    warnings: list[str] = []
    for name, known in recorded.items():
        workload = config.workloads.get(name.partition("@")[0])
        if workload is None:
            warnings.append(f"{name} is in the trace, but not in the configuration: nothing would have been done")
        else:
            lives[name] = Replayed(name, workload, known, random.Random(f"{seed}:{name}"), lambda: groups)  # noqa: S311 - jitter
    told = {name.partition("@")[0] for name in recorded}
    warnings += [f"{name} is not in the trace: nothing is known of it" for name in config.workloads if name not in told]
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
        elif (one := lives.get(line.get("of", ""))) is not None:
            one.take(line)
        elif (group := groups.by_name.get(line.get("of", ""))) is not None:
            group.take(line)
        elif "of" in line:
            others += [Done(line["t"], deed) for deed in line.get("did", ())]
    for one in lives.values():
        one.advance(end)
        warnings += one.warnings()
    warnings += groups.warnings()
    if not trace.complete:
        warnings.append("the trace has no end: it was cut off, and something may be missing")
    rows = [row for one in lives.values() for row in one.rows(trace.began)]
    gone = [name for name in recorded if name not in lives]
    rows += [row for name in gone for row in pairs(name, _deeds_of(trace, name), [], trace.began)]
    rows += [row for one in groups.by_name.values() for row in pairs(one.name, one.was, one.would, trace.began)]
    rows.sort(key=lambda row: row.at)  # it is stable: what is done at one time stays in order
    times = {name: one.parted for name, one in lives.items()} | groups.parted()
    parted = {name: round(at - trace.began, 6) for name, at in times.items() if at is not None}
    return Result(tuple(rows), tuple(warnings), parted, round(end - trace.began, 6), frozenset(groups.by_name))


@attrs.define(eq=False)
class Replayed:
    """One workload of the simulation."""

    name: str
    workload: Workload
    known: Line
    """What the trace says of its configuration."""
    chance: random.Random
    groups: Callable[[], ReplayedGroups]
    mind: Mind = attrs.field(init=False)
    own: Line = attrs.field(init=False)
    """What a trace would say of this configuration."""
    same_rules: bool = attrs.field(init=False)
    apart: bool = False
    """The trace knows nothing of this life just now."""
    parted: float | None = None
    begun: bool = False
    recorded_begun: bool = False
    """Each: a generation has begun since they came apart."""
    offset: int = 0
    """What its generations are ahead of the recorded ones."""
    recorded_due: int = 0
    """How many of the recorded rules wait for their turns; where there are some, the rules of this life wait, too."""
    recorded_life: tuple[State, int, float | None] = (State.STOPPED, 0, None)
    seen: dict[str, dict[str, float]] = attrs.field(factory=dict)
    """What the recorded rules saw last, by file; what is known from samples is apart from it."""
    samples: dict[str, dict[str, float]] = attrs.field(factory=dict)
    limits: Mapping[str, float | None] = attrs.field(factory=dict)
    was: list[Done] = attrs.field(factory=list)
    would: list[Done] = attrs.field(factory=list)
    changed_at: float | None = None
    awaited: Fired | None = None
    """What a group's rule asks for here as it did in the recording; the trace says when that was heard."""
    unrecorded: list[Fired] = attrs.field(factory=list)
    """What rules of groups ask for here alone."""

    def __attrs_post_init__(self) -> None:
        self.mind = Mind(Life(), Engine.of(self.workload.policy))
        self.own = settings(self.workload)
        self.same_rules = bare_rules(self.known) == bare_rules(self.own)

    # ---- what the trace tells

    def take(self, line: Line) -> None:
        """A line about this workload."""
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

    def _hear(self, told: Sentence, now: float) -> None:
        """A rule of a group had chosen this one. Where groups are tried, it has here, too, if that is awaited."""
        fired, self.awaited = self.awaited, None
        if told.fired.cause.group not in self.groups().by_name:
            fired = told.fired
        if fired is not None and not self.apart:
            self._think(Sentence(told.generation + self.offset, fired), now)
        elif fired is None and told.fired.action == "signal" and not told.fired.rule.dry_run:
            self._part(now)

    def hit(self, fired: Fired, now: float) -> None:
        """A rule of a group has chosen this one, and had not in the recording."""
        self.unrecorded.append(fired)
        self._think(Sentence(self.mind.life.generation, fired), now)
        self._turns(now)

    def memory(self) -> float:
        """What it uses, as far as is known."""
        return (self._known("memory.current") or {}).get("", 0.0)

    def sampled(self, now: float, snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
        """What the files said, seen by the recorder alone: rules that the trace's service did not have look at it."""
        self.advance(now)
        learn(self.samples, snapshot, whole)
        if not self.exact and not self.apart:
            self._think(Seen({file: dict(values) for file, values in self.samples.items()}, self.limits), now)
            self._turns(now)

    def advance(self, now: float) -> None:
        """Let this life's own deadlines pass, up to ``now``. Where the recorded life has the same one, the trace tells
        when that was heard."""
        while (deadline := self.mind.life.deadline) is not None and deadline <= now:
            if not self.apart and self.recorded_life[2] is not None and abs(self.recorded_life[2] - deadline) < 1e-6:
                return
            before = self.mind.life
            self._think(events.Timeout(), deadline)
            if self.mind.life is before:  # only in a trace that no service has written
                return

    @property
    def exact(self) -> bool:
        """The rules see what the recorded ones saw, when they saw it."""
        return self.same_rules and self.parted is None

    def _begin(self, told: Line) -> None:
        """What was remembered when the recording began, or began anew for an instance that replaces another; of rules
        that were there then, their memory, too."""
        life = restored(Life, told["life"])
        self.mind = Mind(life, remembered(self.mind.engine, self.own, self.known, told["memories"]))
        self.recorded_life = life.state, life.generation, life.deadline
        self.apart, self.offset, self.recorded_due = False, 0, 0

    def _see(self, now: float, snapshot: Mapping[str, Any], whole: Sequence[str]) -> None:
        learn(self.seen, snapshot, whole)
        if self.apart:
            return
        seen = {file: dict(self.seen[file]) for file in snapshot}
        if not self.exact:
            seen.pop(EXIT, None)  # the exit itself tells it (`_exit`), for the recorded rules may not have asked
            others = [other for file in seen for other in self.mind.engine.together(file) if other not in seen]
            seen |= {other: dict(known) for other in others if (known := self._known(other)) is not None}
        self._think(Seen(seen, self.limits), now)
        if not self.exact:
            self._turns(now)

    def _known(self, file: str) -> Mapping[str, float] | None:
        return self.samples.get(file, self.seen.get(file))

    def _exit(self, event: events.Exited, now: float, chance: float) -> None:
        """As the service does: rules are told how a program ended, and have their turns, before its life is told."""
        thoughts = []
        if event.generation == self.mind.life.generation and (facts := event.exit.facts()):
            thoughts.append(self._take(Seen({EXIT: facts}, self.limits), now, None))
            while self.mind.due:
                thoughts.append(self._take(Turn(), now, None))
        thoughts.append(self._take(event, now, chance))
        for thought in thoughts:
            self._follow(*thought, now)

    def _step(self, line: Line) -> None:
        """An event, or a rule's turn."""
        now, what = float(line["t"]), happened(line)
        state, generation, deadline = line["life"]
        self.recorded_life = State(state), generation, deadline
        for deed in line.get("did", ()):
            self.was.append(Done(now, deed))
            if deed["action"] in _TREATS and "cause" in deed and not self._has(deed["cause"]):
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

    # ---- what this life makes of it

    def _think(self, what: Input, now: float, chance: float | None = None) -> None:
        """Take in something, and see whether that parts this life from the recorded one."""
        self._follow(*self._take(what, now, chance), now)

    def _take(self, what: Input, now: float, chance: float | None) -> tuple[Thought, bool]:
        """Take in something, and note what would be done about it; with whether a rule's action treats the program."""
        before = self.mind.life
        thought = take(self.mind, what, Moment(now, self.chance.random() if chance is None else chance), self.workload)
        self.mind = thought.mind
        guess = self.parted is not None or (
            thought.due is not None and self.groups().doubtful(thought.due.fired.cause.group)
        )
        self.would += [Done(now, deed, guess) for deed in deeds(before, thought, now)]
        fired = None if thought.due is None or thought.due.fired.rule.dry_run else thought.due.fired
        return thought, fired is not None and fired.action in _TREATS and not self._knows(fired)

    def _follow(self, thought: Thought, treats: bool, now: float) -> None:
        """What comes of a thought; where the trace does not know that, what is assumed."""
        if treats:
            self._part(now)
        if self._differs():
            self._part(now)
            self.apart, self.begun, self.recorded_begun = True, False, False
            self.mind = attrs.evolve(self.mind, due=())
        if self.apart:
            self._assume(thought, now)

    def _turns(self, now: float) -> None:
        """All rules that wait have their turns; not before the recorded ones that wait have had theirs."""
        if self.recorded_due or self.apart:
            return
        thoughts = []
        while self.mind.due:
            thoughts.append(self._take(Turn(), now, None))
        for thought in thoughts or [(Thought(self.mind), False)]:
            self._follow(*thought, now)

    def _assume(self, thought: Thought, now: float) -> None:
        """The trace cannot know what came of these actions: the program does as it is told, at once."""
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

    # ---- together and apart

    def _differs(self) -> bool:
        """This life is another than the recorded one."""
        life, (state, generation, _) = self.mind.life, self.recorded_life
        alike = life.state is state or (life.state in _UP and state in _UP)
        return not self.apart and not (alike and life.generation == generation + self.offset)

    def _part(self, now: float) -> None:
        self.parted = now if self.parted is None else self.parted

    def _rejoin(self, now: float) -> None:
        """Both have begun anew, and run: the recorded program stands for this one from here on."""
        if not (self.apart and self.begun and self.recorded_begun):
            return
        if self.mind.life.state not in _UP or self.recorded_life[0] not in _UP:
            return
        self.apart, self.offset = False, self.mind.life.generation - self.recorded_life[1]
        engine, counters = begun_anew(self.mind.engine)
        self.mind = Mind(self.mind.life, engine)
        base_line = {file: dict(known) for file in counters if (known := self._known(file)) is not None}
        self._think(Seen(base_line, self.limits), now)

    def _has(self, cause: Line) -> bool:
        """The rule of the trace's configuration is in this one, too; those of groups come from outside of this life."""
        return (
            self.same_rules
            or "group" in cause
            or any(bare(one) in bare_rules(self.own) for one in self.known["rules"] if one["name"] == cause["rule"])
        )

    def _knows(self, fired: Fired) -> bool:
        """The rule of this configuration is in the trace's, too; one of a group had chosen this one there, too."""
        if fired.cause.group is not None:
            return fired not in self.unrecorded
        return any(bare(one) in bare_rules(self.known) for one in self.own["rules"] if one["name"] == fired.rule.name)

    # ---- the end

    def warnings(self) -> Iterator[str]:
        """What the trace could not tell."""
        for rule in self.workload.policy:
            if what := unjudged(rule, self.known, self.samples, self.seen):
                yield f"{self.name}: {rule.name} (line {rule.line}) cannot be judged: {what} was not recorded"
        if self.known["resources"] != self.own["resources"]:
            yield f"{self.name}: its resources differ from the recorded ones; the limits here are those of the trace"
        if self.changed_at is not None:
            yield f"{self.name}: its configuration was changed during the recording; what came then is no longer exact"

    def rows(self, began: float) -> list[Row]:
        """What was done, beside what would have been done."""
        return pairs(self.name, self.was, self.would, began)


def _deeds_of(trace: Trace, name: str) -> list[Done]:
    return [Done(line["t"], deed) for line in trace.lines if line.get("of") == name for deed in line.get("did", ())]
