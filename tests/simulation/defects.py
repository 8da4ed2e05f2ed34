"""Defects for the simulation to find: planted ones, and faults that the service once had, whose fixes are undone.

Each replaces one or two functions. `PLANTED` and `REVERTED` have a seed that finds each, the beginning of the first
problem that is found, and the number of steps that are left of the history. docs/chaos.md has the same table.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable
from typing import Any

import attrs
import pytest
import trio

from nsupervisor.config.model import GroupConfig, WorkloadConfig
from nsupervisor.config.problems import ConfigError
from nsupervisor.core import decider
from nsupervisor.core import lifecycle as lifecycles
from nsupervisor.core.events import Input, Timeout
from nsupervisor.core.initiators import BOOT, CONFIGURATION
from nsupervisor.core.lifecycle import Instant, Lifecycle, LifecycleResult, State, stopped_by_shutdown
from nsupervisor.core.rules import group_policy
from nsupervisor.core.rules.rules import Engine, Firing
from nsupervisor.core.rules.victims import Candidate, Ranked, rank_candidates
from nsupervisor.service import run as service_run
from nsupervisor.service.group.group import Group
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.exit_reports import ExitReports
from nsupervisor.service.instance.limits import LimitWriter, Result, Target
from nsupervisor.service.instance.mailbox import Mailbox, Message
from nsupervisor.service.instance.program import Program
from nsupervisor.service.instance.rule_observer import RuleObserver
from nsupervisor.service.jobs.jobs import Jobs, StartJob
from nsupervisor.service.recovery import resume
from nsupervisor.service.reload.reload import Reloader
from nsupervisor.service.state.file import SavedState

Patch = pytest.MonkeyPatch

# ---- planted


def lose_an_exit(patch: Patch) -> None:
    """Forget the exits that an earlier supervisor may not have written."""
    patch.setattr(ExitReports, "redeliver", lambda _self, _undelivered: None)


def start_a_second_generation(patch: Patch) -> None:
    """Take each cgroup for empty."""
    patch.setattr(Actor, "is_populated", lambda _self: False)


def let_a_rule_fire_for_the_next_generation(patch: Patch) -> None:
    """Let levels that held in one generation count in the next."""
    patch.setattr(Engine, "for_new_generation", lambda self: self)


def keep_the_deadline_of_the_start(patch: Patch) -> None:
    """Let the start timeout of a program that is stopped act on its stop."""
    enter_stopping = lifecycles._enter_stopping

    def enter_with_old_deadline(before: Lifecycle, *arguments: Any) -> LifecycleResult:
        after, actions = enter_stopping(before, *arguments)
        return (after if before.deadline is None else attrs.evolve(after, deadline=before.deadline)), actions

    patch.setattr(lifecycles, "_enter_stopping", enter_with_old_deadline)


def leave_timers_running(patch: Patch) -> None:
    """Arm a timer for each deadline, cancel none, and let each act on the stop in progress when it ends."""
    timers: dict[Mailbox, list[float]] = {}
    receive, apply_input = Mailbox.receive, lifecycles.apply_input

    async def receive_with_timers(self: Mailbox, deadline: float | None) -> Message:
        armed = timers.setdefault(self, [])
        if deadline is not None and deadline not in armed:
            heapq.heappush(armed, deadline)
        message = await receive(self, armed[0] if armed else None)
        if isinstance(message, Timeout):
            heapq.heappop(armed)
        return message

    def apply_any_timeout(
        lifecycle: Lifecycle, input_: Input, instant: Instant, workload: WorkloadConfig
    ) -> LifecycleResult:
        if isinstance(input_, Timeout) and lifecycle.state is State.STOPPING:
            return lifecycles.stop_timeout(lifecycle, input_, instant, workload)
        return apply_input(lifecycle, input_, instant, workload)

    patch.setattr(Mailbox, "receive", receive_with_timers)
    patch.setattr(decider, "apply_input", apply_any_timeout)


# ---- reverted


@attrs.define
class _PresentRule:
    """The condition of a rule, looked up in the rules that the group has now."""

    group: Group
    firing: Firing

    def still_holds(self, observer: RuleObserver, now: float) -> bool:
        state = self.group.engine.states[self.group.engine.rules.index(self.firing.rule)]
        return state.holding_since is not None


def look_up_the_rule_of_an_action(patch: Patch) -> None:
    """Look up the rule of a group's action in the rules in force, from which a reload may have removed it."""
    impose = Group._impose

    async def impose_under_the_present_rule(self: Group, actor: Actor, firing: Firing, _: Any) -> tuple[bool, str]:
        return await impose(self, actor, firing, _PresentRule(self, firing))  # type: ignore[arg-type]

    patch.setattr(Group, "_impose", impose_under_the_present_rule)


def resume_without_the_order_of_a_reload(patch: Patch) -> None:
    """Start what was pending, unless it runs, and stop what was removed in no order."""

    def begin_first_jobs(jobs: Jobs, saved: SavedState, nursery: trio.Nursery) -> None:
        leftovers = dict.fromkeys(jobs.leftovers.values(), CONFIGURATION)
        transaction = jobs.begin({}, leftovers, dict.fromkeys(leftovers, ()))
        for actor in leftovers:
            nursery.start_soon(resume._remove, transaction, actor)
        fresh = [actor for name, actor in jobs.actors.items() if name not in saved.instances]
        jobs.start(extra=[actor for actor in fresh if not actor.lifecycle.is_alive], by=BOOT)
        for actor in jobs.actors.values():
            if stopped_by_shutdown(actor.lifecycle):
                jobs.start(extra=[actor], by=BOOT)
        for name, record in saved.instances.items():
            if record.pending_start and name in jobs.actors:
                jobs.start(extra=[jobs.actors[name]], by=record.start_initiator)

    patch.setattr(service_run, "begin_first_jobs", begin_first_jobs)


def judge_a_program_by_the_new_file(patch: Patch) -> None:
    """Forget the type and the watchdog that a program was started with."""
    begin_generation = lifecycles._begin_generation

    def begin_without_type(*arguments: Any) -> Lifecycle:
        return attrs.evolve(begin_generation(*arguments), started_type="")

    patch.setattr(lifecycles, "_begin_generation", begin_without_type)
    patch.setattr(Program, "_watchdog_in_force", lambda _self, workload: workload.watchdog_sec)


def begin_counters_with_a_reload(patch: Patch) -> None:
    """Take the counters at a reload of a group's rules for the values to compare with."""
    apply_config = Group.apply_config

    def forget_increases(self: Group, config: GroupConfig) -> None:
        for file in {atom.file for rule in self.engine.rules for atom in rule.when.atoms if atom.kind == "counter"}:
            snapshot = {file: self.observer.read(file)}
            self.engine, _ = self.engine.observe(snapshot, self.limits, trio.current_time())
        apply_config(self, config)

    patch.setattr(Group, "apply_config", forget_increases)


def judge_exits_that_the_service_causes(patch: Patch) -> None:
    """Show rules the exit of a program that a command ends."""
    patch.setattr(Lifecycle, "is_ending_program", property(lambda _self: False))


def change_limits_at_once(patch: Patch) -> None:
    """Begin a change of limits while another one is in progress."""

    async def submit(_self: LimitWriter, run: Callable[[], Any]) -> Result:
        result: Result = await run()
        return result

    patch.setattr(LimitWriter, "_submit", submit)


def forget_limits_deferred_during_a_change(patch: Patch) -> None:
    """Let a change of limits replace those that a reload has deferred meanwhile."""

    def defer(self: LimitWriter, target: Target) -> None:
        self.resources = target(self.resources)

    patch.setattr(LimitWriter, "defer", defer)


def freeze_again(patch: Patch) -> None:
    """Let a rule that freezes choose a frozen member."""

    def rank_all(
        criterion: str, candidates: Iterable[Candidate], tried: Collection[str], _action: str
    ) -> tuple[Ranked, ...]:
        return rank_candidates(criterion, candidates, tried)

    patch.setattr(group_policy, "rank_candidates", rank_all)


def start_while_the_service_stops(patch: Patch) -> None:
    """Do not look whether the service has begun to stop, after a reload has been prepared."""

    async def reload(self: Reloader, request: Any) -> None:
        try:
            async with self.jobs.membership_lock:
                loaded = await self._read(request.path, request.text, request.files)
                prepared = await self._prepare(loaded.config, self._plan(loaded))
                request.accept(self._begin(loaded.config, self._plan(loaded), prepared, request.by))
        except ConfigError as error:
            request.refuse(error)

    enqueue_start = Jobs._enqueue_start

    def enqueue_in_any_case(self: Jobs, *arguments: Any) -> StartJob:
        is_stopping, self.is_stopping = self.is_stopping, False
        try:
            return enqueue_start(self, *arguments)
        finally:
            self.is_stopping = is_stopping

    patch.setattr(Reloader, "_reload", reload)
    patch.setattr(Jobs, "_enqueue_start", enqueue_in_any_case)


@attrs.frozen
class Defect:
    """A defect, and how the simulation finds it."""

    plant: Callable[[Patch], None]
    seed: int
    problem: str
    """The beginning of the first problem that is found."""
    length: int
    """The number of steps that are left of the history after shrinking."""


PLANTED = (
    Defect(lose_an_exit, 0, "no exit lost", 4),
    Defect(start_a_second_generation, 1, "one generation", 0),
    Defect(let_a_rule_fire_for_the_next_generation, 27, "own generation", 2),
    Defect(keep_the_deadline_of_the_start, 39, "timeouts", 5),
    Defect(leave_timers_running, 3, "timeouts", 2),
)
REVERTED = (
    Defect(look_up_the_rule_of_an_action, 311, "the service ends", 3),
    Defect(resume_without_the_order_of_a_reload, 13, "wanted", 2),
    Defect(judge_a_program_by_the_new_file, 539, "readiness", 3),
    Defect(begin_counters_with_a_reload, 12, "counters", 4),
    Defect(judge_exits_that_the_service_causes, 59, "wanted", 1),
    Defect(change_limits_at_once, 520, "limits", 4),
    Defect(forget_limits_deferred_during_a_change, 625, "limits", 5),
    Defect(freeze_again, 64, "victims", 0),
    Defect(start_while_the_service_stops, 404, "nothing starts", 2),
)
