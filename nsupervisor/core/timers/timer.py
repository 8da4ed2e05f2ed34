"""Decisions of one timer: whether a run is due, and what becomes of it. Pure.

A timer has up to two times to wait for: the next occurrence of its expressions, on the wall clock, and the next time
after a boot, a start or an end, on the monotonic clock. `handle` is a function of the state so far, an input, the
instant on both clocks, the schedule, and what the workload does at that instant.

- An occurrence is never handled twice: `handled_until` only grows, also if the clock is set back. A clock that is set
  back by more than a day was wrong before; then the timer continues from the new time.
- Missed occurrences are computed, not enumerated: of any number, the latest one that is not too late runs, once.
- A run that catches up is not delayed by `randomized_delay_sec`.
"""

from __future__ import annotations

import attrs

from nsupervisor.core.timers.schedule import Schedule
from nsupervisor.core.timers.state import RunMode, TimerState

SET_BACK_S = 86_400.0
"""Seconds by which a clock that is set back was wrong before."""


@attrs.frozen
class TimerInstant:
    """The time of an input: seconds since 1970, seconds of the monotonic clock, and a random number from [0, 1)."""

    wall: float
    monotonic: float
    jitter: float = 0.0


@attrs.frozen
class WorkloadView:
    """The state of the workload at the instant."""

    is_busy: bool = False
    """Whether an instance runs, starts or waits to start."""
    busy_reason: str = ""
    has_free_instance: bool = True
    obstacle: str = ""
    """Why it must not be started, in words; or ""."""


@attrs.frozen
class Arm:
    """The timer begins, or an operator has started the workload."""

    since: float | None = None
    """Occurrences up to here were handled before; None: up to now."""


@attrs.frozen
class Disarm:
    """An operator has stopped the workload, and it stays stopped."""

    reason: str


@attrs.frozen
class Reschedule:
    """The configuration or the clock has changed: the times are computed again."""

    is_config_changed: bool = False


@attrs.frozen
class Elapse:
    """Time has passed, so a run may be due."""


@attrs.frozen
class Started:
    """An instance of the workload was started."""


@attrs.frozen
class Ended:
    """The workload has ended: no instance of it runs."""

    is_success: bool = False


TimerInput = Arm | Disarm | Reschedule | Elapse | Started | Ended


@attrs.frozen
class Run:
    """Start the workload, one of its instances, or restart it."""

    mode: RunMode
    reason: str
    late_s: float = 0.0


@attrs.frozen
class Skip:
    """A run was due and does not take place."""

    reason: str
    is_missed: bool = False


TimerDecision = Run | Skip


def handle(
    state: TimerState, input_: TimerInput, instant: TimerInstant, schedule: Schedule, view: WorkloadView
) -> tuple[TimerState, TimerDecision | None]:
    """Compute the state after an input, and what to do."""
    match input_:
        case Arm(since=since):
            if state.is_armed:
                return state, None
            # By default from now on: what was due while it was disarmed is not missed.
            until = max(state.handled_until, instant.wall - schedule.offset if since is None else since)
            state = attrs.evolve(state, is_armed=True, disarmed_reason="", handled_until=until)
            return _set_due(state, instant, schedule), None
        case Disarm(reason=reason):
            return attrs.evolve(
                state,
                is_armed=False,
                disarmed_reason=reason,
                is_queued=False,
                occurrence=None,
                due=None,
                monotonic_due=None,
            ), None
        case Reschedule(is_config_changed=is_config_changed):
            if is_config_changed:
                state = attrs.evolve(state, occurrence=None, due=None)
            return _set_due(_corrected(state, instant, schedule), instant, schedule), None
        case Started():
            return _set_monotonic(attrs.evolve(state, active_at=instant.monotonic), instant, schedule), None
        case Ended(is_success=is_success):
            if is_success:
                state = attrs.evolve(state, last_success_at=instant.wall)
            state = _set_monotonic(attrs.evolve(state, inactive_at=instant.monotonic), instant, schedule)
            if state.is_queued and state.is_armed and not view.is_busy:
                state = attrs.evolve(state, is_queued=False)
                return _decide(state, instant, schedule, view, "queued while the last run was not over", 0.0)
            return state, None
        case Elapse():
            return _elapse(_corrected(state, instant, schedule), instant, schedule, view)


def _corrected(state: TimerState, instant: TimerInstant, schedule: Schedule) -> TimerState:
    """Continue from the present time if the clock was wrong before."""
    if state.handled_until - (instant.wall - schedule.offset) <= SET_BACK_S:
        return state
    return attrs.evolve(state, handled_until=instant.wall - schedule.offset, occurrence=None, due=None)


def _set_due(state: TimerState, instant: TimerInstant, schedule: Schedule) -> TimerState:
    if not state.is_armed:
        return state
    occurrence = schedule.next_occurrence(state.handled_until)
    if occurrence is None:
        state = attrs.evolve(state, occurrence=None, due=None)
    elif occurrence != state.occurrence or state.due is None:
        due = occurrence + schedule.offset
        if due > instant.wall:  # what catches up is late already
            due += schedule.timer.randomized_delay_sec * instant.jitter
        state = attrs.evolve(state, occurrence=occurrence, due=due)
    return _set_monotonic(state, instant, schedule)


def _set_monotonic(state: TimerState, instant: TimerInstant, schedule: Schedule) -> TimerState:
    timer = schedule.timer
    if not state.is_armed or not timer.monotonic_keys():
        return state if state.monotonic_due is None else attrs.evolve(state, monotonic_due=None)
    times = []
    for name, base in (("on_boot_sec", 0.0), ("on_startup_sec", state.startup_at)):
        if (seconds := getattr(timer, name)) is not None and name not in state.elapsed_keys:
            times.append((base + seconds, name))
    for name, last in (("on_unit_active_sec", state.active_at), ("on_unit_inactive_sec", state.inactive_at)):
        # A run that was skipped counts, too: otherwise the timer would be due again at once.
        if (seconds := getattr(timer, name)) is not None and last is not None:
            times.append((max(last, state.triggered_at or last) + seconds, name))
    if not times:
        return attrs.evolve(state, monotonic_due=None)
    time, name = min(times)
    return attrs.evolve(state, monotonic_due=time + timer.randomized_delay_sec * instant.jitter, monotonic_key=name)


def _elapse(
    state: TimerState, instant: TimerInstant, schedule: Schedule, view: WorkloadView
) -> tuple[TimerState, TimerDecision | None]:
    if not state.is_armed:
        return state, None
    if state.due is not None and instant.wall >= state.due:
        return _elapse_calendar(state, instant, schedule, view)
    if state.monotonic_due is not None and instant.monotonic >= state.monotonic_due:
        timer, elapsed = schedule.timer, list(state.elapsed_keys)
        for name, base in (("on_boot_sec", 0.0), ("on_startup_sec", state.startup_at)):
            seconds = getattr(timer, name)
            if seconds is not None and name not in elapsed and instant.monotonic >= base + seconds:
                elapsed.append(name)
        late, key = instant.monotonic - state.monotonic_due, state.monotonic_key
        state = attrs.evolve(state, elapsed_keys=tuple(elapsed), triggered_at=instant.monotonic)
        state = _set_monotonic(state, instant, schedule)
        return _decide(state, instant, schedule, view, f"due by {key}", late)
    return _set_due(state, instant, schedule), None


def _elapse_calendar(
    state: TimerState, instant: TimerInstant, schedule: Schedule, view: WorkloadView
) -> tuple[TimerState, TimerDecision | None]:
    """Handle all occurrences up to now: at most one of them runs."""
    assert state.due is not None
    late = instant.wall - state.due
    occurrence = state.occurrence
    if late > schedule.tolerance:
        # The latest ones may not be too late yet.
        occurrence = schedule.next_occurrence(
            max(state.handled_until, instant.wall - schedule.offset - schedule.tolerance)
        )
        late = instant.wall - schedule.offset - occurrence if occurrence is not None else -1.0
    until = max(state.handled_until, instant.wall - schedule.offset, state.occurrence or 0)
    state = attrs.evolve(state, handled_until=until, triggered_at=instant.monotonic, missed=state.missed + (late < 0))
    missed_due = state.due
    state = _set_due(attrs.evolve(state, occurrence=None, due=None), instant, schedule)
    if late < 0:
        seconds = round(instant.wall - missed_due) if missed_due is not None else 0
        return state, Skip(f"missed: it is {seconds} s too late", is_missed=True)
    return _decide(state, instant, schedule, view, "due", late)


def _decide(
    state: TimerState, instant: TimerInstant, schedule: Schedule, view: WorkloadView, reason: str, late_s: float
) -> tuple[TimerState, TimerDecision]:
    """Decide about a run that is due now."""
    timer = schedule.timer
    if timer.suspend:
        return _skipped(state, "suspend = true")
    if view.obstacle:
        return _skipped(state, view.obstacle)
    mode: RunMode = "start"
    if timer.action == "restart":
        if not view.is_busy:
            return _skipped(state, "it does not run, so there is nothing to restart")
        mode = "restart"
    elif timer.concurrency_policy == "allow":
        if not view.has_free_instance:
            return _skipped(state, "all its instances still run")
        mode = "instance"
    elif view.is_busy:
        if timer.concurrency_policy == "queue" and not state.is_queued:
            text = f"it still runs ({view.busy_reason}); it runs once more afterwards"
            return attrs.evolve(state, is_queued=True), Skip(text)
        if timer.concurrency_policy != "replace":
            return _skipped(state, f"it still runs ({view.busy_reason})")
        mode = "replace"
    state = attrs.evolve(state, last_run_at=instant.wall, runs=state.runs + 1)
    return state, Run(mode, reason, max(late_s, 0.0))


def _skipped(state: TimerState, reason: str) -> tuple[TimerState, Skip]:
    return attrs.evolve(state, skipped=state.skipped + 1), Skip(reason)
