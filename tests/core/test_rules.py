"""Policy rules: what fires, when, how often, and with what cause."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.model import Condition, Rule
from nsupervisor.core.rules import Engine, threshold

OOM = Condition("memory.events oom_kill", "memory.events", "oom_kill", "counter", None, None)
PIDS = Condition("pids.current >= 90%", "pids.current", None, "level", ">=", 90.0, percent=True)
BYTES = Condition("memory.current > 100M", "memory.current", None, "level", ">", 100 * 2**20)
LIMITS = {"pids.max": 20, "memory.max": None}


def engine(when, **keys):
    keys.setdefault("action", "log")
    return Engine.of([Rule(when=when, name="policy[0]", line=7, **keys)])


def feed(engine, file, samples, key=""):
    """Feed (time, value) pairs; the times at which the rule fired."""
    times = []
    for now, value in samples:
        engine, fired = engine.observe(file, {key: value}, LIMITS, now)
        times += [now] * len(fired)
    return times


def test_a_counter_fires_when_it_went_up_and_says_from_what_to_what():
    it, fired = engine(OOM).observe("memory.events", {"oom_kill": 3}, {}, 0.0)
    assert fired == ()  # the base line: what happened before we looked is not news
    it, fired = it.observe("memory.events", {"oom_kill": 3}, {}, 1.0)
    assert fired == ()
    it, fired = it.observe("memory.events", {"oom_kill": 5}, {}, 2.0)
    assert [attrs.asdict(one.cause) for one in fired] == [
        {
            "rule": "policy[0]",
            "line": 7,
            "when": "memory.events oom_kill",
            "file": "memory.events",
            "key": "oom_kill",
            "before": 3,
            "after": 5,
            "threshold": None,
            "held": None,
        }
    ]


def test_a_counter_that_starts_over_counts_from_nothing():
    assert feed(engine(OOM), "memory.events", [(0, 5), (1, 0), (2, 1)], "oom_kill") == [2]
    assert feed(engine(OOM), "memory.events", [(0, 5), (1, 2)], "oom_kill") == [1]


def test_a_cooldown_silences_a_counter_and_passes_over_what_it_counts():
    samples = [(0, 0), (1, 1), (5, 2), (11, 2), (12, 3)]
    assert feed(engine(OOM, cooldown=10.0), "memory.events", samples, "oom_kill") == [1, 12]


def test_a_level_in_per_cent_of_its_limit():
    assert feed(engine(PIDS), "pids.current", [(0, 17), (1, 18), (2, 20), (3, 17), (4, 19)]) == [1, 4]


def test_a_level_has_to_hold_for_its_time_without_a_gap():
    held = [(t, 19) for t in (0, 1, 2, 3, 4, 5)]
    assert feed(engine(PIDS, for_=5.0), "pids.current", held) == [5]
    gap = [(0, 19), (3, 19), (4, 1), (5, 19), (9, 19), (10, 19), (11, 19)]
    assert feed(engine(PIDS, for_=5.0), "pids.current", gap) == [10]


def test_a_level_that_goes_on_fires_once_or_once_a_cooldown():
    held = [(t, 19) for t in range(30)]
    assert feed(engine(PIDS), "pids.current", held) == [0]
    assert feed(engine(PIDS, cooldown=10.0), "pids.current", held) == [0, 10, 20]


def test_a_flapping_level_stays_within_its_cooldown():
    flapping = [(t, 19 if t % 2 else 1) for t in range(30)]
    assert feed(engine(PIDS, cooldown=10.0), "pids.current", flapping) == [1, 11, 21]


def test_a_level_must_hold_anew_in_a_new_generation():
    it = engine(PIDS, for_=5.0)
    it, _ = it.observe("pids.current", {"": 19}, LIMITS, 0.0)
    it = it.reborn()
    it, fired = it.observe("pids.current", {"": 19}, LIMITS, 5.0)
    assert fired == ()
    assert it.observe("pids.current", {"": 19}, LIMITS, 10.0)[1] != ()


def test_without_its_limit_a_percentage_never_fires():
    assert threshold(PIDS, {}) is None
    assert engine(PIDS).observe("pids.current", {"": 10**9}, {"pids.max": None}, 0.0)[1] == ()


def test_the_cause_of_a_level_names_the_threshold_in_the_files_unit():
    it = engine(BYTES, for_=2.0)
    it, _ = it.observe("memory.current", {"": 110e6}, LIMITS, 0.0)
    _, (fired,) = it.observe("memory.current", {"": 120e6}, LIMITS, 2.0)
    cause = fired.cause
    assert (cause.before, cause.after, cause.threshold, cause.held) == (110e6, 120e6, 100 * 2**20, 2.0)


@pytest.mark.parametrize("op", [">", ">=", "<", "<="])
def test_each_comparison(op):
    when = attrs.evolve(BYTES, op=op, threshold=5.0)
    for value in (4.0, 5.0, 6.0):
        fired = engine(when).observe("memory.current", {"": value}, {}, 0.0)[1]
        assert bool(fired) == {">": value > 5, ">=": value >= 5, "<": value < 5, "<=": value <= 5}[op]


GAPS = st.floats(0.0, 20.0)


@given(
    for_=st.sampled_from([0.0, 1.0, 5.0]),
    cooldown=st.sampled_from([0.0, 3.0, 30.0]),
    samples=st.lists(st.tuples(GAPS, st.integers(0, 20)), max_size=60),
)
def test_no_level_fires_too_early_or_within_its_cooldown(for_, cooldown, samples):
    now, since, last = 0.0, None, None
    it = engine(PIDS, for_=for_, cooldown=cooldown)
    for gap, value in samples:
        now += gap
        holds = value >= 18
        since = (now if since is None else since) if holds else None
        it, fired = it.observe("pids.current", {"": value}, LIMITS, now)
        if fired:
            assert holds
            assert now - since >= for_
            assert last is None or now - last >= cooldown
            last = now


@given(
    cooldown=st.sampled_from([0.0, 3.0]),
    samples=st.lists(st.tuples(GAPS, st.integers(0, 50)), max_size=60),
)
def test_no_counter_fires_without_having_moved(cooldown, samples):
    now, before, last = 0.0, None, None
    it = engine(OOM, cooldown=cooldown)
    for gap, value in samples:
        now += gap
        it, fired = it.observe("memory.events", {"oom_kill": value}, {}, now)
        went_up = before is not None and (value > before or 0 < value < before)
        assert bool(fired) == (went_up and (last is None or now - last >= cooldown))
        if fired:
            last = now
        before = value
