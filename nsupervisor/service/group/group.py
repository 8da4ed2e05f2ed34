"""A group of workloads while the service runs: its limits, its readings, and its rules, which act on its members.

The group decides nothing. `nsupervisor.core.rules.rules` decides when a rule fires;
`nsupervisor.core.rules.victims` decides which member it acts on and whether that helped. The member carries out
the action itself: it receives the firing with its cause and handles it like one of its own rules
(`nsupervisor.core.decider`).

An action takes time, and a reload may change the rules and the members meanwhile. So an action continues with the
values that it began with: its rule, and the state of that rule's condition.

The whole host is a group as well: the cgroup that contains all workloads, which has no limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.config.model import GroupConfig, GroupRule, Resources
from nsupervisor.core.initiators import OPERATOR, Initiator
from nsupervisor.core.lifecycle import State
from nsupervisor.core.rules.group_policy import (
    ActionOutcome,
    Firings,
    GroupConfigChanged,
    GroupEvent,
    GroupObserved,
    Skipped,
    VictimChosen,
    choose_victim,
)
from nsupervisor.core.rules.rules import Engine, Firing, Limits, Snapshot
from nsupervisor.core.rules.sampling import STILL_COUNTER_S
from nsupervisor.core.rules.victims import Candidate, ExpectedEffect, MemoryGrowth, Ranked, freed_by_kill
from nsupervisor.logs.record import timestamp_now as timestamp
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.hooks import run_notification
from nsupervisor.service.instance.limits import LimitWriter, Result, Target
from nsupervisor.service.instance.rule_observer import RuleObserver
from nsupervisor.service.state.checkpoint import restore_rules, saved_rules
from nsupervisor.service.state.file import GroupCheckpoint, SavedRule

HOST = "host"
"""The name of the group that contains all workloads."""
EFFECT_POLL_S = 0.02
"""Seconds between two checks of what an action has led to."""
_MEMORY_PREFIXES = ("memory.", "host.memory", "host.meminfo")
"""Prefixes of the files that rules about memory read."""


@attrs.define(eq=False)
class Group:
    """One group at run time. `name` is "group/batch", or "host". Implements `ObservedRules` of `rule_observer`."""

    name: str
    config: GroupConfig
    cgroup: Cgroup
    context: ServiceContext
    _limits_in_force: Resources
    """The limits that the cgroup was made with: those of the configuration, with later changes."""
    _groups_around: Callable[[str], Iterable[Group]]
    """Returns the groups that contain an instance, by its name."""
    _action_lock: trio.Lock
    """Held while an action affects a victim; all groups share one lock, so that no two of them act at once."""
    enclosing: tuple[Group, ...] = ()
    """The groups that contain it, the outermost first; the host is not among them."""
    engine: Engine = attrs.field(init=False)
    """The rules, with the state of each rule."""
    observer: RuleObserver = attrs.field(init=False)
    limit_writer: LimitWriter = attrs.field(init=False)
    is_watched: bool = attrs.field(init=False, default=False)
    """Whether its files are watched; not before it is in force."""
    is_retired: bool = attrs.field(init=False, default=False)
    """Whether a reload has removed it."""
    last_action_at: float = attrs.field(init=False, default=float("-inf"))
    """When any group last acted on a member of this one."""
    _pending_moments: list[tuple[SavedRule, ...]] = attrs.field(init=False, factory=list)
    """By moment whose actions are still pending, the oldest first: the rules that fired, as they were before."""
    _members: dict[str, Actor] = attrs.field(init=False, factory=dict)
    """By name, all workload instances in it, including those in groups inside it."""
    _inside: list[Group] = attrs.field(init=False, factory=list)
    """The groups inside it, each after those that contain it."""
    _growth: MemoryGrowth = attrs.field(init=False, factory=MemoryGrowth)

    def __attrs_post_init__(self) -> None:
        self.engine = Engine.for_rules(self.config.policy)
        self.observer = RuleObserver(
            self.cgroup,
            self.context.watcher,
            self,
            self._on_host_problem,
            contains_cgroups=True,
            has_limits=self.name != HOST,
            longest_interval=self._measure_growth,
        )
        self.limit_writer = LimitWriter(
            self.cgroup,
            self.config,
            self._limits_in_force,
            self.context.nursery,
            self._log,
            self._on_limits_changed,
            self._reapply_inside,
        )
        for group in self.enclosing:
            group._inside.append(self)

    # ---- members

    @property
    def members(self) -> tuple[Actor, ...]:
        """All workload instances in it, including those in groups inside it."""
        return tuple(self._members.values())

    def add_member(self, actor: Actor) -> None:
        """Add an instance to the candidates for actions."""
        self._members[actor.name] = actor

    def remove_member(self, name: str) -> None:
        """Remove an instance; an action on it that is in progress ends."""
        self._members.pop(name, None)

    def member_started(self) -> None:
        """Sample the levels soon, also for rules that fired while there was no member to act on."""
        before, self.engine = self.engine, self.engine.with_started_member()
        if self.engine is not before:
            self.save_checkpoint()
        self.observer.resume_sampling()

    @property
    def is_acting(self) -> bool:
        """Whether actions of rules that have fired are still pending."""
        return bool(self._pending_moments)

    # ---- readings

    @property
    def generation(self) -> int | None:
        """0 while there is something to sample, otherwise None: see `ObservedRules`."""
        is_active = self.name == HOST or any(actor.lifecycle.is_alive for actor in self._members.values())
        return 0 if is_active else None

    @property
    def limits(self) -> Limits:
        """The limits in force, as the kernel has them."""
        return self.observer.limits

    def restore(self, checkpoint: GroupCheckpoint) -> None:
        """Restore the state of the rules that an earlier supervisor saved; only before `watch`."""
        self.engine = restore_rules(self.engine, checkpoint.rules)

    def save_checkpoint(self) -> None:
        """Save the limits and the state of the rules for the next supervisor.

        A rule that has fired is saved as it was before, until its action has been carried out, so that it fires again
        if that did not happen. Other changes, such as a reload, may be saved in the meantime.
        """
        if self.is_retired:
            return
        before = {(rule.name, rule.when): rule for moment in reversed(self._pending_moments) for rule in moment}
        rules = tuple(before.get((rule.name, rule.when), rule) for rule in saved_rules(self.engine))
        self.context.state.save_group(self.name, GroupCheckpoint(rules, self.limit_writer.overrides))

    def retire(self) -> None:
        """End its rules: a reload has removed it. An action that is in progress ends by itself, and is not saved."""
        self.is_retired = True
        self.observer.unwatch()
        for group in self.enclosing:
            group._inside.remove(self)

    def watch(self) -> None:
        """Start to watch the files of the rules."""
        self.is_watched = True
        self.observer.watch()
        self.observer.resume_sampling()
        self.save_checkpoint()

    def observe(self, snapshot: Snapshot, limits: Limits, reported_at: float | None, now: float) -> None:
        """Show the rules a snapshot, and begin the actions of those that fire."""
        before = self.engine
        self.engine, fired = before.observe(snapshot, limits, now)
        self._record(GroupObserved(snapshot, limits, self.engine is not before, fired), now)
        if fired:
            has_fired = {firing.rule.name for firing in fired}
            moment = tuple(rule for rule in saved_rules(before) if rule.name in has_fired)
            self._pending_moments.append(moment)
            self.context.nursery.start_soon(self._act_on, Firings.split(fired), self.engine, now, moment)

    def _measure_growth(self, now: float) -> float:
        """Take the members' memory readings for the next choice; return when the next ones are due, in seconds."""
        if not any(rule.victim == "fastest-growing" for rule in self.config.policy):
            return math.inf
        if self._growth.is_due(now):
            alive = (actor for actor in self._members.values() if actor.lifecycle.is_alive)
            self._growth = self._growth.with_readings(now, {actor.name: _own_memory(actor) for actor in alive})
        return STILL_COUNTER_S

    def _record(self, event: GroupEvent, now: float | None = None) -> None:
        """Pass an event to the recordings."""
        for listener in self.context.group_listeners:
            listener(self.name, event, trio.current_time() if now is None else now)

    def _on_host_problem(self, problem: str) -> None:
        if problem not in self.context.warnings_logged:
            self.context.warnings_logged.add(problem)
            self._warn(problem)

    # ---- actions

    async def _act_on(self, firings: Firings, engine: Engine, decided_at: float, moment: tuple[SavedRule, ...]) -> None:
        """Carry out the firings of one moment. `engine` is the state of the rules at that moment."""
        try:
            for firing in firings.notifications:
                self.context.nursery.start_soon(self._notify, firing)
            for firing in firings.dry_runs:
                await self._act_on_victim(firing, engine)
            if firings.action is not None:
                async with self._action_lock:
                    # Otherwise another action came first; if it does not help, the rules fire again.
                    if self.last_action_at < decided_at:
                        await self._act_on_victim(firings.action, engine)
                    else:
                        self._record(Skipped())
        except (OSError, CgroupError) as error:  # of one member; the service and the other rules continue
            self._warn(f"cannot act on a member: {error}")
        finally:
            self._pending_moments = [other for other in self._pending_moments if other is not moment]
        self.save_checkpoint()

    async def _notify(self, firing: Firing) -> None:
        """Record a firing and run its notification, which concerns no member."""
        cause = attrs.evolve(firing.cause, group=self.name)
        more = {"dry_run": True} if firing.rule.dry_run else {}
        fields = {"timestamp": timestamp(), "action": firing.action, "cause": cause.to_record(), **more}
        self._log("action", "warning", **fields)
        if not firing.rule.dry_run:
            head = {"timestamp": fields["timestamp"], "level": "warning", "event": "action", "group": self.name}
            problem = await run_notification(firing.action, firing.rule, head | fields)
            if problem:
                self._warn(f"{firing.rule.name}: {problem}")

    async def _act_on_victim(self, firing: Firing, engine: Engine) -> None:
        """Act on the first candidate; if that does not help, on the next, until one helps or none is left."""
        rule = firing.rule
        assert isinstance(rule, GroupRule)
        condition = _Condition(engine.only(rule))
        tried: dict[str, str] = {}
        while True:
            candidates = tuple(self._candidates())
            places, name, act = choose_victim(self.name, firing, candidates, tried)
            self._record(VictimChosen(firing, candidates, dict(tried), name))
            if name is None:
                self._warn_no_victim(rule, places)
                if not tried:
                    self.engine = self.engine.without_member(rule)
                break
            helped, reason = await self._impose(self._members[name], act, condition)
            if rule.dry_run:
                break
            self._record(ActionOutcome(name, helped, reason), self._start_cooldowns(name))
            if helped:
                break
            tried[name] = reason
            self._warn(f"{rule.name}: {firing.action} of {name} did not help: {reason}")

    def _candidates(self) -> Iterable[Candidate]:
        now = trio.current_time()
        for actor in self._members.values():
            if actor.lifecycle.is_alive:
                memory, workload = _memory_of(actor), actor.workload
                freed = freed_by_kill(_read_file(actor.cgroup, "memory.stat"))
                yield Candidate(
                    actor.name,
                    memory,
                    self._growth.rate(actor.name, now, memory if freed is None else freed),
                    workload.priority,
                    now - actor.lifecycle.started_at,
                    workload.managed_oom_preference,
                    actor.lifecycle.state is State.FROZEN,
                    freed,
                )

    async def _impose(self, actor: Actor, firing: Firing, condition: _Condition) -> tuple[bool, str]:
        """Have the victim carry out the action, and verify it; return whether it helped, and why not."""
        rule, generation = firing.rule, actor.lifecycle.generation
        assert isinstance(rule, GroupRule)
        about_memory = any(atom.file.startswith(_MEMORY_PREFIXES) for atom in rule.when.atoms)
        own = _read_file(actor.cgroup, "memory.stat").get("anon", 0.0) if about_memory else 0.0
        patience = rule.verify_sec
        if firing.action in ("stop", "restart"):
            patience += actor.workload.timeout_stop_sec
        effect = ExpectedEffect.expect(firing.action, about_memory, own, patience)
        used, began, freed = self._usage(), trio.current_time(), 0.0
        actor.impose(firing, generation)
        if rule.dry_run:
            return True, ""
        while True:
            gone = actor.lifecycle.generation != generation or not actor.cgroup.is_populated()
            if firing.action == "freeze":
                gone = gone or _read_file(actor.cgroup, "cgroup.events").get("frozen") == 1
            freed = max(freed, used - self._usage())
            now = trio.current_time()
            elapsed, still_holds = now - began, condition.still_holds(self.observer, now)
            verdict, reason = effect.judge(gone, freed, still_holds, elapsed)
            if verdict != "wait":
                break
            await trio.sleep(EFFECT_POLL_S)
        if verdict == "done":
            self._log(
                "verified",
                workload=actor.name,
                generation=generation,
                action=firing.action,
                freed_bytes=int(max(freed, 0.0)),
                took_sec=round(elapsed, 3),
            )
        return verdict == "done", reason

    def _usage(self) -> float:
        """Return the bytes in use that an action may free: those of the group, or of the host."""
        if self.name == HOST:
            return -self.observer.read("host.meminfo").get("MemAvailable", 0.0)
        return self.observer.read("memory.current").get("", 0.0)

    def _start_cooldowns(self, member: str) -> float:
        """Start the cooldowns of all groups of a member that was acted on; return when they started."""
        now = trio.current_time()
        for group in {self, *self._groups_around(member)}:
            group.start_cooldown(now)
        return now

    def start_cooldown(self, now: float) -> None:
        """Start the cooldown of each rule that has a victim: an action has been taken on a member."""
        self.last_action_at = now
        self.engine = self.engine.with_cooldown(now)
        self.save_checkpoint()

    def _warn_no_victim(self, rule: GroupRule, ranking: Iterable[Ranked]) -> None:
        reasons = "; ".join(f"{place.candidate.name}: {place.reason}" for place in ranking)
        self._warn(f"{rule.name} ({rule.when.text}): no member is left to {rule.action} ({reasons or 'none runs'})")

    def _log(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write a record about the group."""
        getattr(self.context.journal.log, level)(event, group=self.name, **fields)

    def _warn(self, message: str) -> None:
        self._log("warning", "warning", message=message)

    # ---- reload

    def apply_config(self, config: GroupConfig) -> None:
        """Switch to another configuration of this group, without its limits (`apply_limits`).

        Rules that are unchanged keep their state.
        """
        has_new_rules = config.policy != self.config.policy
        if has_new_rules:
            self.observer.read_counters()  # changes so far belong to the old rules
        self.config = config
        self.limit_writer.configure(config)
        if has_new_rules:
            self.engine = self.engine.with_rules(config.policy)
            self.observer.move_to(self.cgroup)
            self.observer.resume_sampling()
            self._record(GroupConfigChanged(config))
        # Limits that a reload has applied were saved as differences from the configuration before. The next supervisor
        # would prefer them to those of its file, as if an operator had set them.
        self.save_checkpoint()

    # ---- limits

    @property
    def resources(self) -> Resources:
        """The limits in force: those of the configuration, with later changes by operators."""
        return self.limit_writer.resources

    async def apply_limits(self, target: Target, wanted: Resources) -> None:
        """Apply the limits of a configuration file, and write the percentages inside the group again.

        `apply_config` or `undo_limits` must follow. Raises CgroupError, and then nothing has changed.
        """
        await self.limit_writer.apply_prepared(target, wanted)

    async def undo_limits(self, target: Target) -> None:
        """Apply the limits from before a reload that is refused. Raises CgroupError."""
        await self.limit_writer.undo_prepared(target)

    async def change_limits(self, changes: Mapping[str, Any], by: Initiator = OPERATOR) -> Result:
        """Change the group's limits (as parsed by `parse_changes`): all of them, or none.

        The change lasts until the supervisor ends. Limits inside the group that are percentages of them are written
        again. Returns whether it was made, and what failed.
        """
        return await self.limit_writer.change_limits(changes, by)

    async def _reapply_inside(self) -> list[str]:
        """Write the percentage limits inside the group again; return what failed."""
        inside: list[LimitWriter] = [group.limit_writer for group in self._inside]
        inside += [actor.limit_writer for actor in self.members]
        return [problem for writer in inside if (problem := await writer.reapply_percentages())]

    def _on_limits_changed(self) -> None:
        self.observer.refresh_limits()
        self.save_checkpoint()

    def status(self) -> dict[str, Any]:
        """Return the object `Group` of `nsupervisor schema api`."""
        limits = self.cgroup.read_limits()

        def number(file: str, key: str = "") -> int | None:
            value = self.observer.read(file).get(key)
            return None if value is None else int(value)

        def limit(file: str) -> int | None:
            value = limits.get(file)
            return None if value is None else int(value)

        return {
            "name": self.name,
            "text": self.config.description,
            "group": self.config.group and f"group/{self.config.group}",
            "members": list(self._members),
            "cgroup": self.cgroup.shown_path,
            "memory_current": number("memory.current"),
            "memory_max": limit("memory.max"),
            "pids_current": number("pids.current"),
            "pids_max": limit("pids.max"),
            "cpu_usage_usec": number("cpu.stat", "usage_usec"),
            "memory_pressure_avg10": self.observer.read("memory.pressure").get("full avg10"),
        }


@attrs.define(eq=False)
class _Condition:
    """The condition of a rule whose action is in progress; the group may have other rules meanwhile."""

    _engine: Engine

    def still_holds(self, observer: RuleObserver, now: float) -> bool:
        """Read the files of the rule, and return whether its condition holds.

        True if the condition is momentary: then that cannot be known.
        """
        (rule,) = self._engine.rules
        if rule.when.is_momentary:
            return True
        snapshot = {file: observer.read(file) for file in dict.fromkeys(atom.file for atom in rule.when.atoms)}
        self._engine, _ = self._engine.observe(snapshot, observer.limits, now)
        return self._engine.holds


def _memory_of(actor: Actor) -> float:
    return _read_file(actor.cgroup, "memory.current").get("", 0.0)


def _own_memory(actor: Actor) -> float:
    freed = freed_by_kill(_read_file(actor.cgroup, "memory.stat"))
    return _memory_of(actor) if freed is None else freed


def _read_file(cgroup: Cgroup, file: str) -> Mapping[str, float]:
    try:
        return cgroup.read_cached(file)
    except CgroupError:  # the cgroup was removed just now, or its controller is missing
        return {}
