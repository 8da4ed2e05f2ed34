"""Decisions of one timer: what is due runs once, and what is missed is computed."""

from collections.abc import Sequence
from datetime import UTC

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.timers import TimerConfig
from nsupervisor.core.timers.schedule import LATE_AFTER_S, Schedule, make_schedule, stable_fraction
from nsupervisor.core.timers.state import TimerState
from nsupervisor.core.timers.timer import (
    SET_BACK_S,
    Arm,
    Disarm,
    Elapse,
    Ended,
    Reschedule,
    Run,
    Skip,
    Started,
    TimerDecision,
    TimerInput,
    TimerInstant,
    WorkloadView,
    handle,
)

NOON = 1_767_268_800.0
"""1 January 2026, 12:00 UTC."""
HOUR, DAY = 3600.0, 86_400.0
IDLE = WorkloadView()
BUSY = WorkloadView(True, "it is running", False)


def schedule(**keys: object) -> Schedule:
    lists = {name: (value,) for name, value in keys.items() if name in ("on_calendar", "cron")}
    return make_schedule(TimerConfig(**{**keys, **lists}), "backup", "host", lambda _name: UTC)  # type: ignore[arg-type]


class Course:
    """A timer and its decisions, one after the other."""

    def __init__(self, at: float = NOON, since: float | None = None, **keys: object) -> None:
        self.schedule, self.state, self.wall, self.monotonic = schedule(**keys), TimerState(), at, 1000.0
        self.apply(Arm(since))

    def apply(self, input_: TimerInput, view: WorkloadView = IDLE, jitter: float = 0.0) -> TimerDecision | None:
        instant = TimerInstant(self.wall, self.monotonic, jitter)
        self.state, action = handle(self.state, input_, instant, self.schedule, view)
        return action

    def after(self, seconds: float, view: WorkloadView = IDLE) -> TimerDecision | None:
        """Let time pass, on both clocks, and elapse."""
        self.wall, self.monotonic = self.wall + seconds, self.monotonic + seconds
        return self.apply(Elapse(), view)

    def set_clock(self, by: float, view: WorkloadView = IDLE) -> TimerDecision | None:
        self.wall += by
        self.apply(Reschedule(), view)
        return self.apply(Elapse(), view)


def test_an_occurrence_runs_when_it_is_due_and_only_once() -> None:
    timer = Course(on_calendar="daily")
    assert timer.state.due == NOON + 12 * HOUR
    assert timer.after(12 * HOUR - 1) is None
    assert timer.after(1) == Run("start", "due")
    assert timer.after(0) is None
    assert timer.state.due == NOON + 36 * HOUR


@pytest.mark.parametrize(
    ("keys", "late", "runs"),
    [
        ({}, LATE_AFTER_S, True),
        ({}, LATE_AFTER_S + 1, False),
        ({"starting_deadline_sec": 300.0}, 300, True),
        ({"starting_deadline_sec": 300.0}, 301, False),
        ({"persistent": True}, 400 * DAY, True),
        ({"persistent": True, "starting_deadline_sec": 60.0}, 3600, False),
    ],
)
def test_a_run_that_is_too_late_is_missed(keys: dict[str, object], late: float, runs: bool) -> None:
    timer = Course(cron="0 0 1 1 *", **keys)
    action = timer.after(364.5 * DAY + late)
    assert isinstance(action, Run if runs else Skip)
    assert timer.state.missed == (not runs)
    assert timer.after(0) is None


def test_of_many_missed_occurrences_the_latest_runs_once() -> None:
    timer = Course(on_calendar="*:*:00", persistent=True)
    assert isinstance(timer.after(365 * DAY + 20), Run)
    assert timer.after(0) is None
    within = Course(on_calendar="*:*:00")
    action = within.after(365 * DAY + 20)
    assert isinstance(action, Run)
    assert action.late_s == 20


def test_what_was_missed_while_the_service_was_down_is_caught_up_at_once() -> None:
    timer = Course(since=NOON - 3 * DAY, on_calendar="daily", persistent=True, randomized_delay_sec=HOUR)
    assert isinstance(timer.after(0), Run)
    assert timer.state.occurrence == NOON + 12 * HOUR


def test_a_random_delay_moves_one_run_and_an_offset_all() -> None:
    timer = Course(on_calendar="hourly", randomized_delay_sec=600.0)
    timer.apply(Reschedule(is_config_changed=True), jitter=0.5)
    assert timer.state.due == NOON + HOUR + 300
    assert timer.set_clock(10) is None
    assert timer.state.due == NOON + HOUR + 300  # the same run keeps its delay
    offset = Course(on_calendar="hourly", randomized_offset_sec=7200.0)
    assert offset.schedule.offset == 7200 * stable_fraction("backup", "host")
    first = offset.state.due
    assert first is not None
    assert isinstance(offset.after(first - NOON), Run)
    assert offset.state.due == first + HOUR  # no occurrence is lost, although the offset is longer than an hour


def test_a_clock_that_is_set_back_runs_nothing_twice() -> None:
    timer = Course(on_calendar="hourly")
    assert isinstance(timer.after(HOUR), Run)
    assert timer.set_clock(-1800) is None
    assert timer.after(1800) is None
    assert isinstance(timer.after(HOUR), Run)


def test_a_clock_that_was_wrong_by_more_than_a_day_counts_from_the_new_time() -> None:
    timer = Course(on_calendar="hourly")
    assert isinstance(timer.after(HOUR), Run)
    timer.set_clock(-SET_BACK_S - 10 * DAY)
    assert timer.state.due is not None
    assert 0 < timer.state.due - timer.wall <= HOUR


def test_a_clock_that_is_set_forward_misses() -> None:
    timer = Course(on_calendar="daily")
    assert isinstance(timer.set_clock(5 * DAY), Skip)
    assert timer.state.missed == 1


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("forbid", None), ("replace", "replace"), ("queue", None), ("allow", None)],
)
def test_the_policy_decides_while_it_still_runs(policy: str, expected: str | None) -> None:
    timer = Course(on_calendar="hourly", concurrency_policy=policy)
    action = timer.after(HOUR, BUSY)
    assert (action.mode if isinstance(action, Run) else None) == expected
    after_end = timer.apply(Ended())
    assert isinstance(after_end, Run) == (policy == "queue")
    assert timer.apply(Ended()) is None


def test_allow_takes_a_free_instance() -> None:
    timer = Course(on_calendar="hourly", concurrency_policy="allow")
    assert timer.after(HOUR, WorkloadView(True, "busy", True)) == Run("instance", "due")


def test_only_one_run_waits() -> None:
    timer = Course(on_calendar="hourly", concurrency_policy="queue")
    for _ in range(3):
        assert isinstance(timer.after(HOUR, BUSY), Skip)
    assert isinstance(timer.apply(Ended()), Run)
    assert timer.apply(Ended()) is None


def test_what_somebody_has_stopped_stays_stopped() -> None:
    timer = Course(on_calendar="hourly", on_boot_sec=0.0)
    timer.apply(Disarm("stopped by operator"))
    assert timer.after(10 * HOUR) is None
    timer.apply(Arm())
    assert timer.after(0) == Run("start", "due by on_boot_sec", late_s=37_000.0)
    assert isinstance(timer.after(HOUR), Run)


def test_suspended_timers_and_obstacles_skip() -> None:
    assert Course(on_calendar="hourly", suspend=True).after(HOUR) == Skip("suspend = true")
    assert Course(on_calendar="hourly").after(HOUR, WorkloadView(obstacle="no db")) == Skip("no db")


def test_a_restart_needs_something_that_runs() -> None:
    timer = Course(on_calendar="hourly", action="restart")
    assert isinstance(timer.after(HOUR), Skip)
    assert timer.after(HOUR, BUSY) == Run("restart", "due")


def test_monotonic_times_follow_boot_start_and_end() -> None:
    timer = Course(on_startup_sec=1060.0, on_unit_active_sec=100.0, on_unit_inactive_sec=500.0)
    assert timer.state.monotonic_due == 1060
    assert timer.after(60) == Run("start", "due by on_startup_sec")
    assert timer.state.monotonic_due is None
    timer.apply(Started())
    assert timer.state.monotonic_due == 1160
    assert isinstance(timer.after(100, BUSY), Skip)
    assert timer.state.monotonic_due == 1260  # not at once again
    timer.apply(Ended())
    assert isinstance(timer.after(100), Run)


inputs = st.one_of(
    st.sampled_from([Elapse(), Elapse(), Elapse(), Started(), Ended(True), Arm(), Disarm("x"), Reschedule()]),
)
steps = st.lists(
    st.tuples(inputs, st.floats(0, 2 * DAY), st.sampled_from([0.0, 0.0, 0.0, -HOUR, HOUR, -40.0]), st.booleans()),
    max_size=40,
)


@given(
    steps,
    st.sampled_from(["hourly", "daily", "*:0/7", "02:30"]),
    st.fixed_dictionaries(
        {
            "persistent": st.booleans(),
            "concurrency_policy": st.sampled_from(["forbid", "queue", "replace"]),
            "randomized_delay_sec": st.sampled_from([0.0, 900.0]),
            "randomized_offset_sec": st.sampled_from([0.0, 5000.0]),
            "on_unit_active_sec": st.sampled_from([None, 60.0]),
        }
    ),
)
def test_histories_keep_the_invariants(history: Sequence[tuple], text: str, keys: dict[str, object]) -> None:
    timer = Course(on_calendar=text, **keys)
    handled: list[int] = []
    for input_, seconds, clock, is_busy in history:
        timer.wall, timer.monotonic = timer.wall + seconds + clock, timer.monotonic + seconds
        before = timer.state
        view = BUSY if is_busy else IDLE
        action = timer.apply(input_, view, 0.5)
        state = timer.state
        if not state.is_armed:
            assert (state.due, state.monotonic_due, state.is_queued) == (None, None, False)
            assert not isinstance(action, Run)
        if before.is_armed and state.is_armed:
            assert state.handled_until >= before.handled_until or before.handled_until - timer.wall > SET_BACK_S / 2
        if isinstance(input_, Elapse) and before.due is not None and timer.wall >= before.due and before.occurrence:
            handled.append(before.occurrence)
            assert state.due is None or state.due > timer.wall
        if isinstance(input_, Elapse) and state.monotonic_due is not None and before.monotonic_due is not None:
            # A second one may still be due; afterwards nothing is, so that the task ends its loop.
            timer.apply(Elapse(), view, 0.5)
            timer.apply(Elapse(), view, 0.5)
            assert timer.state.monotonic_due is None or timer.state.monotonic_due > timer.monotonic
    assert len(handled) == len(set(handled))


def test_the_offset_depends_on_host_and_name() -> None:
    fractions = {stable_fraction(name, host) for name in ("a", "b") for host in ("", "x")}
    assert len(fractions) == 4
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert attrs.evolve(schedule(on_calendar="daily"), offset=1.0).offset == 1.0
