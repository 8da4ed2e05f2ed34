"""A group of workloads while the service runs: its limits, its readings, and its rules, which act on its members.

The group decides nothing. `nsupervisor.core.rules` decides when a rule fires; `nsupervisor.core.rules.victims` decides
which member it acts on and whether that helped. The member carries out the action itself: it receives the firing with
its cause and handles it like one of its own rules (`nsupervisor.core.decider`).

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
from nsupervisor.config.changes import changed, difference
from nsupervisor.config.facts import notifies
from nsupervisor.config.load import ConfigError
from nsupervisor.config.model import Group as GroupConfig
from nsupervisor.config.model import GroupRule, Resources
from nsupervisor.core.grouping import Asked, Became, Came, Chose, News, Passed, Saw, chosen
from nsupervisor.core.pace import COUNTING, SLOWEST, STILL, pace
from nsupervisor.core.rules import Engine, Fired, Snapshot
from nsupervisor.core.victims import Candidate, Effect, Growth, Place
from nsupervisor.logs.record import now as timestamp
from nsupervisor.service.hooks import tell
from nsupervisor.service.setting import remeasure, write
from nsupervisor.service.state import GroupRecord
from nsupervisor.service.trail import differences, recalled, remembered
from nsupervisor.service.world import World

if TYPE_CHECKING:
    from nsupervisor.service.actor import Actor

HOST = "host"
"""The name of the group that contains all workloads."""
LOOK = 0.02
"""Seconds between two checks of what an action has led to."""
_MEMORY = ("memory.", "host.memory", "host.meminfo")
"""Prefixes of the files that rules about memory read."""


@attrs.define(eq=False)
class Group:
    """One group at run time. `name` is "group/batch", or "host"."""

    name: str
    config: GroupConfig
    cgroup: Cgroup
    world: World
    around: tuple[Group, ...] = ()
    """The groups that contain it, the outermost first; the host is not among them."""
    turn: trio.Lock = attrs.field(factory=trio.Lock)
    """Held while an action affects a victim; all groups share one lock, so that no two of them act at once."""
    members: list[Actor] = attrs.field(factory=list)
    """All workload instances in it, including those in groups inside it."""
    resources: Resources = attrs.field(init=False)
    """The limits in force: those of the configuration, with later changes by `change_limits`."""
    engine: Engine = attrs.field(init=False)
    limits: Mapping[str, float | None] = attrs.field(init=False, factory=dict)
    _growth: Growth = attrs.field(init=False, factory=Growth)
    _latest: Snapshot = attrs.field(init=False, factory=dict)
    """The latest sample of the level files; `_sampled_at` is when it was taken."""
    _looked: float = 0.0
    _resumed: bool = False
    """Whether the state of the rules was restored from an earlier supervisor."""
    quiet_since: float = float("-inf")
    """When any group last acted on a member of this one."""
    acting: int = 0
    """Number of moments whose rules have fired and whose actions are still pending."""

    def __attrs_post_init__(self) -> None:
        self.resources = self.config.resources
        self.engine = Engine.of(self.config.policy)
        if self.name != HOST:
            self.limits = self.cgroup.limits()

    # ---- readings

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its rules read."""
        return tuple(dict.fromkeys(atom.file for rule in self.engine.rules for atom in rule.when.atoms))

    def resume_from(self, record: GroupRecord | None) -> None:
        """Restore the state of the rules that an earlier supervisor saved, if one did."""
        if record is not None:
            self.engine = recalled(self.engine, record.rules)
            self._resumed = True

    def remember(self) -> None:
        """Save the limits and the state of the rules for the next supervisor.

        A rule that has fired is saved after its action has been carried out, so that it fires again if that did not
        happen.
        """
        changed = differences(self.config.resources, self.resources)
        self.world.state.keep_group(self.name, GroupRecord(remembered(self.engine), changed))

    def watch(self) -> None:
        """Start to watch the files of the rules.

        Counters are compared with their present values, or with those that an earlier supervisor saw. A level that
        holds already counts as a change.
        """
        resumed, self._resumed = self._resumed, False
        self._watch(resumed)
        self.remember()

    def _watch(self, resumed: bool) -> None:
        if not self.files:
            return
        counters = dict.fromkeys(a.file for rule in self.engine.rules for a in rule.when.atoms if a.kind == "counter")
        for file in counters:
            if resumed:
                self._see({file: self._read(self.cgroup, file)})
            else:
                self.engine, _ = self.engine.observe({file: self._read(self.cgroup, file)}, {}, trio.current_time())
        notified = [file for file in self.files if notifies(file) and not self.cgroup.is_v1(file)]
        levels = [file for file in self.files if file not in notified]
        self.world.watcher.add(self.cgroup, self._hear, events=notified, levels=levels, on_sample=self._sample)
        stalls = [atom for rule in self.engine.rules for atom in rule.when.atoms if atom.kind == "stall"]
        for file, key in dict.fromkeys((atom.file, atom.key or "") for atom in stalls):
            self._watch_stall(file, key)
        if levels or self._measures_growth:
            self.resume()

    def _watch_stall(self, file: str, key: str) -> None:
        """Set a pressure trigger in the kernel, as `PolicyRunner` does for a workload."""
        kind, stall, window = key.split()

        def on_stall(reading: Reading) -> None:
            self._see({file: {**reading.values, key: reading.values[f"{kind} total"]}})

        base_line = {file: {key: self._read(self.cgroup, file).get(f"{kind} total", 0.0)}}
        self.engine, _ = self.engine.observe(base_line, self.limits, trio.current_time())
        problem = self.world.watcher.add_stall(self.cgroup, file, kind, int(stall), int(window), on_stall)
        if problem and problem not in self.world.told:
            self.world.told.add(problem)
            self._warn(problem)

    def resume(self) -> None:
        """Sample the levels soon: the cgroup has processes again."""
        self.world.watcher.resume(self.cgroup)

    @property
    def _measures_growth(self) -> bool:
        return any(rule.victim == "fastest-growing" for rule in self.config.policy)

    def _read(self, cgroup: Cgroup, file: str) -> Mapping[str, float]:
        try:
            return cgroup.read(file)
        except CgroupError:  # the cgroup was removed just now, or its controller is missing
            return {}

    def _hear(self, reading: Reading) -> None:
        """Handle a change of an event file."""
        self._see({reading.file: reading.values})

    def _sample(self, values: Snapshot) -> float:
        """Show the rules a sample of all level files; return the seconds until the next sample."""
        now = trio.current_time()
        alive = [actor for actor in self.members if actor.life.alive]
        if not alive and self.name != HOST:
            return math.inf
        if self._measures_growth and self._growth.due(now):
            self._growth = self._growth.taken(now, {actor.name: self._memory(actor) for actor in alive})
        self._see(values)
        before, elapsed = self._latest, now - self._looked
        self._latest, self._looked = values, now
        delay = pace(self.engine, before, values, elapsed, self.limits, now)
        counted = any(notifies(file) for file in values)  # on v1, which does not notify of events of all members
        return min(delay, COUNTING if counted else SLOWEST, STILL if self._measures_growth else SLOWEST)

    def _see(self, values: Snapshot) -> None:
        """Show the rules one moment: these values, and all other files that they read, read now."""
        now = trio.current_time()
        other_values = {file: self._read(self.cgroup, file) for file in self.files if file not in values}
        snapshot, before = {**other_values, **values}, self.engine
        self.engine, fired = self.engine.observe(snapshot, self.limits, now)
        self._note(Saw(snapshot, self.limits, self.engine is not before, fired), now)
        if fired:
            self.acting += 1
            self.world.nursery.start_soon(self._act, Asked.by(fired), now)

    def _note(self, what: News, now: float | None = None) -> None:
        """Pass an event to the recordings."""
        for listener in self.world.group_listeners:
            listener(self, what, trio.current_time() if now is None else now)

    def _memory(self, actor: Actor) -> float:
        return self._read(actor.cgroup, "memory.current").get("", 0.0)

    # ---- actions

    async def _act(self, asked: Asked, decided: float) -> None:
        """Carry out the firings of one moment."""
        try:
            for firing in asked.told:
                self.world.nursery.start_soon(self._tell, firing)
            for firing in asked.dry:
                await self._hit(firing)
            if asked.act is not None:
                async with self.turn:
                    # Otherwise another action came first; if it does not help, the rules fire again.
                    if self.quiet_since < decided:
                        await self._hit(asked.act)
                    else:
                        self._note(Passed())
        finally:
            self.acting -= 1
        self.remember()

    async def _tell(self, fired: Fired) -> None:
        """Record a firing and run its notification, which concerns no member."""
        cause = attrs.evolve(fired.cause, group=self.name)
        more = {"dry_run": True} if fired.rule.dry_run else {}
        record = {"group": self.name, "action": fired.action, "cause": cause.record(), **more}
        self.world.journal.log.warning("action", **record)
        if not fired.rule.dry_run:
            problem = await tell(fired.action, fired.rule, {"timestamp": timestamp(), "event": "action", **record})
            if problem:
                self._warn(f"{fired.rule.name}: {problem}")

    async def _hit(self, fired: Fired) -> None:
        """Act on the first candidate; if that does not help, on the next, until one helps or none is left."""
        rule = fired.rule
        assert isinstance(rule, GroupRule)
        tried: dict[str, str] = {}
        while True:
            candidates = tuple(self._candidates())
            places, name, act = chosen(self.name, fired, candidates, tried)
            self._note(Chose(fired, candidates, dict(tried), name))
            if name is None:
                self._nobody(rule, places)
                break
            actor = next(member for member in self.members if member.name == name)
            helped, reason = await self._do(actor, act)
            if rule.dry_run:
                break
            self._note(Came(name, helped, reason), self._hush(actor))
            if helped:
                break
            tried[name] = reason
            self._warn(f"{rule.name}: {fired.action} of {name} did not help: {reason}")

    def _candidates(self) -> Iterable[Candidate]:
        now = trio.current_time()
        for actor in self.members:
            if actor.life.alive:
                memory, workload = self._memory(actor), actor.workload
                yield Candidate(
                    actor.name,
                    memory,
                    self._growth.of(actor.name, now, memory),
                    workload.priority,
                    now - actor.life.started_at,
                    workload.managed_oom_preference,
                )

    async def _do(self, actor: Actor, fired: Fired) -> tuple[bool, str]:
        """Have the victim carry out the action, and verify it; return whether it helped, and why not."""
        rule, generation = fired.rule, actor.life.generation
        assert isinstance(rule, GroupRule)
        about_memory = any(atom.file.startswith(_MEMORY) for atom in rule.when.atoms)
        own = self._read(actor.cgroup, "memory.stat").get("anon", 0.0) if about_memory else 0.0
        patience = rule.verify_sec
        if fired.action in ("stop", "restart"):
            patience += actor.workload.timeout_stop_sec
        effect = Effect.of(fired.action, about_memory, own, patience)
        used, began, freed = self._used(), trio.current_time(), 0.0
        actor.sentence(fired, generation)
        if rule.dry_run:
            return True, ""
        while True:
            gone = actor.life.generation != generation or not actor.cgroup.populated()
            if fired.action == "freeze":
                gone = gone or self._read(actor.cgroup, "cgroup.events").get("frozen") == 1
            freed = max(freed, used - self._used())
            elapsed = trio.current_time() - began
            verdict, reason = effect.verdict(gone, freed, self._holds(rule), elapsed)
            if verdict != "wait":
                break
            await trio.sleep(LOOK)
        if verdict == "done":
            self.world.journal.log.info(
                "verified",
                group=self.name,
                workload=actor.name,
                generation=generation,
                action=fired.action,
                freed_bytes=int(max(freed, 0.0)),
                took_sec=round(elapsed, 3),
            )
        return verdict == "done", reason

    def _used(self) -> float:
        """Return the bytes in use that an action may free: those of the group, or of the host."""
        if self.name == HOST:
            return -self._read(self.cgroup, "host.meminfo").get("MemAvailable", 0.0)
        return self._read(self.cgroup, "memory.current").get("", 0.0)

    def _holds(self, rule: GroupRule) -> bool:
        """Return whether the condition held at the latest sample; True if it is momentary, which cannot be known."""
        return rule.when.momentary or self.engine.holds(rule)

    def _hush(self, actor: Actor) -> float:
        """Start the cooldowns of all groups of a member that was acted on; return when they started."""
        now = trio.current_time()
        for group in {self, *actor.groups}:
            group.quiet_since = now
            group.engine = group.engine.hushed(now)
            group.remember()
        return now

    def _nobody(self, rule: GroupRule, places: Iterable[Place]) -> None:
        reasons = "; ".join(f"{place.candidate.name}: {place.why}" for place in places)
        self._warn(f"{rule.name} ({rule.when.text}): no member is left to {rule.action} ({reasons or 'none runs'})")

    def _warn(self, message: str) -> None:
        self.world.journal.log.warning("warning", group=self.name, message=message)

    # ---- reload

    def adopt(self, config: GroupConfig) -> None:
        """Switch to another configuration of this group, without its limits (`apply_limits`).

        Rules that are unchanged keep their state.
        """
        rules = config.policy != self.config.policy
        self.config = config
        if rules:
            self.engine = self.engine.adopted(config.policy)
            self.world.watcher.remove(self.cgroup)
            self.watch()
            self._note(Became(config))

    async def go(self, resources: Resources) -> None:
        """Apply the limits of a configuration file. Raises CgroupError, and then nothing has changed."""
        await write(self.cgroup, self.resources, resources, optional=not resources.required)
        self.resources = resources
        self.limits = self.cgroup.limits()
        self.remember()

    # ---- limits

    async def change(self, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """Change the group's limits (as parsed by `parse_changes`): all of them, or none.

        The change lasts until the supervisor ends. Returns whether it was made, and why not. `Groups.change_limits`
        also updates the cgroups inside the group.
        """
        before = self.resources
        try:
            after = changed(self.config, before, changes)
            await write(self.cgroup, before, after)
        except (ConfigError, CgroupError) as error:
            self._warn(f"set: {error}")
            return False, str(error)
        self.resources = after
        self.limits = self.cgroup.limits()
        self.remember()
        was, is_ = difference(before, after)
        self.world.journal.log.info("action", group=self.name, action="set", cause={"by": by}, before=was, after=is_)
        return True, ""

    async def remeasure(self) -> str:
        """Write percentage limits again after a limit of an enclosing group changed; return the problem, or ""."""
        try:
            await remeasure(self.cgroup, self.resources)
        except CgroupError as error:
            self._warn(f"set: {error}")
            return str(error)
        self.limits = self.cgroup.limits()
        return ""

    def status(self) -> dict[str, Any]:
        """Return the object `Group` of `nsupervisor schema api`."""
        limits = self.cgroup.limits()

        def number(file: str, key: str = "") -> int | None:
            value = self._read(self.cgroup, file).get(key)
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
            "memory_pressure_avg10": self._read(self.cgroup, "memory.pressure").get("full avg10"),
        }
