"""The groups of a replay, and the host: their rules, and whom those would have hit.

The rules of a group see what the trace has of it. Where they are those that were recorded, they see just what those
saw, and have their turns when those had them; so the same configuration chooses the same members at the same times.
Other rules see the samples, too, and have their turns at once. At a recorded turn each candidate weighs what it weighed
then; at any other moment its memory is what the latest reading said, and its growth is measured from samples.
Priorities and preferences are always those of the configuration that is tried.

An act that was also recorded leads to what the trace says: it helped, or it is the next one's turn. Of any other it is
assumed that it helps at once.

While the life of a member is apart from the recorded one, what was read of the group is another group's, and its rules
are not shown it. When all are together again, it begins anew, and what it does is a guess from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.facts import EXIT
from nsupervisor.config.model import Config, Rule, Workload
from nsupervisor.config.model import Group as GroupConfig
from nsupervisor.core.beside import Done
from nsupervisor.core.grouping import Asked, chosen
from nsupervisor.core.plain import restored
from nsupervisor.core.rules import AtomMemory, Engine, Fired, Memory
from nsupervisor.core.trace import Line, Trace, bare_rules, group_settings, learn, numbers, telling
from nsupervisor.core.victims import Candidate, Growth

if TYPE_CHECKING:
    from nsupervisor.core.replay import Replayed

HOST = "host"
PREFIX = "group/"


def remembered(engine: Engine, own: Line, known: Line, told: Iterable[Any]) -> Engine:
    """With the memory that the trace tells of for each rule that is in both configurations."""
    pairs = [(rule, restored(Memory, one)) for rule, one in zip(bare_rules(known), told, strict=True)]
    memories = list(engine.memories)
    for i, rule in enumerate(bare_rules(own)):
        for pair in pairs:
            if pair[0] == rule and len(pair[1].atoms) == len(memories[i].atoms):
                memories[i] = pair[1]
                pairs.remove(pair)
                break
    return attrs.evolve(engine, memories=tuple(memories))


def begun_anew(engine: Engine) -> tuple[Engine, list[str]]:
    """Rules that go on with another program: what they saw before is no base line for it. Cooldowns and escalations go
    on. With the files whose first values are to be their base line."""
    memories = (attrs.evolve(m, atoms=(AtomMemory(),) * len(m.atoms), since=None, spent=False) for m in engine.memories)
    counters = {a.file for rule in engine.rules for a in rule.when.atoms if a.kind in ("counter", "stall")}
    return attrs.evolve(engine, memories=tuple(memories)), sorted(counters)


def unjudged(rule: Rule, known: Line, *files: Mapping[str, Mapping[str, float]]) -> str:
    """What a rule looks at and no line tells of; "" where there is all of it. A stall that a recorded rule waited for
    and of which nothing is told has not been."""
    waited = {
        (a.file, a.key) for one in known["rules"] for a in parse_condition(one["when"]).atoms if a.kind == "stall"
    }
    missing = [
        f"{atom.file} {atom.key or ''}".rstrip()
        for atom in rule.when.atoms
        if atom.file != EXIT
        and (atom.file, atom.key) not in waited
        and all(atom.of(told.get(atom.file, {})) is None for told in files)
    ]
    return " and ".join(dict.fromkeys(missing))


@attrs.frozen
class _Pending:
    """A rule that has gone off, and waits for its turn."""

    fired: Fired
    decided: float


@attrs.define
class _Act:
    """An act on a member that is under way, in the trace, too."""

    group: ReplayedGroup
    pending: _Pending
    victim: Replayed
    tried: dict[str, str]


class ReplayedGroups:
    """All groups of the configuration that is tried, as far as the trace has them; and those that only the trace has,
    which have no rules here."""

    def __init__(self, config: Config, trace: Trace, lives: Mapping[str, Replayed]) -> None:
        self.act: _Act | None = None
        self.config, self.trace = config, trace
        recorded: Mapping[str, Line] = trace.head.get("groups", {})
        self.by_name: dict[str, ReplayedGroup] = {}
        for name, known in recorded.items():
            group = _group(config, name) or GroupConfig(name=name)
            members = {one.name: one for one in lives.values() if name in _around(config, one.workload)}
            self.by_name[name] = ReplayedGroup(name, self, group, known, members)

    def parted(self) -> dict[str, float | None]:
        """Since when what each group does is a guess, where that could be anything."""
        return {one.name: one.parted for one in self.by_name.values()}

    def doubtful(self, name: str | None) -> bool:
        """What this group's rules see is another group's: what they do is a guess."""
        return name in self.by_name and self.by_name[name].doubtful

    def sampled(self, line: Line) -> None:
        """What the files of groups said."""
        for name, snapshot in line["sample"].items():
            if name in self.by_name:
                self.by_name[name].sampled(line["t"], snapshot, line.get("whole", {}).get(name, ()))

    def settle(self, now: float) -> None:
        """Rules that wait have their turns, where they may."""
        for group in self.by_name.values():
            group.settle(now)

    def hush(self, victim: Replayed, now: float) -> None:
        """Something was done to a member: its groups wait for what it leads to."""
        for group in self.by_name.values():
            if victim.name in group.members:
                group.engine, group.quiet_since = group.engine.hushed(now), now

    def warnings(self) -> Iterator[str]:
        """What is not tried, and why; and what the trace could not tell."""
        for name in (*(PREFIX + name for name in self.config.groups), HOST):
            group = _group(self.config, name)
            if name not in self.by_name:
                for rule in group.policy if group is not None else ():
                    yield (
                        f"{rule.name} (line {rule.line}) is not tried, as the trace does not have {name} with all of "
                        "its members; what it did in the recording is done here, too"
                    )
        known = {rule.when.text for name in (*self.config.groups, HOST) for rule in self._rules(name)}
        causes = [line["sentence"]["cause"] for line in self.trace.lines if "sentence" in line]
        untried = [cause for cause in causes if cause.get("group") not in self.by_name]
        for name, when in dict.fromkeys((cause["rule"], cause["when"]) for cause in untried):
            if when not in known:
                yield (
                    f"{name} ({when}) of the recording is not in the configuration; what it did is done here all the "
                    "same"
                )
        for one in self.by_name.values():
            yield from one.warnings(self.trace.began)

    def _rules(self, name: str) -> Iterable[Any]:
        return self.config.host.policy if name == HOST else self.config.groups[name].policy


def _group(config: Config, name: str) -> GroupConfig | None:
    if name == HOST:
        return GroupConfig(name=HOST, policy=config.host.policy)
    return config.groups.get(name.removeprefix(PREFIX))


def _around(config: Config, workload: Workload) -> set[str]:
    return {HOST, *(PREFIX + group.name for group in config.around(workload))}


@attrs.define(eq=False)
class ReplayedGroup:
    """One group of the simulation."""

    name: str
    groups: ReplayedGroups
    config: GroupConfig
    known: Line
    """What the trace says of its configuration."""
    members: Mapping[str, Replayed]
    own: Line = attrs.field(init=False)
    engine: Engine = attrs.field(init=False)
    same_rules: bool = attrs.field(init=False)
    pending: list[_Pending] = attrs.field(factory=list)
    recorded_due: int = 0
    """How many of the recorded rules wait for their turns; where there are some, the rules here wait, too."""
    quiet_since: float = float("-inf")
    blind: float | None = None
    """Since when its rules see nothing, as the life of a member is apart."""
    growth: Growth = attrs.field(factory=Growth)
    seen: dict[str, dict[str, float]] = attrs.field(factory=dict)
    samples: dict[str, dict[str, float]] = attrs.field(factory=dict)
    limits: Mapping[str, float | None] = attrs.field(factory=dict)
    was: list[Done] = attrs.field(factory=list)
    would: list[Done] = attrs.field(factory=list)
    changed_at: float | None = None

    def __attrs_post_init__(self) -> None:
        self.engine = Engine.of(self.config.policy)
        self.own = group_settings(self.config)
        self.same_rules = bare_rules(self.known) == bare_rules(self.own)

    @property
    def apart(self) -> bool:
        """The trace knows nothing of a member's life just now."""
        return any(one.apart for one in self.members.values())

    @property
    def doubtful(self) -> bool:
        """The life of a member has come apart from the recorded one, now or earlier."""
        return any(one.parted is not None for one in self.members.values())

    @property
    def parted(self) -> float | None:
        """Since when it is doubtful, where it has rules that could have done something."""
        times = [one.parted for one in self.members.values() if one.parted is not None]
        return min(times, default=None) if self.own["rules"] or self.known["rules"] else None

    @property
    def exact(self) -> bool:
        """The rules see what the recorded ones saw, when they saw it."""
        return self.same_rules and not self.doubtful

    # ---- what the trace tells

    def take(self, line: Line) -> None:
        """A line about this group."""
        now = float(line["t"])
        for member in self.members.values():
            member.advance(now)
        if "group" in line:
            self.engine = remembered(self.engine, self.own, self.known, line["group"]["memories"])
            self.quiet_since = restored(float, line["group"]["quiet_since"])
        elif "limits" in line:
            self.limits = numbers(line["limits"])
        elif "changed" in line:
            self.known = {**self.known, **line["changed"]}
            self.same_rules = bare_rules(self.known) == bare_rules(self.own)
            self.changed_at = now if self.changed_at is None else self.changed_at
        elif "seen" in line:
            self.recorded_due += line.get("due", 0)
            self.was += [Done(now, deed) for deed in line.get("did", ())]
            learn(self.seen, line["seen"], line.get("whole", ()))
            self._see(now, {file: dict(self.seen[file]) for file in line["seen"]})
        elif "choice" in line:
            self._turn(now, line["choice"])
        elif "passed" in line:
            self.recorded_due = max(self.recorded_due - 1, 0)
            one = next((one for one in self.pending if not one.fired.rule.dry_run), None)
            if one is not None and self._late(one):
                self.pending.remove(one)
            self.settle(now)
        elif "outcome" in line:
            self._came(now, line["outcome"])

    def sampled(self, now: float, snapshot: Mapping[str, Any], whole: Iterable[str]) -> None:
        """What the files said, seen by the recorder alone."""
        learn(self.samples, snapshot, tuple(whole))
        if self.growth.due(now):
            alive = {name: one.memory() for name, one in self.members.items() if one.mind.life.alive}
            self.growth = self.growth.taken(now, alive)
        if not self.exact:
            self._see(now, {file: dict(values) for file, values in self.samples.items()})

    def _see(self, now: float, snapshot: dict[str, dict[str, float]]) -> None:
        if self.apart:
            self.blind = now if self.blind is None else self.blind
            return
        if self.blind is not None:
            self.blind = None
            self.engine, counters = begun_anew(self.engine)
            base_line = {file: dict(known) for file in counters if (known := self._known(file)) is not None}
            self.engine, _ = self.engine.observe(base_line, self.limits, now)
        if not self.exact:
            others = [other for file in snapshot for other in self.engine.together(file) if other not in snapshot]
            snapshot |= {other: dict(known) for other in others if (known := self._known(other)) is not None}
        self.engine, fired = self.engine.observe(snapshot, self.limits, now)
        asked = Asked.by(fired)
        self.would += [Done(now, telling(one, self.name), self.doubtful) for one in asked.told]
        acts = (*asked.dry, *(() if asked.act is None else (asked.act,)))
        self.pending += [_Pending(one, now) for one in acts]
        self.settle(now)

    def _known(self, file: str) -> Mapping[str, float] | None:
        return self.samples.get(file, self.seen.get(file))

    # ---- acts

    def settle(self, now: float) -> None:
        """Rules that have gone off have their turns; not before the recorded ones that wait have had theirs, and no act
        while another one is under way."""
        if self.recorded_due:
            return
        waiting, self.pending = self.pending, []
        for one in waiting:
            if self.groups.act is not None and not one.fired.rule.dry_run:
                self.pending.append(one)
            else:
                self._hit(now, one, self._candidates(now), {}, None)

    def _turn(self, now: float, told: Line) -> None:
        """A recorded rule has its turn, and so has the one of these that it stands for."""
        act, tried, one = self.groups.act, {}, None
        if not told["tried"]:
            self.recorded_due = max(self.recorded_due - 1, 0)
            one = self._twin(told)
        elif act is not None and act.group is self:  # what it did before has not helped
            one, tried, self.groups.act = act.pending, act.tried, None
        if one is not None:
            self._hit(now, one, self._candidates(now, told["candidates"]), tried, told)
        self.groups.settle(now)

    def _late(self, pending: _Pending) -> bool:
        """Something was done to a member meanwhile."""
        return not pending.fired.rule.dry_run and self.quiet_since >= pending.decided

    def _twin(self, told: Line) -> _Pending | None:
        """Of the rules that wait the one that a recorded one is, or is most like."""

        def unlike(one: _Pending) -> tuple[bool, bool]:
            return one.fired.rule.when.text != told["rule"]["when"], not self._alike(one.fired, told)

        one = min(self.pending, key=unlike, default=None)  # the first of those that are alike
        if one is not None:
            self.pending.remove(one)
        return one

    def _hit(
        self, now: float, pending: _Pending, candidates: Iterable[Candidate], tried: dict[str, str], told: Line | None
    ) -> None:
        """Do it to the first candidate. ``told``: the recorded turn that this is."""
        fired = pending.fired
        if self.apart or (not tried and self._late(pending)):
            return
        _, name, sentence = chosen(self.name, fired, candidates, tried)
        if name is None:
            return
        victim = self.members[name]
        if told is not None and not victim.apart and self._alike(fired, told) and told["victim"] == name:
            victim.awaited = sentence  # the trace says when it hears of it, and what comes of that
            if not fired.rule.dry_run:
                self.groups.act = _Act(self, pending, victim, tried)
            return
        if not fired.rule.dry_run:
            self.groups.hush(victim, now)
        victim.hit(sentence, now)

    def _alike(self, fired: Fired, told: Line) -> bool:
        rule, other = fired.rule, told["rule"]
        return (fired.action, rule.dry_run) == (told["action"], other.get("dry_run", False)) and (
            fired.action != "signal" or rule.signal == other.get("signal")
        )

    def _came(self, now: float, told: Line) -> None:
        act = self.groups.act
        if act is None or act.group is not self or act.victim.name != told["victim"]:
            return  # of an act that was not done here
        self.groups.hush(act.victim, now)
        if told["helped"]:
            self.groups.act = None
            self.groups.settle(now)
        else:
            act.tried = {**act.tried, act.victim.name: told["why"]}

    def _candidates(self, now: float, told: Any = ()) -> list[Candidate]:
        """Those that run, as they are now."""
        then = {one.name: one for one in restored(tuple[Candidate, ...], list(told))}
        found = []
        for name, member in self.members.items():
            life, workload, was = member.mind.life, member.workload, then.get(name)
            if not life.alive:
                continue
            memory = was.memory if was is not None else member.memory()
            growth = was.growth if was is not None else self.growth.of(name, now, memory)
            age = was.age if was is not None and member.parted is None else now - life.started_at
            found.append(Candidate(name, memory, growth, workload.priority, age, workload.managed_oom_preference))
        return found

    # ---- the end

    def warnings(self, began: float) -> Iterator[str]:
        """What the trace could not tell."""
        for rule in self.config.policy:
            if what := unjudged(rule, self.known, self.samples, self.seen):
                yield f"{rule.name} (line {rule.line}) cannot be judged: {what} of {self.name} was not recorded"
        if not self.own["rules"]:
            return
        if self.known["resources"] != self.own["resources"]:
            yield f"{self.name}: its limits differ from the recorded ones; the limits here are those of the trace"
        if set(self.known["members"]) != set(self.members):
            yield f"{self.name}: its members differ from the recorded ones; what its rules see here is of those"
        if self.changed_at is not None:
            yield f"{self.name}: its configuration was changed during the recording; what came then is no longer exact"
        if self.blind is not None:
            apart = ", ".join(sorted(name for name, one in self.members.items() if one.apart))
            yield (
                f"{self.name}: from {self.blind - began:+.3f} on its rules see nothing: "
                f"what was read is of the recorded life of {apart}"
            )
