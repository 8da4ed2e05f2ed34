"""A group of workloads while the service runs: its limits, its readings, and its rules, which act on its members.

The group decides nothing. `nsupervisor.core.rules.rules` decides when a rule fires;
`nsupervisor.core.rules.victims` decides which member it acts on and whether that helped. The member carries out
the action itself: it receives the firing with its cause and handles it like one of its own rules
(`nsupervisor.core.decider`).

All files that a group's rules read are read together, once per sample, so that all rules see the same moment. If the
kernel notifies of events (cgroup v2), such a notification also makes a sample.

The whole host is a group as well: the cgroup that contains all workloads, which has no limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, Reading
from nsupervisor.config.changes import apply_changes, changed_limits
from nsupervisor.config.condition_terms import has_notification
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import GroupConfig as GroupConfig
from nsupervisor.config.model import GroupRule, Resources
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
from nsupervisor.core.rules.rules import Engine, Firing, Snapshot
from nsupervisor.core.rules.sampling import MOVING_COUNTER_S, SLOWEST_S, STILL_COUNTER_S, next_sample_delay
from nsupervisor.core.rules.victims import Candidate, ExpectedEffect, MemoryGrowth, Ranked
from nsupervisor.logs.record import timestamp_now as timestamp
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.hooks import run_notification
from nsupervisor.service.instance.limits import reapply_percentages, write_limits
from nsupervisor.service.state.checkpoint import limit_overrides, restore_rules, saved_rules
from nsupervisor.service.state.file import GroupCheckpoint

if TYPE_CHECKING:
    from nsupervisor.service.instance.actor import Actor

HOST = "host"
"""The name of the group that contains all workloads."""
EFFECT_POLL_S = 0.02
"""Seconds between two checks of what an action has led to."""
_MEMORY_PREFIXES = ("memory.", "host.memory", "host.meminfo")
"""Prefixes of the files that rules about memory read."""


@attrs.define(eq=False)
class Group:
    """One group at run time. `name` is "group/batch", or "host"."""

    name: str
    config: GroupConfig
    cgroup: Cgroup
    context: ServiceContext
    enclosing: tuple[Group, ...] = ()
    """The groups that contain it, the outermost first; the host is not among them."""
    action_lock: trio.Lock = attrs.field(factory=trio.Lock)
    """Held while an action affects a victim; all groups share one lock, so that no two of them act at once."""
    members: list[Actor] = attrs.field(factory=list)
    """All workload instances in it, including those in groups inside it."""
    resources: Resources = attrs.field(init=False)
    """The limits in force: those of the configuration, with later changes by `change_limits`."""
    engine: Engine = attrs.field(init=False)
    limits: Mapping[str, float | None] = attrs.field(init=False, factory=dict)
    _growth: MemoryGrowth = attrs.field(init=False, factory=MemoryGrowth)
    _latest: Snapshot = attrs.field(init=False, factory=dict)
    """The latest sample of the level files; `_sampled_at` is when it was taken."""
    _sampled_at: float = 0.0
    _is_resumed: bool = False
    """Whether the state of the rules was restored from an earlier supervisor."""
    last_action_at: float = float("-inf")
    """When any group last acted on a member of this one."""
    pending_moments: int = 0
    """Number of moments whose rules have fired and whose actions are still pending."""

    def __attrs_post_init__(self) -> None:
        self.resources = self.config.resources
        self.engine = Engine.for_rules(self.config.policy)
        if self.name != HOST:
            self.limits = self.cgroup.read_limits()

    # ---- readings

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its rules read."""
        return tuple(dict.fromkeys(atom.file for rule in self.engine.rules for atom in rule.when.atoms))

    def restore(self, checkpoint: GroupCheckpoint | None) -> None:
        """Restore the state of the rules that an earlier supervisor saved, if one did."""
        if checkpoint is not None:
            self.engine = restore_rules(self.engine, checkpoint.rules)
            self._is_resumed = True

    def save_checkpoint(self) -> None:
        """Save the limits and the state of the rules for the next supervisor.

        A rule that has fired is saved after its action has been carried out, so that it fires again if that did not
        happen.
        """
        changed = limit_overrides(self.config.resources, self.resources)
        self.context.state.save_group(self.name, GroupCheckpoint(saved_rules(self.engine), changed))

    def watch(self) -> None:
        """Start to watch the files of the rules.

        Counters are compared with their present values, or with those that an earlier supervisor saw. A level that
        holds already counts as a change.
        """
        resumed, self._is_resumed = self._is_resumed, False
        self._watch_files(resumed)
        self.save_checkpoint()

    def _watch_files(self, is_resumed: bool) -> None:
        if not self.files:
            return
        counters = dict.fromkeys(a.file for rule in self.engine.rules for a in rule.when.atoms if a.kind == "counter")
        for file in counters:
            if is_resumed:
                self._observe({file: self._read_file(self.cgroup, file)})
            else:
                self.engine, _ = self.engine.observe(
                    {file: self._read_file(self.cgroup, file)}, {}, trio.current_time()
                )
        notified = [file for file in self.files if has_notification(file) and not self.cgroup.is_v1(file)]
        levels = [file for file in self.files if file not in notified]
        self.context.watcher.add(self.cgroup, self._on_reading, events=notified, levels=levels, on_sample=self._sample)
        stalls = [atom for rule in self.engine.rules for atom in rule.when.atoms if atom.kind == "stall"]
        for file, key in dict.fromkeys((atom.file, atom.key or "") for atom in stalls):
            self._watch_pressure(file, key)
        if levels or self._measures_growth:
            self.resume_sampling()

    def _watch_pressure(self, file: str, key: str) -> None:
        """Set a pressure trigger in the kernel, as `PolicyRunner` does for a workload."""
        kind, stall, window = key.split()

        def on_stall(reading: Reading) -> None:
            self._observe({file: {**reading.values, key: reading.values[f"{kind} total"]}})

        base_line = {file: {key: self._read_file(self.cgroup, file).get(f"{kind} total", 0.0)}}
        self.engine, _ = self.engine.observe(base_line, self.limits, trio.current_time())
        problem = self.context.watcher.add_stall(self.cgroup, file, kind, int(stall), int(window), on_stall)
        if problem and problem not in self.context.warnings_logged:
            self.context.warnings_logged.add(problem)
            self._warn(problem)

    def resume_sampling(self) -> None:
        """Sample the levels soon: the cgroup has processes again."""
        self.context.watcher.sample_now(self.cgroup)

    @property
    def _measures_growth(self) -> bool:
        return any(rule.victim == "fastest-growing" for rule in self.config.policy)

    def _read_file(self, cgroup: Cgroup, file: str) -> Mapping[str, float]:
        try:
            return cgroup.read_cached(file)
        except CgroupError:  # the cgroup was removed just now, or its controller is missing
            return {}

    def _on_reading(self, reading: Reading) -> None:
        """Handle a change of an event file."""
        self._observe({reading.file: reading.values})

    def _sample(self, values: Snapshot) -> float:
        """Show the rules a sample of all level files; return the seconds until the next sample."""
        now = trio.current_time()
        alive = [actor for actor in self.members if actor.lifecycle.is_alive]
        if not alive and self.name != HOST:
            return math.inf
        if self._measures_growth and self._growth.is_due(now):
            self._growth = self._growth.with_readings(now, {actor.name: self._memory_of(actor) for actor in alive})
        self._observe(values)
        before, elapsed = self._latest, now - self._sampled_at
        self._latest, self._sampled_at = values, now
        delay = next_sample_delay(self.engine, before, values, elapsed, self.limits, now)
        counted = any(
            has_notification(file) for file in values
        )  # on v1, which does not notify of events of all members
        return min(
            delay, MOVING_COUNTER_S if counted else SLOWEST_S, STILL_COUNTER_S if self._measures_growth else SLOWEST_S
        )

    def _observe(self, values: Snapshot) -> None:
        """Show the rules one moment: these values, and all other files that they read, read now."""
        now = trio.current_time()
        other_values = {file: self._read_file(self.cgroup, file) for file in self.files if file not in values}
        snapshot, before = {**other_values, **values}, self.engine
        self.engine, fired = self.engine.observe(snapshot, self.limits, now)
        self._record(GroupObserved(snapshot, self.limits, self.engine is not before, fired), now)
        if fired:
            self.pending_moments += 1
            self.context.nursery.start_soon(self._act_on, Firings.split(fired), now)

    def _record(self, event: GroupEvent, now: float | None = None) -> None:
        """Pass an event to the recordings."""
        for listener in self.context.group_listeners:
            listener(self, event, trio.current_time() if now is None else now)

    def _memory_of(self, actor: Actor) -> float:
        return self._read_file(actor.cgroup, "memory.current").get("", 0.0)

    # ---- actions

    async def _act_on(self, firings: Firings, decided_at: float) -> None:
        """Carry out the firings of one moment."""
        try:
            for firing in firings.notifications:
                self.context.nursery.start_soon(self._notify, firing)
            for firing in firings.dry_runs:
                await self._act_on_victim(firing)
            if firings.action is not None:
                async with self.action_lock:
                    # Otherwise another action came first; if it does not help, the rules fire again.
                    if self.last_action_at < decided_at:
                        await self._act_on_victim(firings.action)
                    else:
                        self._record(Skipped())
        finally:
            self.pending_moments -= 1
        self.save_checkpoint()

    async def _notify(self, firing: Firing) -> None:
        """Record a firing and run its notification, which concerns no member."""
        cause = attrs.evolve(firing.cause, group=self.name)
        more = {"dry_run": True} if firing.rule.dry_run else {}
        record = {"group": self.name, "action": firing.action, "cause": cause.to_record(), **more}
        self.context.journal.log.warning("action", **record)
        if not firing.rule.dry_run:
            problem = await run_notification(
                firing.action, firing.rule, {"timestamp": timestamp(), "event": "action", **record}
            )
            if problem:
                self._warn(f"{firing.rule.name}: {problem}")

    async def _act_on_victim(self, firing: Firing) -> None:
        """Act on the first candidate; if that does not help, on the next, until one helps or none is left."""
        rule = firing.rule
        assert isinstance(rule, GroupRule)
        tried: dict[str, str] = {}
        while True:
            candidates = tuple(self._candidates())
            places, name, act = choose_victim(self.name, firing, candidates, tried)
            self._record(VictimChosen(firing, candidates, dict(tried), name))
            if name is None:
                self._warn_no_victim(rule, places)
                break
            actor = next(member for member in self.members if member.name == name)
            helped, reason = await self._impose(actor, act)
            if rule.dry_run:
                break
            self._record(ActionOutcome(name, helped, reason), self._start_cooldowns(actor))
            if helped:
                break
            tried[name] = reason
            self._warn(f"{rule.name}: {firing.action} of {name} did not help: {reason}")

    def _candidates(self) -> Iterable[Candidate]:
        now = trio.current_time()
        for actor in self.members:
            if actor.lifecycle.is_alive:
                memory, workload = self._memory_of(actor), actor.workload
                yield Candidate(
                    actor.name,
                    memory,
                    self._growth.rate(actor.name, now, memory),
                    workload.priority,
                    now - actor.lifecycle.started_at,
                    workload.managed_oom_preference,
                )

    async def _impose(self, actor: Actor, firing: Firing) -> tuple[bool, str]:
        """Have the victim carry out the action, and verify it; return whether it helped, and why not."""
        rule, generation = firing.rule, actor.lifecycle.generation
        assert isinstance(rule, GroupRule)
        about_memory = any(atom.file.startswith(_MEMORY_PREFIXES) for atom in rule.when.atoms)
        own = self._read_file(actor.cgroup, "memory.stat").get("anon", 0.0) if about_memory else 0.0
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
                gone = gone or self._read_file(actor.cgroup, "cgroup.events").get("frozen") == 1
            freed = max(freed, used - self._usage())
            elapsed = trio.current_time() - began
            verdict, reason = effect.judge(gone, freed, self._still_holds(rule), elapsed)
            if verdict != "wait":
                break
            await trio.sleep(EFFECT_POLL_S)
        if verdict == "done":
            self.context.journal.log.info(
                "verified",
                group=self.name,
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
            return -self._read_file(self.cgroup, "host.meminfo").get("MemAvailable", 0.0)
        return self._read_file(self.cgroup, "memory.current").get("", 0.0)

    def _still_holds(self, rule: GroupRule) -> bool:
        """Return whether the condition held at the latest sample; True if it is momentary, which cannot be known."""
        return rule.when.is_momentary or self.engine.holds(rule)

    def _start_cooldowns(self, actor: Actor) -> float:
        """Start the cooldowns of all groups of a member that was acted on; return when they started."""
        now = trio.current_time()
        for group in {self, *actor.groups}:
            group.last_action_at = now
            group.engine = group.engine.with_cooldown(now)
            group.save_checkpoint()
        return now

    def _warn_no_victim(self, rule: GroupRule, ranking: Iterable[Ranked]) -> None:
        reasons = "; ".join(f"{place.candidate.name}: {place.reason}" for place in ranking)
        self._warn(f"{rule.name} ({rule.when.text}): no member is left to {rule.action} ({reasons or 'none runs'})")

    def _warn(self, message: str) -> None:
        self.context.journal.log.warning("warning", group=self.name, message=message)

    # ---- reload

    def apply_config(self, config: GroupConfig) -> None:
        """Switch to another configuration of this group, without its limits (`apply_limits`).

        Rules that are unchanged keep their state.
        """
        rules = config.policy != self.config.policy
        self.config = config
        if rules:
            self.engine = self.engine.with_rules(config.policy)
            self.context.watcher.remove(self.cgroup)
            self.watch()
            self._record(GroupConfigChanged(config))

    async def apply_limits(self, resources: Resources) -> None:
        """Apply the limits of a configuration file. Raises CgroupError, and then nothing has changed."""
        await write_limits(self.cgroup, self.resources, resources, optional=not resources.required)
        self.resources = resources
        self.limits = self.cgroup.read_limits()
        self.save_checkpoint()

    # ---- limits

    async def change_limits(self, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """Change the group's limits (as parsed by `parse_changes`): all of them, or none.

        The change lasts until the supervisor ends. Returns whether it was made, and why not. `Groups.change_limits`
        also updates the cgroups inside the group.
        """
        before = self.resources
        try:
            after = apply_changes(self.config, before, changes)
            await write_limits(self.cgroup, before, after)
        except (ConfigError, CgroupError) as error:
            self._warn(f"set: {error}")
            return False, str(error)
        self.resources = after
        self.limits = self.cgroup.read_limits()
        self.save_checkpoint()
        was, is_ = changed_limits(before, after)
        self.context.journal.log.info("action", group=self.name, action="set", cause={"by": by}, before=was, after=is_)
        return True, ""

    async def reapply_percentages(self) -> str:
        """Write percentage limits again after a limit of an enclosing group changed; return the problem, or ""."""
        try:
            await reapply_percentages(self.cgroup, self.resources)
        except CgroupError as error:
            self._warn(f"set: {error}")
            return str(error)
        self.limits = self.cgroup.read_limits()
        return ""

    def status(self) -> dict[str, Any]:
        """Return the object `Group` of `nsupervisor schema api`."""
        limits = self.cgroup.read_limits()

        def number(file: str, key: str = "") -> int | None:
            value = self._read_file(self.cgroup, file).get(key)
            return None if value is None else int(value)

        def limit(file: str) -> int | None:
            value = limits.get(file)
            return None if value is None else int(value)

        return {
            "name": self.name,
            "text": self.config.description,
            "group": self.config.group and f"group/{self.config.group}",
            "members": [actor.name for actor in self.members],
            "cgroup": self.cgroup.path,
            "memory_current": number("memory.current"),
            "memory_max": limit("memory.max"),
            "pids_current": number("pids.current"),
            "pids_max": limit("pids.max"),
            "cpu_usage_usec": number("cpu.stat", "usage_usec"),
            "memory_pressure_avg10": self._read_file(self.cgroup, "memory.pressure").get("full avg10"),
        }
