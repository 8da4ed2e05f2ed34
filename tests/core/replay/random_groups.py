"""Random groups for `tests.core.replay.random_traces`: rules that choose a workload, actions that help or do not."""

import random

import attrs

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import GroupConfig, GroupRule, WorkloadConfig
from nsupervisor.core.decider import GroupAction
from nsupervisor.core.lifecycle import State
from nsupervisor.core.replay.trace import TraceWriter
from nsupervisor.core.rules.group_policy import (
    ActionOutcome,
    Firings,
    GroupObserved,
    Skipped,
    VictimChosen,
    choose_victim,
)
from nsupervisor.core.rules.rules import Engine, Firing
from nsupervisor.core.rules.victims import Candidate

CONDITIONS = (
    "memory.current > 100M",
    "memory.current > 50%",
    "pids.current >= 12",
    "memory.events oom_kill",
    "memory.current > 40M and not pids.current < 6",
)
LIMITS = {"memory.max": 200.0 * 2**20}


def a_policy(rnd: random.Random, place: str) -> tuple[GroupRule, ...]:
    """Draw a rule of a group."""
    return tuple(_a_rule(rnd, f"{place}.policy[{i}]", i) for i in range(rnd.randint(0, 3)))


def _a_rule(rnd: random.Random, name: str, number: int) -> GroupRule:
    action = rnd.choice(("log", "kill", "kill", "stop", "restart", "freeze", "signal"))
    worn = rnd.random() < 0.3
    return GroupRule(
        when=parse_condition(rnd.choice(CONDITIONS)),
        for_=rnd.choice((0.0, 0.0, 0.5)),
        action=action,
        signal=1 if action == "signal" else None,
        cooldown=rnd.choice((0.0, 1.0, 15.0)),
        victim=rnd.choice(("largest-memory", "fastest-growing", "lowest-priority", "newest")),
        at_most=1 if worn else None,
        within=10.0 if worn else 0.0,
        then=(rnd.choice([word for word in ("log", "kill", "freeze") if word != action]),) if worn else (),
        dry_run=rnd.random() < 0.2,
        name=name,
        line=100 + number,
    )


@attrs.define(eq=False)
class GroupHistory:
    """One group; `Crowd` runs its pending rules."""

    name: str
    config: GroupConfig
    members: list
    engine: Engine = attrs.field(init=False)
    quiet_since: float = float("-inf")
    fired_at: dict[str, float] = attrs.field(factory=dict)
    files: dict[str, dict[str, float]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.engine = Engine.for_rules(self.config.policy)
        self.files = {
            "memory.current": {"": 2**20},
            "pids.current": {"": 1},
            "memory.events": {"oom_kill": 0},
        }


@attrs.define(eq=False)
class GroupHistories:
    """All groups and their pending rules; one action on a member is in progress at a time."""

    rnd: random.Random
    groups: list[GroupHistory]
    writer: TraceWriter
    waiting: list[tuple[GroupHistory, Firing, float]] = attrs.field(factory=list)
    under_way: tuple[GroupHistory, Firing, object, dict[str, str]] | None = None

    def note(self, group: GroupHistory, what: object, now: float) -> list[dict]:
        """Return the trace lines of one event of a group."""
        return list(self.writer.group_event(group.name, what, now))

    def next(self, now: float) -> list[dict]:
        """Advance one of the groups by a random step; return its lines."""
        draw = self.rnd.random()
        if self.under_way is not None and draw < 0.4:
            return self.outcome(now, self.rnd.random() < 0.7)
        if self.waiting and draw < 0.8:
            return self.turn(now)
        return self.see(self.rnd.choice(self.groups), now) if self.groups else []

    def see(self, group: GroupHistory, now: float) -> list[dict]:
        """Let the rules of a group observe its files."""
        rnd = self.rnd
        group.files["memory.current"] = {"": rnd.randint(0, 200) * 2**20}
        group.files["pids.current"] = {"": rnd.randint(1, 20)}
        group.files["memory.events"] = {"oom_kill": group.files["memory.events"]["oom_kill"] + rnd.choice((0, 0, 1))}
        files = {atom.file for rule in group.engine.rules for atom in rule.when.atoms}
        snapshot, before = {file: dict(group.files[file]) for file in sorted(files)}, group.engine
        group.engine, fired = group.engine.observe(snapshot, LIMITS, now)
        for firing in fired:
            before_that = group.fired_at.get(firing.rule.name, float("-inf"))
            assert (
                now - max(before_that, group.quiet_since if firing.rule.victim else before_that) >= firing.rule.cooldown
            )
            group.fired_at[firing.rule.name] = now
        asked = Firings.split(fired)
        lines = self.note(group, GroupObserved(snapshot, LIMITS, group.engine is not before, fired), now)
        self.waiting += [
            (group, firing, now) for firing in (*asked.dry_runs, *([asked.action] if asked.action else []))
        ]
        return lines

    def turn(self, now: float) -> list[dict]:
        """Run a pending rule, unless it is an action and another one is in progress."""
        group, fired, decided = self.waiting[0]
        if not fired.rule.dry_run and self.under_way is not None:
            return []
        self.waiting.pop(0)
        if not fired.rule.dry_run and group.quiet_since >= decided:
            return self.note(group, Skipped(), now)
        return self.hit(group, fired, {}, now)

    def hit(self, group: GroupHistory, fired: Firing, tried: dict[str, str], now: float) -> list[dict]:
        """Choose a victim, and act on it."""
        candidates = tuple(
            Candidate(
                member.name,
                self.rnd.randint(0, 100) * 2.0**20,
                self.rnd.choice((0.0, -1.5, 3e6)),
                member.workload.priority,
                now - member.state.lifecycle.started_at,
                member.workload.managed_oom_preference,
                member.state.lifecycle.state is State.FROZEN,
            )
            for member in group.members
            if member.state.lifecycle.is_alive
        )
        _, name, chosen = choose_victim(group.name, fired, candidates, tried)
        lines = self.note(group, VictimChosen(fired, candidates, dict(tried), name), now)
        if name is None:
            if not tried:
                group.engine = group.engine.without_member(fired.rule)
            return lines
        assert name not in tried, "a member that was tried before"
        victim = next(member for member in group.members if member.name == name)
        lines += victim.apply(GroupAction(victim.state.lifecycle.generation, chosen), now)
        if not fired.rule.dry_run:
            assert self.under_way is None, "two acts at once"
            self.under_way = group, fired, victim, tried
        return lines

    def outcome(self, now: float, helped: bool) -> list[dict]:
        """End the action in progress with a random outcome."""
        assert self.under_way is not None
        group, fired, victim, tried = self.under_way
        self.under_way = None
        for enclosing in self.groups:
            if victim in enclosing.members:
                enclosing.engine, enclosing.quiet_since = enclosing.engine.with_cooldown(now), now
        why = "" if helped else "it still has processes"
        lines = self.note(group, ActionOutcome(victim.name, helped, why), now)
        return lines if helped else lines + self.hit(group, fired, {**tried, victim.name: why}, now)

    def member_started(self, member: object) -> None:
        """Let the groups around a member know that its program has been executed."""
        for group in self.groups:
            if member in group.members:
                for rule, state in zip(group.engine.rules, group.engine.states, strict=True):
                    if state.lacks_member:
                        group.fired_at.pop(rule.name, None)
                group.engine = group.engine.with_started_member()

    def drain(self, now: float) -> None:
        """Run all pending rules; every action helps."""
        while self.waiting or self.under_way is not None:
            if self.under_way is not None:
                self.outcome(now, helped=True)
            else:
                self.turn(now)

    def all_files(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the values of all groups' files for a sample."""
        return {group.name: group.files for group in self.groups}


def preferences(rnd: random.Random, workload: WorkloadConfig) -> WorkloadConfig:
    """Draw the values of a candidate."""
    return attrs.evolve(
        workload,
        priority=rnd.randint(-1, 1),
        managed_oom_preference=rnd.choice(("none", "none", "avoid", "omit")),
    )
