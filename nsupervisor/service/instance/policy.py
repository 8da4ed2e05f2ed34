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
from nsupervisor.config.condition_terms import EXIT, NOT_FILES, UPTIME, has_notification, needs_sampling
from nsupervisor.config.conditions import Atom
from nsupervisor.config.model import Rule
from nsupervisor.core.decider import Observation, PendingAction, RunPending, Transition
from nsupervisor.core.exits import Exit, signal_name
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.core.rules.limit_steps import LimitValues, cgroup_file
from nsupervisor.core.rules.rules import Engine, Snapshot
from nsupervisor.core.rules.sampling import FASTEST_S, next_sample_delay, quiescent_until
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.decisions import DecisionLoop
from nsupervisor.service.instance.hooks import run_notification


@attrs.frozen
class PolicyActions:
    """The operations of the actor that the rules need."""

    log_event: Callable[..., dict[str, Any]]
    """Write a record about the current generation: `InstanceLog.write` without its first argument."""
    carry_out: Callable[[Lifecycle, Transition], Awaitable[None]]
    """Carry out the actions of a transition; the lifecycle is the one before the transition."""
    set_limits: Callable[[LimitValues, dict[str, Any]], None]
    """Queue a change of limits with this cause; the limit writer applies and records it later."""
    notify_pending: Callable[[], None]
    """Have the actor call `run_pending` soon."""


@attrs.define(eq=False)
class PolicyRunner:
    """Feed readings to the rules of one instance, and carry out their actions."""

    cgroup: Cgroup
    counters: Counters
    context: ServiceContext
    actions: PolicyActions
    decisions: DecisionLoop
    limits: Mapping[str, float | None] = attrs.field(init=False)
    """The limits in force, as the kernel has them."""

    started_at: float | None = None
    """When the program was executed, on trio's clock; None while no program runs."""
    _latest: Snapshot = attrs.field(init=False, factory=dict)
    """The latest sample of the level files that the rules have seen."""
    _shown_at: float = attrs.field(init=False, default=0.0)
    """When the rules saw that sample; `_sampled_at` is until when later samples were equal to it."""
    _sampled_at: float = attrs.field(init=False, default=0.0)
    _quiescent_until: float = attrs.field(init=False, default=0.0)
    """Until when the rules need not see an equal sample again."""
    _generation: int = attrs.field(init=False, default=0)
    """The generation that the latest sample belongs to."""
    _interval: float = attrs.field(init=False, default=0.0)
    _delay: float = attrs.field(init=False, default=FASTEST_S / 2)
    _uses_uptime: bool = attrs.field(init=False, default=False)
    """Whether any rule reads the uptime."""
    _files_read_along: list[str] = attrs.field(init=False, factory=list)
    """Event files that rules on level files read as well."""

    def __attrs_post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the limits again after they have been changed."""
        keys = (cgroup_file(key) for rule in self.engine.rules for key in rule.set_)
        self.limits = self.cgroup.read_limits(keys)
        self._quiescent_until = 0.0

    @property
    def engine(self) -> Engine:
        """The rules, with the state of each rule."""
        return self.decisions.state.engine

    def _atoms(self) -> list[Atom]:
        return [atom for rule in self.engine.rules for atom in rule.when.atoms]

    def watch(self, on_reading: Callable[[Reading], None], reset_base_line: bool = True) -> None:
        """Watch exactly the files that the rules need: some files cost samples on some hosts.

        `reset_base_line`: compare counters with their current values from now on.
        """
        atoms = self._atoms()
        files = dict.fromkeys(atom.file for atom in atoms if atom.kind != "stall" and atom.file not in NOT_FILES)
        events = dict.fromkeys(("cgroup.events", *filter(has_notification, files)))
        levels = [file for file in files if needs_sampling(file)]
        self._files_read_along = [
            file for level in levels for file in self.engine.files_read_with(level) if has_notification(file)
        ]
        self._uses_uptime = any(atom.file == UPTIME for atom in atoms)
        watcher = self.context.watcher
        base_line = watcher.add(self.cgroup, on_reading, events=events, levels=levels, on_sample=self.sample)
        for file, values in base_line.items() if reset_base_line else ():
            self.decisions.handle(Observation({file: values}, {}))
        for stall in dict.fromkeys((atom.file, atom.key or "") for atom in atoms if atom.kind == "stall"):
            self._watch_pressure(*stall, on_reading)

    def _watch_pressure(self, file: str, key: str, on_reading: Callable[[Reading], None]) -> None:
        """Set a pressure trigger in the kernel; if the kernel refuses, the watcher measures the stall itself."""
        kind, stall, window = key.split()

        def on_stall(reading: Reading) -> None:
            on_reading(Reading(file, {**reading.values, key: reading.values[f"{kind} total"]}, reading.read_at))

        self.decisions.handle(Observation({file: {key: self.read(file).get(f"{kind} total", 0.0)}}, {}))
        problem = self.context.watcher.add_stall(self.cgroup, file, kind, int(stall), int(window), on_stall)
        if problem and problem not in self.context.warnings_logged:
            self.context.warnings_logged.add(problem)
            self.actions.log_event("warning", "warning", message=problem)

    def program_started(self) -> None:
        """Start sampling: the program has been executed."""
        self.started_at = trio.current_time()
        self.resume_sampling()

    def resume_sampling(self) -> None:
        """Sample the levels soon: the cgroup has processes again."""
        self._quiescent_until, self._delay = 0.0, FASTEST_S / 2
        self.context.watcher.sample_now(self.cgroup)

    def sample(self, values: Snapshot) -> float:
        """Show the rules a sample of all level files; return the seconds until the next sample.

        Most samples of an idle workload are equal to the one before. The rules do not see those until something
        changes, and then make up for them in one step, because a rate needs to know until when nothing happened.
        """
        if not self.decisions.state.lifecycle.is_alive:
            return math.inf
        if (generation := self.decisions.state.lifecycle.generation) != self._generation:
            # Do not make up for the previous program's samples in this generation: its rules would act on them.
            self._generation, self._latest, self._sampled_at = generation, {}, self._shown_at
        now, at, before = trio.current_time(), perf_counter(), self._latest
        if self._files_read_along:
            values = {**values, **{file: self.read(file) for file in self._files_read_along}}
        same = all(reading is before.get(file) for file, reading in values.items())
        if same and now < self._quiescent_until:
            self._sampled_at = now
            return self._next_delay()
        if self._sampled_at > self._shown_at:
            self.decisions.handle(Observation(before, self.limits), self._sampled_at)
        snapshot = {**values, UPTIME: self.read(UPTIME)} if self._uses_uptime else values
        self._show_rules(snapshot, at)
        self._interval = next_sample_delay(self.engine, before, snapshot, now - self._sampled_at, self.limits, now)
        self._quiescent_until = quiescent_until(self.engine, snapshot, self.limits, now) if same else now
        self._latest, self._sampled_at, self._shown_at = snapshot, now, now
        return self._next_delay()

    def _next_delay(self) -> float:
        """Return the sampling interval, but at most twice the time between the last two samples.

        A workload that has just started may grow quickly, and how quickly shows only in the second sample.
        """
        self._delay = min(self._interval, max(2 * self._delay, FASTEST_S))
        return self._delay

    def observe(self, file: str, values: Mapping[str, float], at: float | None) -> None:
        """Show the rules a reading.

        Readings bypass the mailbox: the exit of a program that is already in the mailbox must not overtake them.
        """
        other_files = [other for other in self.engine.files_read_with(file) if other != file]
        self._show_rules({file: values, **{other: self.read(other) for other in other_files}}, at)

    def _show_rules(self, snapshot: Snapshot, at: float | None) -> None:
        if self.decisions.handle(Observation(snapshot, self.limits, at)).state.pending:
            self.actions.notify_pending()

    def read_counters(self) -> None:
        """Read every counter that a rule uses, before an exit of the program is handled (see actor.py)."""
        for file in dict.fromkeys(atom.file for atom in self._atoms() if atom.kind == "counter"):
            self.observe(file, self.read(file), None)

    def program_exited(self, exit_: Exit) -> None:
        """Show the rules how the program ended."""
        self.started_at = None
        if exit_.setup_failure is None and any(atom.file == EXIT for atom in self._atoms()):
            self.observe(EXIT, exit_.condition_values(), None)

    async def run_pending(self) -> None:
        """Run the pending actions of fired rules; an action for an earlier generation does nothing."""
        while self.decisions.state.pending:
            lifecycle = self.decisions.state.lifecycle
            transition = self.decisions.handle(RunPending())
            if transition.executed is not None:
                await self._fire(transition.executed, lifecycle, transition)

    async def _fire(self, pending: PendingAction, lifecycle: Lifecycle, transition: Transition) -> None:
        rule, action = pending.firing.rule, pending.firing.action
        cause = pending.firing.cause.to_record()
        more: dict[str, Any] = {"dry_run": True} if rule.dry_run else {}
        if action == "signal":
            more["signal"] = signal_name(rule.signal or signal.SIGTERM)
        if action == "set":
            if pending.firing.limits and not rule.dry_run:
                self._count_action(pending)
                self.actions.set_limits(pending.firing.limits, cause)
                return
            more["message"] = _describe_settings(rule, pending.firing.limits)
        record = self.actions.log_event("action", "warning", action=action, cause=cause, **more)
        if rule.dry_run:
            return
        self._count_action(pending)
        if action in ("exec", "webhook", "notify"):
            self.context.nursery.start_soon(self._notify, action, rule, record)
        await self.actions.carry_out(lifecycle, transition)

    def _count_action(self, pending: PendingAction) -> None:
        self.counters.count_firing(pending.firing.rule.name, pending.firing.action)
        if pending.reported_at is not None:
            self.context.measures.record_reaction(pending.reported_at)

    async def _notify(self, action: str, rule: Rule, record: dict[str, Any]) -> None:
        """Notify a receiver outside the service; nothing waits for it, and a failure is logged as a warning."""
        if problem := await run_notification(action, rule, record):
            self.actions.log_event("warning", "warning", message=f"{rule.name}: {problem}")

    def read(self, file: str) -> Mapping[str, float]:
        """Return the values in a file of the cgroup; an empty mapping if this host does not have it (no controller).

        Only the files that the watcher watches stay open: with thousands of workloads, descriptors are scarce.
        """
        if file in NOT_FILES:
            runs = file == UPTIME and self.started_at is not None
            return {"": trio.current_time() - (self.started_at or 0.0)} if runs else {}
        try:
            return self.cgroup.read_once(file)
        except CgroupError:
            return {}


def _describe_settings(rule: Rule, settings: LimitValues) -> str:
    """Describe a `set` action that changes nothing, for its record."""
    if not settings:
        return f"nothing is left to set: {', '.join(rule.set_)} at its bound, or without a limit"
    return ", ".join(f"{key} would be {'max' if value is None else f'{value:g}'}" for key, value in settings.items())
