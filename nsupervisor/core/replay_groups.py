"""Groups of a replay, and the host: their rules and the victims of these.

The rules of a group observe what the trace has of it. If they equal the recorded rules, they observe exactly what those
did, and run when those ran; so the same configuration chooses the same members at the same times. Other rules observe
the samples, too, and run at once. At a recorded choice each candidate has its recorded values; at any other moment its
memory is the latest reading, and its growth is measured from samples. Priorities and preferences are always those of
the tried configuration.

An action that was also recorded has the recorded outcome: it helped, or the next candidate follows. Any other action is
assumed to help at once.

While the lifecycle of a member has diverged from the recorded one, the readings of the group belong to another history,
and its rules do not observe them. When all members have rejoined, the group starts from a new baseline, and its actions
are guesses from then on.
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


def remembered(engine: Engine, own: Line, known: Line, recorded_states: Iterable[Any]) -> Engine:
    """Restore the recorded state of each rule that is in both configurations."""
    unmatched = [
        (rule, restored(Memory, recorded_state))
        for rule, recorded_state in zip(bare_rules(known), recorded_states, strict=True)
    ]
    memories = list(engine.memories)
    for i, rule in enumerate(bare_rules(own)):
        for pair in unmatched:
            if pair[0] == rule and len(pair[1].atoms) == len(memories[i].atoms):
                memories[i] = pair[1]
                unmatched.remove(pair)
                break
    return attrs.evolve(engine, memories=tuple(memories))


def begun_anew(engine: Engine) -> tuple[Engine, list[str]]:
    """Start rules from a new baseline, for another program; return the engine, and the files to read as the baseline.

    Cooldowns and escalations continue.
    """
    memories = (
        attrs.evolve(state, atoms=(AtomMemory(),) * len(state.atoms), since=None, spent=False)
        for state in engine.memories
    )
    counters = {atom.file for rule in engine.rules for atom in rule.when.atoms if atom.kind in ("counter", "stall")}
    return attrs.evolve(engine, memories=tuple(memories)), sorted(counters)


def unjudged(rule: Rule, known: Line, *files: Mapping[str, Mapping[str, float]]) -> str:
    """Return the inputs of `rule` that the trace lacks, or "".

    A stall watched by a recorded rule but never reported did not occur.
    """
    recorded_stalls = {
        (stall_atom.file, stall_atom.key)
        for recorded_rule in known["rules"]
        for stall_atom in parse_condition(recorded_rule["when"]).atoms
        if stall_atom.kind == "stall"
    }
    missing = [
        f"{atom.file} {atom.key or ''}".rstrip()
        for atom in rule.when.atoms
        if atom.file != EXIT
        and (atom.file, atom.key) not in recorded_stalls
        and all(atom.of(values.get(atom.file, {})) is None for values in files)
    ]
    return " and ".join(dict.fromkeys(missing))


@attrs.frozen
class _Pending:
    """A rule that fired and whose action is pending."""

    fired: Fired
    decided: float


@attrs.define
class _Act:
    """An action on a member that is in progress, in the trace, too."""

    group: ReplayedGroup
    pending: _Pending
    victim: Replayed
    tried: dict[str, str]


class ReplayedGroups:
    """All groups of the tried configuration that the trace has, and the groups of the trace alone.

    The latter have no rules here.
    """

    def __init__(self, config: Config, trace: Trace, lives: Mapping[str, Replayed]) -> None:
        self.act: _Act | None = None
        self.config, self.trace = config, trace
        recorded: Mapping[str, Line] = trace.head.get("groups", {})
        self.by_name: dict[str, ReplayedGroup] = {}
        for name, known in recorded.items():
            group = _group(config, name) or GroupConfig(name=name)
            members = {life.name: life for life in lives.values() if name in _enclosing_names(config, life.workload)}
            self.by_name[name] = ReplayedGroup(name, self, group, known, members)

    def parted(self) -> dict[str, float | None]:
        """Return since when each group's actions are guesses, if it can have any actions."""
        return {group.name: group.parted for group in self.by_name.values()}

    def doubtful(self, name: str | None) -> bool:
        """Check whether a group's rules observe another history, so that their actions are guesses."""
        return name in self.by_name and self.by_name[name].doubtful

    def sampled(self, line: Line) -> None:
        """Handle the samples of groups' files."""
        for name, snapshot in line["sample"].items():
            if name in self.by_name:
                self.by_name[name].sampled(line["t"], snapshot, line.get("whole", {}).get(name, ()))

    def settle(self, now: float) -> None:
        """Run the pending rules that may run."""
        for group in self.by_name.values():
            group.settle(now)

    def hush(self, victim: Replayed, now: float) -> None:
        """Start the cooldown of a victim's groups, which wait for the outcome of the action."""
        for group in self.by_name.values():
            if victim.name in group.members:
                group.engine, group.quiet_since = group.engine.hushed(now), now

    def warnings(self) -> Iterator[str]:
        """Yield which rules are not tried and why, and what the trace could not provide."""
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
        for tried_group in self.by_name.values():
            yield from tried_group.warnings(self.trace.began)

    def _rules(self, name: str) -> Iterable[Any]:
        return self.config.host.policy if name == HOST else self.config.groups[name].policy


def _group(config: Config, name: str) -> GroupConfig | None:
    if name == HOST:
        return GroupConfig(name=HOST, policy=config.host.policy)
    return config.groups.get(name.removeprefix(PREFIX))


def _enclosing_names(config: Config, workload: Workload) -> set[str]:
    return {HOST, *(PREFIX + group.name for group in config.around(workload))}


@attrs.define(eq=False)
class ReplayedGroup:
    """One group of the simulation, with its recorded and its simulated state."""

    name: str
    groups: ReplayedGroups
    config: GroupConfig
    known: Line
    """Its configuration as recorded in the trace."""
    members: Mapping[str, Replayed]
    own: Line = attrs.field(init=False)
    engine: Engine = attrs.field(init=False)
    same_rules: bool = attrs.field(init=False)
    pending: list[_Pending] = attrs.field(factory=list)
    recorded_due: int = 0
    """The number of pending recorded rules; while there are some, the simulated rules wait, too."""
    quiet_since: float = float("-inf")
    blind: float | None = None
    """The time since which the rules observe nothing, because a member has diverged."""
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
        """Whether the trace does not describe the current generation of a member."""
        return any(member.apart for member in self.members.values())

    @property
    def doubtful(self) -> bool:
        """Whether a member's lifecycle has diverged from the recorded one, now or earlier."""
        return any(member.parted is not None for member in self.members.values())

    @property
    def parted(self) -> float | None:
        """The time since which it is uncertain, if it has rules that could have acted."""
        times = [member.parted for member in self.members.values() if member.parted is not None]
        return min(times, default=None) if self.own["rules"] or self.known["rules"] else None

    @property
    def exact(self) -> bool:
        """Whether the rules observe exactly what the recorded ones did, at the same times."""
        return self.same_rules and not self.doubtful

    # ---- lines of the trace

    def take(self, line: Line) -> None:
        """Handle a line about this group."""
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
            superseded = next((pending for pending in self.pending if not pending.fired.rule.dry_run), None)
            if superseded is not None and self._late(superseded):
                self.pending.remove(superseded)
            self.settle(now)
        elif "outcome" in line:
            self._came(now, line["outcome"])

    def sampled(self, now: float, snapshot: Mapping[str, Any], whole: Iterable[str]) -> None:
        """Handle values that only the recorder read."""
        learn(self.samples, snapshot, tuple(whole))
        if self.growth.due(now):
            alive = {name: member.memory() for name, member in self.members.items() if member.mind.life.alive}
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
            base_line = {file: dict(latest) for file in counters if (latest := self._known(file)) is not None}
            self.engine, _ = self.engine.observe(base_line, self.limits, now)
        if not self.exact:
            joint_files = [
                joint_file
                for file in snapshot
                for joint_file in self.engine.together(file)
                if joint_file not in snapshot
            ]
            snapshot |= {
                joint_file: dict(latest)
                for joint_file in joint_files
                if (latest := self._known(joint_file)) is not None
            }
        self.engine, fired = self.engine.observe(snapshot, self.limits, now)
        firings = Asked.by(fired)
        self.would += [Done(now, telling(firing, self.name), self.doubtful) for firing in firings.told]
        acts = (*firings.dry, *(() if firings.act is None else (firings.act,)))
        self.pending += [_Pending(firing, now) for firing in acts]
        self.settle(now)

    def _known(self, file: str) -> Mapping[str, float] | None:
        return self.samples.get(file, self.seen.get(file))

    # ---- actions

    def settle(self, now: float) -> None:
        """Run the pending rules, but not before the pending recorded ones have run.

        Only one action on a member is in progress at a time.
        """
        if self.recorded_due:
            return
        waiting, self.pending = self.pending, []
        for rule in waiting:
            if self.groups.act is not None and not rule.fired.rule.dry_run:
                self.pending.append(rule)
            else:
                self._hit(now, rule, self._candidates(now), {}, None)

    def _turn(self, now: float, choice: Line) -> None:
        """Run the simulated rule that corresponds to a recorded choice."""
        act, tried, match = self.groups.act, {}, None
        if not choice["tried"]:
            self.recorded_due = max(self.recorded_due - 1, 0)
            match = self._twin(choice)
        elif act is not None and act.group is self:  # the previous action has not helped
            match, tried, self.groups.act = act.pending, act.tried, None
        if match is not None:
            self._hit(now, match, self._candidates(now, choice["candidates"]), tried, choice)
        self.groups.settle(now)

    def _late(self, pending: _Pending) -> bool:
        """Check whether an action on a member came after the rule fired."""
        return not pending.fired.rule.dry_run and self.quiet_since >= pending.decided

    def _twin(self, choice: Line) -> _Pending | None:
        """Remove and return the pending rule that a recorded choice belongs to, or the most similar one."""

        def distance(candidate: _Pending) -> tuple[bool, bool]:
            return candidate.fired.rule.when.text != choice["rule"]["when"], not self._alike(candidate.fired, choice)

        nearest = min(self.pending, key=distance, default=None)  # the first of equally similar ones
        if nearest is not None:
            self.pending.remove(nearest)
        return nearest

    def _hit(
        self, now: float, pending: _Pending, candidates: Iterable[Candidate], tried: dict[str, str], choice: Line | None
    ) -> None:
        """Act on the first candidate. `choice`: the recorded choice that this is, if any."""
        fired = pending.fired
        if self.apart or (not tried and self._late(pending)):
            return
        _, name, sentence = chosen(self.name, fired, candidates, tried)
        if name is None:
            return
        victim = self.members[name]
        if choice is not None and not victim.apart and self._alike(fired, choice) and choice["victim"] == name:
            victim.awaited = sentence  # the trace says when it takes effect, and with which outcome
            if not fired.rule.dry_run:
                self.groups.act = _Act(self, pending, victim, tried)
            return
        if not fired.rule.dry_run:
            self.groups.hush(victim, now)
        victim.hit(sentence, now)

    def _alike(self, fired: Fired, choice: Line) -> bool:
        rule, recorded_rule = fired.rule, choice["rule"]
        return (fired.action, rule.dry_run) == (choice["action"], recorded_rule.get("dry_run", False)) and (
            fired.action != "signal" or rule.signal == recorded_rule.get("signal")
        )

    def _came(self, now: float, outcome: Line) -> None:
        act = self.groups.act
        if act is None or act.group is not self or act.victim.name != outcome["victim"]:
            return  # the outcome of an action that was not simulated
        self.groups.hush(act.victim, now)
        if outcome["helped"]:
            self.groups.act = None
            self.groups.settle(now)
        else:
            act.tried = {**act.tried, act.victim.name: outcome["why"]}

    def _candidates(self, now: float, recorded: Any = ()) -> list[Candidate]:
        """Return the running members with their present values."""
        recorded_candidates = {
            candidate.name: candidate for candidate in restored(tuple[Candidate, ...], list(recorded))
        }
        candidates = []
        for name, member in self.members.items():
            life, workload, recorded_candidate = member.mind.life, member.workload, recorded_candidates.get(name)
            if not life.alive:
                continue
            memory = recorded_candidate.memory if recorded_candidate is not None else member.memory()
            growth = recorded_candidate.growth if recorded_candidate is not None else self.growth.of(name, now, memory)
            age = (
                recorded_candidate.age
                if recorded_candidate is not None and member.parted is None
                else now - life.started_at
            )
            candidates.append(Candidate(name, memory, growth, workload.priority, age, workload.managed_oom_preference))
        return candidates

    # ---- results

    def warnings(self, began: float) -> Iterator[str]:
        """Yield what the trace could not provide."""
        for rule in self.config.policy:
            if missing := unjudged(rule, self.known, self.samples, self.seen):
                yield f"{rule.name} (line {rule.line}) cannot be judged: {missing} of {self.name} was not recorded"
        if not self.own["rules"]:
            return
        if self.known["resources"] != self.own["resources"]:
            yield f"{self.name}: its limits differ from the recorded ones; the limits here are those of the trace"
        if set(self.known["members"]) != set(self.members):
            yield f"{self.name}: its members differ from the recorded ones; what its rules see here is of those"
        if self.changed_at is not None:
            yield f"{self.name}: its configuration was changed during the recording; what came then is no longer exact"
        if self.blind is not None:
            apart = ", ".join(sorted(name for name, member in self.members.items() if member.apart))
            yield (
                f"{self.name}: from {self.blind - began:+.3f} on its rules see nothing: "
                f"what was read is of the recorded life of {apart}"
            )
