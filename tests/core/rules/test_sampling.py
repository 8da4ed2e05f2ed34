"""Delays between two samples of a level."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import Rule
from nsupervisor.core.rules.rules import RATE_SPAN_S, Engine
from nsupervisor.core.rules.sampling import (
    FASTEST_S,
    MOVING_COUNTER_S,
    NEAR_S,
    PRESSURE_S,
    SLOWEST_S,
    STILL_COUNTER_S,
    next_sample_delay,
    quiescent_until,
)

LIMITS = {"pids.max": 1000.0, "memory.max": None}
PIDS = parse_condition("pids.current >= 90%")


def engine(when, **keys):
    return Engine.for_rules([Rule(when=parse_condition(when), action="log", **keys)])


def after(rule_engine, file, value, before=None, elapsed=1.0, now=0.0, key=""):
    earlier = {} if before is None else {file: {key: before}}
    return next_sample_delay(rule_engine, earlier, {file: {key: value}}, elapsed, LIMITS, now)


def test_far_is_slow_and_near_is_fast_on_both_sides():
    rule_engine = engine("pids.current >= 90%")
    assert after(rule_engine, "pids.current", 10, 10) == SLOWEST_S
    assert after(rule_engine, "pids.current", 890, 890) == NEAR_S
    assert after(rule_engine, "pids.current", 910, 910) == NEAR_S
    assert NEAR_S < after(rule_engine, "pids.current", 600, 600) < SLOWEST_S


def test_the_process_before_the_threshold_is_near():
    assert after(engine("pids.current >= 2"), "pids.current", 1, 1) == NEAR_S


def test_what_comes_nearer_quickly_is_met_half_way():
    rule_engine = engine("pids.current >= 90%")
    assert after(rule_engine, "pids.current", 300, 200) == SLOWEST_S  # six seconds until it arrives
    assert after(rule_engine, "pids.current", 300, 0) == pytest.approx(1.0)
    assert after(rule_engine, "pids.current", 300, 0, elapsed=0.01) == FASTEST_S
    assert after(rule_engine, "pids.current", 0, 300) == SLOWEST_S  # it moves away


def test_averages_are_looked_at_no_more_often_than_they_change():
    assert after(engine("memory.pressure some avg10 > 25%"), "memory.pressure", 25.0, key="some avg10") == PRESSURE_S


def test_a_rate_takes_its_span():
    rule_engine = engine("cpu.stat nr_throttled rate > 50/s")
    for now in (0.0, 1.0):
        rule_engine, _ = rule_engine.observe({"cpu.stat": {"nr_throttled": 50 * now}}, LIMITS, now)
    assert after(rule_engine, "cpu.stat", 50, key="nr_throttled", now=1.0) == RATE_SPAN_S


def test_counters_that_nobody_tells_of_are_read_now_and_then():
    rule_engine = engine("cpu.stat nr_throttled increases by 5")
    assert after(rule_engine, "cpu.stat", 5, 5, key="nr_throttled") == STILL_COUNTER_S
    assert after(rule_engine, "cpu.stat", 6, 5, key="nr_throttled") == MOVING_COUNTER_S
    assert after(engine("memory.events oom_kill"), "memory.events", 6, 5, key="oom_kill") == inf


def test_the_end_of_for_and_of_a_cooldown_are_not_slept_through():
    rule_engine = engine("pids.current >= 1", for_=5.0, cooldown=3.0)
    rule_engine, _ = rule_engine.observe({"pids.current": {"": 900}}, LIMITS, 0.0)
    assert after(rule_engine, "pids.current", 900, 900, now=4.5) == 0.5
    rule_engine, fired = rule_engine.observe({"pids.current": {"": 900}}, LIMITS, 5.0)
    assert fired
    assert after(rule_engine, "pids.current", 900, 900, now=5.0) == SLOWEST_S
    assert after(rule_engine, "pids.current", 900, 900, now=7.0) == 1.0


def test_the_same_again_is_news_only_to_what_waits_for_a_time():
    def still(when, key, *seen, now=1.0, **keys):
        rule_engine = engine(when, **keys)
        for at, value in enumerate(seen):
            snapshot = {rule_engine.rules[0].when.atoms[0].file: {key: value}}
            rule_engine, _ = rule_engine.observe(snapshot, LIMITS, float(at))
        return quiescent_until(rule_engine, snapshot, LIMITS, now)

    assert still("pids.current >= 90%", "", 5.0, 5.0) == inf
    assert still("pids.current >= 90%", "", 950.0, 950.0) == inf, "it has fired, and would not again"
    assert still("pids.current >= 90%", "", 950.0, 950.0, for_=5.0) == 1.0
    assert still("pids.current >= 90%", "", 950.0, 950.0, cooldown=5.0) == 1.0
    assert still("pids.events max", "max", 1.0, 2.0) == 1.0, "its moment has to pass"
    assert still("pids.events max", "max", 1.0, 1.0) == inf
    assert still("cpu.stat nr_throttled rate > 5/s", "nr_throttled", 0.0, 1.0) == 1.0
    assert still("cpu.stat nr_throttled rate > 5/s", "nr_throttled", 1.0, 1.0) == inf
    assert still("uptime > 10s", "", 4.0, 5.0) == 6.0


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60)), min_size=1, max_size=20))
def test_to_leave_out_what_is_the_same_and_make_up_for_it_changes_nothing(steps):
    """Compare a policy that observes every sample with one that skips samples of idle workloads."""
    rules = [
        ("pids.current > 30", {"for_": 3.0}),
        ("pids.current > 20 and pids.current < 50", {}),
        ("pids.current >= 1", {"cooldown": 5.0}),
        ("cpu.stat usage_usec rate > 3/s", {"for_": 2.0}),
    ]
    rule_engine = Engine.for_rules([Rule(when=parse_condition(when), action="log", **keys) for when, keys in rules])
    complete, sampled = rule_engine, rule_engine
    fired, latest, looked, taken, still = ([], []), {}, 0.0, 0.0, 0.0
    now = 0.0
    for seconds, value in steps:
        snapshot = {
            "pids.current": {"": float(value)},
            "cpu.stat": {"usage_usec": float(sum(v for _, v in steps[:seconds]))},
        }
        for _ in range(seconds):
            now += 1.0
            complete, firings = complete.observe(snapshot, LIMITS, now)
            fired[0].extend((now, firing.cause) for firing in firings)
            same = snapshot == latest
            if same and now < still:
                looked = now
                continue
            if looked > taken:
                sampled, firings = sampled.observe(latest, LIMITS, looked)
                assert firings == ()
            sampled, firings = sampled.observe(snapshot, LIMITS, now)
            fired[1].extend((now, firing.cause) for firing in firings)
            still = quiescent_until(sampled, snapshot, LIMITS, now) if same else now
            latest, looked, taken = snapshot, now, now
    assert fired[0] == fired[1]


def test_uptime_is_known_in_advance():
    rule_engine = engine("uptime > 7d")
    assert after(rule_engine, "uptime", 86400.0) == pytest.approx(6 * 86400, abs=0.01)
    assert after(rule_engine, "uptime", 7 * 86400 + 1.0) == inf
    rule_engine, _ = rule_engine.observe({"uptime": {"": 7 * 86400 + 0.001}}, LIMITS, 0.0)
    assert rule_engine.states[0].holding_since is not None


@given(value=st.floats(0, 2000), before=st.none() | st.floats(0, 2000), elapsed=st.floats(0.0, 10))
def test_it_is_always_a_time_and_short_near_the_threshold(value, before, elapsed):
    delay = after(engine("pids.current >= 90%"), "pids.current", value, before, elapsed)
    assert FASTEST_S <= delay <= SLOWEST_S
    if abs(value - 900) <= 90:
        assert delay <= NEAR_S
