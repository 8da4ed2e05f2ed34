"""A group of workloads while the service runs: its limits, its readings, and what its rules do to one of its members.

The group decides nothing. `nsupervisor.core.rules` says when a rule of it goes off, `nsupervisor.core.victims` says
whom it hits and whether that has helped. The act itself is the member's own affair: it is handed the rule with its
cause, and does it in its turn, as if it were a rule of its own (`nsupervisor.core.mind`).

All files that a group's rules look at are read together, once a tick, so that all rules see one moment. Where the
kernel tells of events (cgroup v2), such news is a tick, too.

The whole host is a group as well: the cgroup around all our workloads, which has no limits.
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
"""The name of the group of all."""
LOOK = 0.02
"""Seconds between two looks at what an act has led to."""
_MEMORY = ("memory.", "host.memory", "host.meminfo")
"""What the files begin with that a rule about memory looks at."""


@attrs.define(eq=False)
class Group:
    """One group. ``name`` is "group/batch", or "host"."""

    name: str
    config: GroupConfig
    cgroup: Cgroup
    world: World
    around: tuple[Group, ...] = ()
    """The groups that it is in, the outermost first; the host is not among them."""
    turn: trio.Lock = attrs.field(factory=trio.Lock)
    """Held while something is done to a victim; all groups share one, so that no two of them act at once."""
    members: list[Actor] = attrs.field(factory=list)
    """All workload instances in it, also those in groups that are in it."""
    resources: Resources = attrs.field(init=False)
    """The limits in force: the configuration's, with what `change` has made of them."""
    engine: Engine = attrs.field(init=False)
    limits: Mapping[str, float | None] = attrs.field(init=False, factory=dict)
    _growth: Growth = attrs.field(init=False, factory=Growth)
    _latest: Snapshot = attrs.field(init=False, factory=dict)
    """The latest sample of the levels, and when it was taken."""
    _looked: float = 0.0
    _resumed: bool = False
    """What the rules remember is an earlier supervisor's."""
    quiet_since: float = float("-inf")
    """When something was done to a member last, by whichever group."""
    acting: int = 0
    """How many moments there are whose rules have not had all of their turns yet."""

    def __attrs_post_init__(self) -> None:
        self.resources = self.config.resources
        self.engine = Engine.of(self.config.policy)
        if self.name != HOST:
            self.limits = self.cgroup.limits()

    # ---- readings

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its rules look at."""
        return tuple(dict.fromkeys(atom.file for rule in self.engine.rules for atom in rule.when.atoms))

    def resume_from(self, record: GroupRecord | None) -> None:
        """Go on where an earlier supervisor has left it, if one has."""
        if record is not None:
            self.engine = recalled(self.engine, record.rules)
            self._resumed = True

    def remember(self) -> None:
        """Leave word for the supervisor that comes after this one. Rules that have gone off are remembered once that
        has been done, so that they go off again where it has not."""
        changed = differences(self.config.resources, self.resources)
        self.world.state.keep_group(self.name, GroupRecord(remembered(self.engine), changed))

    def watch(self) -> None:
        """Begin to look. What counters say now is the base line, or what an earlier supervisor has heard of them; a
        level that holds already is news."""
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
        told = [file for file in self.files if notifies(file) and not self.cgroup.is_v1(file)]
        levels = [file for file in self.files if file not in told]
        self.world.watcher.add(self.cgroup, self._hear, events=told, levels=levels, on_sample=self._sample)
        stalls = [atom for rule in self.engine.rules for atom in rule.when.atoms if atom.kind == "stall"]
        for file, key in dict.fromkeys((atom.file, atom.key or "") for atom in stalls):
            self._watch_stall(file, key)
        if levels or self._measures_growth:
            self.resume()

    def _watch_stall(self, file: str, key: str) -> None:
        """Have the kernel tell of a stall, as `Judge` does for a workload."""
        kind, stall, window = key.split()

        def heard(reading: Reading) -> None:
            self._see({file: {**reading.values, key: reading.values[f"{kind} total"]}})

        base_line = {file: {key: self._read(self.cgroup, file).get(f"{kind} total", 0.0)}}
        self.engine, _ = self.engine.observe(base_line, self.limits, trio.current_time())
        said = self.world.watcher.add_stall(self.cgroup, file, kind, int(stall), int(window), heard)
        if said and said not in self.world.told:
            self.world.told.add(said)
            self._warn(said)

    def resume(self) -> None:
        """Somebody lives in it: look at the levels again."""
        self.world.watcher.resume(self.cgroup)

    @property
    def _measures_growth(self) -> bool:
        return any(rule.victim == "fastest-growing" for rule in self.config.policy)

    def _read(self, cgroup: Cgroup, file: str) -> Mapping[str, float]:
        try:
            return cgroup.read(file)
        except CgroupError:  # removed just now, or its controller is not there
            return {}

    def _hear(self, reading: Reading) -> None:
        """An event file has news."""
        self._see({reading.file: reading.values})

    def _sample(self, values: Snapshot) -> float:
        """All levels, as they are now; after how many seconds to look again."""
        now = trio.current_time()
        alive = [one for one in self.members if one.life.alive]
        if not alive and self.name != HOST:
            return math.inf
        if self._measures_growth and self._growth.due(now):
            self._growth = self._growth.taken(now, {one.name: self._memory(one) for one in alive})
        self._see(values)
        before, elapsed = self._latest, now - self._looked
        self._latest, self._looked = values, now
        delay = pace(self.engine, before, values, elapsed, self.limits, now)
        counted = any(notifies(file) for file in values)  # on v1, where nobody tells of all members
        return min(delay, COUNTING if counted else SLOWEST, STILL if self._measures_growth else SLOWEST)

    def _see(self, values: Snapshot) -> None:
        """Show the rules a moment: these values, and all other files that they look at, read now."""
        now = trio.current_time()
        others = {file: self._read(self.cgroup, file) for file in self.files if file not in values}
        snapshot, before = {**others, **values}, self.engine
        self.engine, fired = self.engine.observe(snapshot, self.limits, now)
        self._note(Saw(snapshot, self.limits, self.engine is not before, fired), now)
        if fired:
            self.acting += 1
            self.world.nursery.start_soon(self._act, Asked.by(fired), now)

    def _note(self, what: News, now: float | None = None) -> None:
        """Tell those that record."""
        for listener in self.world.group_listeners:
            listener(self, what, trio.current_time() if now is None else now)

    def _memory(self, actor: Actor) -> float:
        return self._read(actor.cgroup, "memory.current").get("", 0.0)

    # ---- acts

    async def _act(self, asked: Asked, decided: float) -> None:
        """What the rules ask for that one moment has set off."""
        try:
            for one in asked.told:
                self.world.nursery.start_soon(self._tell, one)
            for one in asked.dry:
                await self._hit(one)
            if asked.act is not None:
                async with self.turn:
                    # Else something has been done meanwhile; if it does not help, they say so.
                    if self.quiet_since < decided:
                        await self._hit(asked.act)
                    else:
                        self._note(Passed())
        finally:
            self.acting -= 1
        self.remember()

    async def _tell(self, fired: Fired) -> None:
        """The rule's record, and what it runs: that concerns no member."""
        cause = attrs.evolve(fired.cause, group=self.name)
        more = {"dry_run": True} if fired.rule.dry_run else {}
        record = {"group": self.name, "action": fired.action, "cause": cause.record(), **more}
        self.world.journal.log.warning("action", **record)
        if not fired.rule.dry_run:
            problem = await tell(fired.action, fired.rule, {"timestamp": timestamp(), "event": "action", **record})
            if problem:
                self._warn(f"{fired.rule.name}: {problem}")

    async def _hit(self, fired: Fired) -> None:
        """Do it to the first candidate, and where that does not help to the next, until it does or none is left."""
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
            actor = next(one for one in self.members if one.name == name)
            helped, why = await self._do(actor, act)
            if rule.dry_run:
                break
            self._note(Came(name, helped, why), self._hush(actor))
            if helped:
                break
            tried[name] = why
            self._warn(f"{rule.name}: {fired.action} of {name} did not help: {why}")

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
        """Have the victim do it, and see whether it helps: whether it did, and why not."""
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
            verdict, why = effect.verdict(gone, freed, self._holds(rule), elapsed)
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
        return verdict == "done", why

    def _used(self) -> float:
        """Bytes in use that an act may free: of the group, or of the host."""
        if self.name == HOST:
            return -self._read(self.cgroup, "host.meminfo").get("MemAvailable", 0.0)
        return self._read(self.cgroup, "memory.current").get("", 0.0)

    def _holds(self, rule: GroupRule) -> bool:
        """Whether the condition does, as of the last tick; of one that is true for a moment only, nobody can say."""
        return rule.when.momentary or self.engine.holds(rule)

    def _hush(self, actor: Actor) -> float:
        """Something was done to a member: its groups wait for what it leads to, each rule its cooldown. Since when."""
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

    # ---- what a reload says

    def adopt(self, config: GroupConfig) -> None:
        """Be this group from now on; the limits are another matter (`go`). The same rules keep their memory."""
        rules = config.policy != self.config.policy
        self.config = config
        if rules:
            self.engine = self.engine.adopted(config.policy)
            self.world.watcher.remove(self.cgroup)
            self.watch()
            self._note(Became(config))

    async def go(self, resources: Resources) -> None:
        """Go over to the limits of a file. CgroupError: nothing has changed, and why."""
        await write(self.cgroup, self.resources, resources, optional=not resources.required)
        self.resources = resources
        self.limits = self.cgroup.limits()
        self.remember()

    # ---- limits

    async def change(self, changes: Mapping[str, Any], by: str = "operator") -> tuple[bool, str]:
        """Change the group's limits (`parse_changes`): all of them, or none. They last until the supervisor ends.

        Returns whether it was done, and why not. `Groups.change` sees to those in it.
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
        """A limit of a group around it has changed: set anew what is in per cent of it. Why not, if that failed."""
        try:
            await remeasure(self.cgroup, self.resources)
        except CgroupError as error:
            self._warn(f"set: {error}")
            return str(error)
        self.limits = self.cgroup.limits()
        return ""

    def status(self) -> dict[str, Any]:
        """The object ``Group`` of ``nsupervisor schema api``."""
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
