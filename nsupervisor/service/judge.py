"""Run the rules of one workload instance: readings in, requested actions out.

This module decides nothing. It passes each reading to `nsupervisor.core.decider` and carries out the actions of rules
that have fired, one at a time. Actions that concern the workload's lifecycle go back to the actor.

Rules see only the snapshots that they are given. A snapshot also holds values that are in no file of the cgroup: how
the program ended (`exit`), how long it has been running (`uptime`), and that a pressure trigger fired (a key of the
pressure file).
"""

import math
import signal
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any

import attrs
import trio

from nsupervisor.cgroups import Cgroup, CgroupError, Reading
from nsupervisor.config.conditions import Atom
from nsupervisor.config.facts import EXIT, NOT_FILES, UPTIME, notifies, sampled
from nsupervisor.config.model import Rule
from nsupervisor.core.adjusting import Settings, file_of
from nsupervisor.core.exits import Exit, signal_name
from nsupervisor.core.lifecycle import Life
from nsupervisor.core.mind import Due, Seen, Thought, Turn
from nsupervisor.core.pace import FASTEST, pace, still_until
from nsupervisor.core.rules import Engine, Snapshot
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.hooks import tell
from nsupervisor.service.thinker import Thinker
from nsupervisor.service.world import World


@attrs.frozen
class Hands:
    """The operations of the actor that the rules need."""

    say: Callable[..., dict[str, Any]]
    """Write a record about the current generation: `InstanceLog.write` without its first argument."""
    follow: Callable[[Life, Thought], Awaitable[None]]
    """Carry out the actions of a transition; the lifecycle is the one before the transition."""
    set: Callable[[Settings, dict[str, Any]], None]
    """Queue a change of limits with this cause; the limit writer applies and records it later."""
    nudge: Callable[[], None]
    """Have the actor call `run_pending` soon."""


@attrs.define(eq=False)
class Judge:
    """Feed readings to the rules of one instance, and carry out their actions."""

    cgroup: Cgroup
    counters: Counters
    world: World
    hands: Hands
    thinker: Thinker
    limits: Mapping[str, float | None] = attrs.field(init=False)
    """The limits in force, as the kernel has them."""

    started_at: float | None = None
    """When the program was executed, on trio's clock; None while no program runs."""
    _latest: Snapshot = attrs.field(init=False, factory=dict)
    """The latest sample of the level files that the rules have seen."""
    _taken: float = attrs.field(init=False, default=0.0)
    """When the rules saw that sample; `_sampled_at` is until when later samples were equal to it."""
    _looked: float = attrs.field(init=False, default=0.0)
    _still: float = attrs.field(init=False, default=0.0)
    """Until when the rules need not see an equal sample again."""
    _generation: int = attrs.field(init=False, default=0)
    """The generation that the latest sample belongs to."""
    _pace: float = attrs.field(init=False, default=0.0)
    _delay: float = attrs.field(init=False, default=FASTEST / 2)
    _timed: bool = attrs.field(init=False, default=False)
    """Whether any rule reads the uptime."""
    _beside: list[str] = attrs.field(init=False, factory=list)
    """Event files that rules on level files read as well."""

    def __attrs_post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the limits again after they have been changed."""
        keys = (file_of(key) for rule in self.engine.rules for key in rule.set_)
        self.limits = self.cgroup.limits(keys)
        self._still = 0.0

    @property
    def engine(self) -> Engine:
        """The rules, with the state of each rule."""
        return self.thinker.mind.engine

    def _atoms(self) -> list[Atom]:
        return [atom for rule in self.engine.rules for atom in rule.when.atoms]

    def watch(self, hear: Callable[[Reading], None], anew: bool = True) -> None:
        """Watch exactly the files that the rules need: some files cost samples on some hosts.

        `reset_base_line`: compare counters with their current values from now on.
        """
        atoms = self._atoms()
        files = dict.fromkeys(atom.file for atom in atoms if atom.kind != "stall" and atom.file not in NOT_FILES)
        events = dict.fromkeys(("cgroup.events", *filter(notifies, files)))
        levels = [file for file in files if sampled(file)]
        self._beside = [file for level in levels for file in self.engine.together(level) if notifies(file)]
        self._timed = any(atom.file == UPTIME for atom in atoms)
        watcher = self.world.watcher
        base_line = watcher.add(self.cgroup, hear, events=events, levels=levels, on_sample=self.sample)
        for file, values in base_line.items() if anew else ():
            self.thinker.take(Seen({file: values}, {}))
        for stall in dict.fromkeys((atom.file, atom.key or "") for atom in atoms if atom.kind == "stall"):
            self._watch_stall(*stall, hear)

    def _watch_stall(self, file: str, key: str, hear: Callable[[Reading], None]) -> None:
        """Set a pressure trigger in the kernel; if the kernel refuses, the watcher measures the stall itself."""
        kind, stall, window = key.split()

        def on_stall(reading: Reading) -> None:
            hear(Reading(file, {**reading.values, key: reading.values[f"{kind} total"]}, reading.at))

        self.thinker.take(Seen({file: {key: self.read(file).get(f"{kind} total", 0.0)}}, {}))
        problem = self.world.watcher.add_stall(self.cgroup, file, kind, int(stall), int(window), on_stall)
        if problem and problem not in self.world.told:
            self.world.told.add(problem)
            self.hands.say("warning", "warning", message=problem)

    def began(self) -> None:
        """Start sampling: the program has been executed."""
        self.started_at = trio.current_time()
        self.resume()

    def resume(self) -> None:
        """Sample the levels soon: the cgroup has processes again."""
        self._still, self._delay = 0.0, FASTEST / 2
        self.world.watcher.resume(self.cgroup)

    def sample(self, values: Snapshot) -> float:
        """Show the rules a sample of all level files; return the seconds until the next sample.

        Most samples of an idle workload are equal to the one before. The rules do not see those until something
        changes, and then make up for them in one step, because a rate needs to know until when nothing happened.
        """
        if not self.thinker.mind.life.alive:
            return math.inf
        if (generation := self.thinker.mind.life.generation) != self._generation:
            # Do not make up for the previous program's samples in this generation: its rules would act on them.
            self._generation, self._latest, self._looked = generation, {}, self._taken
        now, at, before = trio.current_time(), perf_counter(), self._latest
        if self._beside:
            values = {**values, **{file: self.read(file) for file in self._beside}}
        same = all(reading is before.get(file) for file, reading in values.items())
        if same and now < self._still:
            self._looked = now
            return self._soon()
        if self._looked > self._taken:
            self.thinker.take(Seen(before, self.limits), self._looked)
        snapshot = {**values, UPTIME: self.read(UPTIME)} if self._timed else values
        self._show(snapshot, at)
        self._pace = pace(self.engine, before, snapshot, now - self._looked, self.limits, now)
        self._still = still_until(self.engine, snapshot, self.limits, now) if same else now
        self._latest, self._looked, self._taken = snapshot, now, now
        return self._soon()

    def _soon(self) -> float:
        """Return the sampling interval, but at most twice the time between the last two samples.

        A workload that has just started may grow quickly, and how quickly shows only in the second sample.
        """
        self._delay = min(self._pace, max(2 * self._delay, FASTEST))
        return self._delay

    def look(self, file: str, values: Mapping[str, float], at: float | None) -> None:
        """Show the rules a reading.

        Readings bypass the mailbox: the exit of a program that is already in the mailbox must not overtake them.
        """
        other_files = [other for other in self.engine.together(file) if other != file]
        self._show({file: values, **{other: self.read(other) for other in other_files}}, at)

    def _show(self, snapshot: Snapshot, at: float | None) -> None:
        if self.thinker.take(Seen(snapshot, self.limits, at)).mind.due:
            self.hands.nudge()

    def look_at_counters(self) -> None:
        """Read every counter that a rule uses, before an exit of the program is handled (see actor.py)."""
        for file in dict.fromkeys(atom.file for atom in self._atoms() if atom.kind == "counter"):
            self.look(file, self.read(file), None)

    def exited(self, exit_: Exit) -> None:
        """Show the rules how the program ended."""
        self.started_at = None
        if exit_.failure is None and any(atom.file == EXIT for atom in self._atoms()):
            self.look(EXIT, exit_.facts(), None)

    async def carry_out(self) -> None:
        """Run the pending actions of fired rules; an action for an earlier generation does nothing."""
        while self.thinker.mind.due:
            life = self.thinker.mind.life
            thought = self.thinker.take(Turn())
            if thought.due is not None:
                await self._fire(thought.due, life, thought)

    async def _fire(self, due: Due, life: Life, thought: Thought) -> None:
        rule, action = due.fired.rule, due.fired.action
        cause = due.fired.cause.record()
        more: dict[str, Any] = {"dry_run": True} if rule.dry_run else {}
        if action == "signal":
            more["signal"] = signal_name(rule.signal or signal.SIGTERM)
        if action == "set":
            if due.fired.settings and not rule.dry_run:
                self._count(due)
                self.hands.set(due.fired.settings, cause)
                return
            more["message"] = _what_would_be(rule, due.fired.settings)
        record = self.hands.say("action", "warning", action=action, cause=cause, **more)
        if rule.dry_run:
            return
        self._count(due)
        if action in ("exec", "webhook", "notify"):
            self.world.nursery.start_soon(self._tell, action, rule, record)
        await self.hands.follow(life, thought)

    def _count(self, due: Due) -> None:
        self.counters.acted(due.fired.rule.name, due.fired.action)
        if due.at is not None:
            self.world.measures.reacted(due.at)

    async def _tell(self, action: str, rule: Rule, record: dict[str, Any]) -> None:
        """Notify a receiver outside the service; nothing waits for it, and a failure is logged as a warning."""
        if problem := await tell(action, rule, record):
            self.hands.say("warning", "warning", message=f"{rule.name}: {problem}")

    def read(self, file: str) -> Mapping[str, float]:
        """Return the values in a file of the cgroup; an empty mapping if this host does not have it (no controller).

        Only the files that the watcher watches stay open: with thousands of workloads, descriptors are scarce.
        """
        if file in NOT_FILES:
            runs = file == UPTIME and self.started_at is not None
            return {"": trio.current_time() - (self.started_at or 0.0)} if runs else {}
        try:
            return self.cgroup.look(file)
        except CgroupError:
            return {}


def _what_would_be(rule: Rule, settings: Settings) -> str:
    """Describe a `set` action that changes nothing, for its record."""
    if not settings:
        return f"nothing is left to set: {', '.join(rule.set_)} at its bound, or without a limit"
    return ", ".join(f"{key} would be {'max' if value is None else f'{value:g}'}" for key, value in settings.items())
