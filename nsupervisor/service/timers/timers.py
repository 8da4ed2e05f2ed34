"""The timers of all workloads: one task, which sleeps until the next one is due.

`Timers` owns the state of each timer, and `nsupervisor.core.timers.timer` decides about it. The state is saved before
a run begins, together with the run, so that a supervisor that takes over completes the run if it has not begun: a kill
of the service neither loses a run nor doubles it. A persistent timer also remembers on the disk, before the run begins,
until when its times were handled: after a power cut a run that had just begun is not repeated.

The heaps have an entry for each time that a timer has had; an entry whose time is not that of its timer any more counts
for nothing. Idle timers cost nothing: the task waits for one descriptor.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import attrs
import trio

from nsupervisor.config.kinds import TableOf
from nsupervisor.config.model import Config, WorkloadConfig
from nsupervisor.config.timers import TimerConfig
from nsupervisor.config.to_toml import to_toml
from nsupervisor.config.units import format_duration
from nsupervisor.core import events
from nsupervisor.core.decider import Transition, WorkloadInput, WorkloadState
from nsupervisor.core.exits import Outcome
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Instant, exit_outcome
from nsupervisor.core.states import DOWN_STATES, State
from nsupervisor.core.timers.schedule import Schedule, make_schedule
from nsupervisor.core.timers.state import RunMode, TimerState
from nsupervisor.core.timers.timer import (
    Arm,
    Disarm,
    Elapse,
    Ended,
    Reschedule,
    Run,
    Skip,
    Started,
    TimerInput,
    TimerInstant,
    WorkloadView,
    handle,
)
from nsupervisor.logs.threads import call_in_thread
from nsupervisor.metrics.snapshot import TimerSnapshot
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.jobs.jobs import Jobs
from nsupervisor.service.platform.timer_host import Stamps
from nsupervisor.service.state.file import TimerCheckpoint

COMPUTED_PER_CHECKPOINT = 50
"""Timers that are computed again between two checkpoints of the scheduler, after the clock was set."""
TAKEOVER_GRACE_S = 1.0
"""Seconds after a takeover in which nothing is due. Meanwhile the keeper reports the exits of programs that ended while
no supervisor ran: a run that is due must not be skipped because such a program seems to run."""
NO_CHECKPOINTS: Mapping[str, TimerCheckpoint] = {}


@attrs.define(eq=False)
class Timer:
    """The timer of one workload."""

    name: str
    config: TimerConfig
    schedule: Schedule
    state: TimerState
    pending: RunMode | None = None
    """A run that was decided and has not begun."""
    generations: Mapping[str, int] = attrs.field(factory=dict)
    """With `pending`: the latest generation of each instance when it was decided."""
    lag: float | None = None
    """How late the last run began, in seconds."""
    latest: str = ""
    """The outcome of the latest time, in words."""

    def configure(self, config: TimerConfig, schedule: Schedule) -> None:
        """Take another configuration; a `Reschedule` follows."""
        self.config, self.schedule = config, schedule

    def apply(self, input_: TimerInput, instant: TimerInstant, view: WorkloadView) -> Run | Skip | None:
        """Apply an input to the state; return the action."""
        self.state, action = handle(self.state, input_, instant, self.schedule, view)
        if action is not None:
            late = f", {action.late_s:.3g} s late" if isinstance(action, Run) and action.late_s >= 1 else ""
            self.latest = f"{action.reason}{late}"
        if isinstance(action, Run):
            self.lag = action.late_s
        return action

    def set_pending(self, mode: RunMode | None, generations: Mapping[str, int]) -> None:
        """Note a run that has yet to begin, or None; see the attributes."""
        self.pending, self.generations = mode, generations


@attrs.define(eq=False)
class Timers:
    """The timers of all workloads of a configuration."""

    jobs: Jobs
    context: ServiceContext
    nursery: trio.Nursery
    service: str
    """The name of the service, as several may share the state directory."""
    _began_at: float
    """When the service started, by trio's clock."""
    _timers: dict[str, Timer] = attrs.field(init=False, factory=dict)
    _wall_heap: list[tuple[float, str]] = attrs.field(init=False, factory=list)
    _monotonic_heap: list[tuple[float, str]] = attrs.field(init=False, factory=list)
    _machine_id: str = attrs.field(init=False, default="")
    _has_task: bool = attrs.field(init=False, default=False)
    _is_takeover: bool = attrs.field(init=False, default=False)
    """Whether an earlier supervisor has left timers."""
    _sleep: trio.CancelScope | None = attrs.field(init=False, default=None)
    _stamps: Stamps = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._stamps = self.context.kernel.timers.stamps(self.context.state_directory, self.service)

    # ---- queries

    def status(self) -> list[dict[str, Any]]:
        """Return one object per timer, in the order of the configuration: `Timer` of `nsupervisor schema api`."""
        return [self._status(timer) for timer in self._timers.values()]

    def status_of(self, workload: str) -> dict[str, Any] | None:
        """Return the object of the timer of a workload; None if it has none."""
        timer = self._timers.get(workload)
        return self._status(timer) if timer is not None else None

    def _status(self, timer: Timer) -> dict[str, Any]:
        state, now, next_at = timer.state, self.context.kernel.timers.now(), self._next_at(timer)
        instances = self.jobs.actors.instances(timer.name)
        exits = [actor.last_exit for actor in instances if actor.last_exit is not None]
        view = self._view(timer)
        return {
            "name": timer.name,
            "action": timer.config.action,
            "times": _times(timer.config),
            "armed": state.is_armed,
            "suspended": timer.config.suspend,
            "next_at": next_at,
            "left_sec": None if next_at is None else round(max(next_at - now, 0.0), 3),
            "last_at": state.last_run_at,
            "passed_sec": None if state.last_run_at is None else round(max(now - state.last_run_at, 0.0), 3),
            "last_success_at": state.last_success_at,
            "running": view.is_busy,
            "last_exit": str(exits[-1]) if exits else "",
            "latest": timer.latest if state.is_armed else state.disarmed_reason,
            "runs": state.runs,
            "skipped": state.skipped,
            "missed": state.missed,
        }

    def metrics(self) -> list[TimerSnapshot]:
        """Return what a scrape shows of each timer."""
        return [
            TimerSnapshot(
                timer.name,
                self._next_at(timer),
                timer.state.last_run_at,
                timer.state.last_success_at,
                timer.lag,
                {"run": timer.state.runs, "skipped": timer.state.skipped, "missed": timer.state.missed},
            )
            for timer in self._timers.values()
        ]

    def _next_at(self, timer: Timer) -> float | None:
        """Return when a timer is due next, on the wall clock."""
        times = [] if timer.state.due is None else [timer.state.due]
        if timer.state.monotonic_due is not None:
            times.append(self.context.kernel.timers.now() + timer.state.monotonic_due - trio.current_time())
        return min(times, default=None)

    # ---- changes from outside

    def begin(self, config: Config, saved: Mapping[str, TimerCheckpoint]) -> None:
        """Make the timers of a configuration, and complete the runs of an earlier supervisor; at the start only."""
        self._machine_id = self.context.kernel.timers.machine_id()
        self.context.listeners.add(self._on_transition)
        self._is_takeover = bool(saved)
        for name in saved.keys() - {name for name, workload in config.workloads.items() if workload.timer.is_set}:
            self.context.state.save_timer(name, None)
        self.configure(config, saved)
        for timer in list(self._timers.values()):
            if timer.pending is not None:
                self._complete(timer)

    def configure(self, config: Config, saved: Mapping[str, TimerCheckpoint] = NO_CHECKPOINTS) -> None:
        """Take the timers of another configuration; those that stay keep their state."""
        wanted = {name: workload for name, workload in config.workloads.items() if workload.timer.is_set}
        for name in self._timers.keys() - wanted:
            del self._timers[name]
            self.context.state.save_timer(name, None)
        for name, workload in wanted.items():
            timer = self._timers.get(name)
            if timer is None:
                self._add(workload, saved.get(name))
            elif timer.config != workload.timer:
                timer.configure(workload.timer, self._schedule(workload))
                self._apply(timer, Reschedule(is_config_changed=True))
        self._timers = {name: self._timers[name] for name in wanted}
        if self._timers and not self._has_task:
            self._has_task = True
            self.nursery.start_soon(self._run)
        self._wake()

    def _add(self, workload: WorkloadConfig, saved: TimerCheckpoint | None) -> None:
        name, config = workload.name, workload.timer
        state = saved.state if saved is not None else TimerState(startup_at=self._began_at)
        timer = self._timers[name] = Timer(name, config, self._schedule(workload), state)
        if saved is not None:
            timer.set_pending(saved.pending, saved.generations)
            self._apply(timer, Reschedule(is_config_changed=saved.schedule != _written(config)))
            return
        since = None
        if config.persistent and workload.autostart:
            try:
                since = self._stamps.read(name)
            except OSError as error:
                self._warn(timer, f"cannot read when it last ran: {error}")
        if not workload.autostart:
            self._apply(timer, Disarm("autostart = false"))
            return
        self._apply(timer, Arm(since))
        if config.persistent and since is None:
            self.nursery.start_soon(self._remember, timer)  # the next start then knows what it has missed

    def _schedule(self, workload: WorkloadConfig) -> Schedule:
        try:
            return make_schedule(workload.timer, workload.name, self._machine_id, self.context.kernel.timers.zone)
        except LookupError as error:  # it was there when the configuration was checked
            text = f"its timer does not run: {error}"
            self.context.journal.log.error("warning", workload=workload.name, message=text)
            return Schedule(workload.timer)

    def _on_transition(
        self,
        name: str,
        workload: WorkloadConfig,
        before: WorkloadState,
        input_: WorkloadInput,
        _instant: Instant,
        transition: Transition,
    ) -> None:
        """Take a transition of an instance: commands arm and disarm, and starts and ends are times."""
        timer = self._timers.get(workload.name)
        if timer is None:
            return
        command = transition.lifecycle_input
        if isinstance(command, events.Command) and command.requested_by.is_request:
            if isinstance(command, events.Stop):
                self._apply(timer, Disarm(f"stopped by {command.requested_by}: nsupervisor start {timer.name}"))
            elif isinstance(command, events.Start | events.Restart) and not timer.state.is_armed:
                self._apply(timer, Arm())
        old, new = before.lifecycle, transition.state.lifecycle
        if new.generation > old.generation:
            self._apply(timer, Started())
        if old.state not in DOWN_STATES and new.state in DOWN_STATES and not self._view(timer).is_busy:
            exit_ = new.exit if new.state is State.EXITED else None
            is_success = exit_ is not None and exit_outcome(old, exit_, workload) is Outcome.SUCCESS
            self._apply(timer, Ended(is_success))

    # ---- the task

    async def _run(self) -> None:
        """Handle each timer when it is due, until cancelled; from the first timer on."""
        if self._is_takeover:
            await trio.sleep(TAKEOVER_GRACE_S)
        with self.context.kernel.timers.open_clock() as clock:
            while True:
                was_set = False
                self._elapse()
                wall, monotonic = self._next(self._wall_heap), self._next(self._monotonic_heap)
                with trio.CancelScope(deadline=monotonic if monotonic is not None else float("inf")) as self._sleep:
                    was_set = await clock.sleep_until(wall)
                self._sleep = None
                if was_set:
                    await self._on_clock_set()

    def _wake(self) -> None:
        if self._sleep is not None:
            self._sleep.cancel()

    async def _on_clock_set(self) -> None:
        """Compute all times again: the clock may have been set back, so that others are next."""
        self.context.journal.log.info("clock set", message="the times of all timers are computed again")
        for number, timer in enumerate(list(self._timers.values())):
            if number % COMPUTED_PER_CHECKPOINT == 0:
                await trio.lowlevel.checkpoint()
            if self._timers.get(timer.name) is timer and timer.schedule.timer.has_wall_times:
                self._apply(timer, Reschedule())

    def _elapse(self) -> None:
        """Handle all timers that are due."""
        for heap, now in (
            (self._wall_heap, self.context.kernel.timers.now()),
            (self._monotonic_heap, trio.current_time()),
        ):
            while heap and heap[0][0] <= now:
                due, name = heapq.heappop(heap)
                timer = self._timers.get(name)
                if timer is not None and due in (timer.state.due, timer.state.monotonic_due):
                    self._apply(timer, Elapse())

    def _next(self, heap: list[tuple[float, str]]) -> float | None:
        """Return the earliest time in a heap, without entries that do not count any more."""
        while heap:
            due, name = heap[0]
            timer = self._timers.get(name)
            if timer is not None and due in (timer.state.due, timer.state.monotonic_due):
                return due
            heapq.heappop(heap)
        return None

    def _apply(self, timer: Timer, input_: TimerInput) -> None:
        """Apply an input to a timer, save the result, and carry it out."""
        kernel, before = self.context.kernel, timer.state
        instant = TimerInstant(kernel.timers.now(), trio.current_time(), kernel.random())
        action = timer.apply(input_, instant, self._view(timer))
        if isinstance(action, Run):
            generations = {actor.name: actor.lifecycle.generation for actor in self._instances(timer)}
            timer.set_pending(action.mode, generations)
        if timer.state != before or isinstance(input_, Arm | Disarm | Reschedule):
            self._save(timer)
        is_woken = False
        for heap, due, old in (
            (self._wall_heap, timer.state.due, before.due),
            (self._monotonic_heap, timer.state.monotonic_due, before.monotonic_due),
        ):
            if due is not None and (due != old or isinstance(input_, Elapse | Reschedule)):
                heapq.heappush(heap, (due, timer.name))
                is_woken = is_woken or heap[0] == (due, timer.name)
        if is_woken:
            self._wake()
        if isinstance(action, Skip):
            level = "warning" if action.is_missed else "info"
            self._log(timer, level, do="skip", message=f"not run: {action.reason}")
        elif isinstance(action, Run):
            self._log(timer, "info", do=action.mode, message=f"run: {timer.latest}", late_sec=round(action.late_s, 3))
            self.nursery.start_soon(self._carry_out, timer, action.mode)

    # ---- runs

    def _complete(self, timer: Timer) -> None:
        """Complete a run that an earlier supervisor decided: begin it unless a start of it waits or has been made."""
        actors = self._instances(timer)
        has_begun = any(
            self.jobs.has_pending_start(actor)
            or actor.lifecycle.generation > timer.generations.get(actor.name, actor.lifecycle.generation)
            for actor in actors
        )
        if has_begun or timer.pending is None or not timer.state.is_armed:
            timer.set_pending(None, {})
            self._save(timer)
        else:
            self.nursery.start_soon(self._carry_out, timer, timer.pending)

    async def _carry_out(self, timer: Timer, mode: RunMode) -> None:
        """Begin a run, once it is remembered on the disk."""
        if timer.config.persistent:
            await self._remember(timer)
        by = Initiator("timer", timer.name)
        actors = [actor for actor in self._instances(timer) if self.jobs.removal_of(actor) is None]
        # From here to the start no await: what is decided here must still be true.
        if self.jobs.is_stopping:
            return
        if mode == "instance":
            actors = [actor for actor in actors if self.jobs.is_down(actor)][:1]
        if not timer.state.is_armed:  # an operator has stopped it meanwhile
            actors = []
        if actors and mode in ("start", "instance"):
            self.jobs.start(extra=actors, by=by)
        timer.set_pending(None, {})
        self._save(timer)
        if mode in ("replace", "restart"):
            for actor in actors:
                self.nursery.start_soon(self._restart, timer, actor, by)

    async def _restart(self, timer: Timer, actor: Actor, by: Initiator) -> None:
        ok, message = await self.jobs.restart_and_wait(actor, by)
        if not ok:
            self._warn(timer, f"{actor.name}: {message}")

    async def _remember(self, timer: Timer) -> None:
        try:
            await call_in_thread(self._stamps.write, timer.name, timer.state.handled_until)
        except OSError as error:
            self._warn(timer, f"cannot remember when it ran, so a run may be repeated after a power cut: {error}")

    # ---- helpers

    def _instances(self, timer: Timer) -> list[Actor]:
        return self.jobs.actors.instances(timer.name)

    def _view(self, timer: Timer) -> WorkloadView:
        instances = self._instances(timer)
        busy = [actor for actor in instances if not self.jobs.is_down(actor)]
        reason = ""
        if busy:
            actor, lifecycle = busy[0], busy[0].lifecycle
            waits = lifecycle.state in DOWN_STATES
            what = "waits to start" if waits else f"is {lifecycle.state.value}, generation {lifecycle.generation}"
            reason = f"{actor.name} {what}"
        elif timer.pending is not None:
            reason = "a run is about to begin"
        return WorkloadView(bool(reason), reason, len(busy) < len(instances), self._obstacle(timer))

    def _obstacle(self, timer: Timer) -> str:
        """Return which workload, that a start would start along, a request has stopped: it stays stopped."""
        actor = self.jobs.start_obstacle(timer.name)
        return "" if actor is None else f"it would start {actor.name}, which is {actor.lifecycle.reason}"

    def _save(self, timer: Timer) -> None:
        if self._timers.get(timer.name) is timer:
            checkpoint = TimerCheckpoint(timer.state, _written(timer.config), timer.pending, timer.generations)
            self.context.state.save_timer(timer.name, checkpoint)

    def _log(self, timer: Timer, level: str, **fields: Any) -> None:
        getattr(self.context.journal.log, level)("timer", workload=timer.name, **fields)

    def _warn(self, timer: Timer, message: str) -> None:
        self.context.journal.log.warning("warning", workload=timer.name, message=message)


def _written(config: TimerConfig) -> str:
    """Return the keys that differ from their defaults, as a file has them: the same for a version with further keys."""
    return to_toml(TableOf(TimerConfig), config)


def _times(config: TimerConfig) -> list[str]:
    """Return the times of a timer as the configuration has them."""
    zone = f" {config.timezone}" if config.timezone else ""
    monotonic = (f"{name} {format_duration(getattr(config, name))}" for name in config.monotonic_keys())
    return [*(f"{text}{zone}" for text in (*config.on_calendar, *config.cron)), *monotonic]
