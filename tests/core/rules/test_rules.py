"""Policy rules: which rules fire, when, how often, and with what cause."""

from itertools import accumulate, pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.conditions import parse_condition
from nsupervisor.config.model import GroupRule, Rule
from nsupervisor.config.units import RelativeChange
from nsupervisor.core.rules.rules import SEVERITY_ORDER, Engine, threshold

OOM = parse_condition("memory.events oom_kill")
PIDS = parse_condition("pids.current >= 90%")
BYTES = parse_condition("memory.current > 100M")
LIMITS = {"pids.max": 20, "memory.max": None}


def engine(when, **keys):
    keys.setdefault("action", "log")
    return Engine.for_rules([Rule(when=when, name="policy[0]", line=7, **keys)])


def feed(engine, file, samples, key=""):
    """Observe (time, value) pairs; return the times at which the rule fired."""
    times = []
    for now, value in samples:
        engine, fired = engine.observe({file: {key: value}}, LIMITS, now)
        times += [now] * len(fired)
    return times


def test_a_counter_fires_when_it_went_up_and_says_from_what_to_what():
    rule_engine, fired = engine(OOM).observe({"memory.events": {"oom_kill": 3}}, {}, 0.0)
    assert fired == ()  # the baseline: earlier increases do not count
    rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": 3}}, {}, 1.0)
    assert fired == ()
    rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": 5}}, {}, 2.0)
    assert [firing.cause.to_record() for firing in fired] == [
        {
            "rule": "policy[0]",
            "line": 7,
            "when": "memory.events oom_kill",
            "file": "memory.events",
            "key": "oom_kill",
            "before": 3,
            "after": 5,
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
    rule_engine = engine(PIDS, for_=5.0)
    rule_engine, _ = rule_engine.observe({"pids.current": {"": 19}}, LIMITS, 0.0)
    rule_engine = rule_engine.for_new_generation()
    rule_engine, fired = rule_engine.observe({"pids.current": {"": 19}}, LIMITS, 5.0)
    assert fired == ()
    assert rule_engine.observe({"pids.current": {"": 19}}, LIMITS, 10.0)[1] != ()


def test_without_its_limit_a_percentage_never_fires():
    assert threshold(PIDS.atoms[0], {}) is None
    assert engine(PIDS).observe({"pids.current": {"": 10**9}}, {"pids.max": None}, 0.0)[1] == ()


def test_the_cause_of_a_level_names_the_threshold_in_the_files_unit():
    rule_engine = engine(BYTES, for_=2.0)
    rule_engine, _ = rule_engine.observe({"memory.current": {"": 110e6}}, LIMITS, 0.0)
    _, (fired,) = rule_engine.observe({"memory.current": {"": 120e6}}, LIMITS, 2.0)
    cause = fired.cause
    assert (cause.before, cause.after, cause.threshold, cause.held_s) == (110e6, 120e6, 100 * 2**20, 2.0)


@pytest.mark.parametrize("op", [">", ">=", "<", "<="])
def test_each_comparison(op):
    when = parse_condition(f"pids.current {op} 5")
    for value in (4.0, 5.0, 6.0):
        fired = engine(when).observe({"pids.current": {"": value}}, {}, 0.0)[1]
        assert bool(fired) == {">": value > 5, ">=": value >= 5, "<": value < 5, "<=": value <= 5}[op]


GAPS = st.floats(0.0, 20.0)


@given(
    for_=st.sampled_from([0.0, 1.0, 5.0]),
    cooldown=st.sampled_from([0.0, 3.0, 30.0]),
    samples=st.lists(st.tuples(GAPS, st.integers(0, 20)), max_size=60),
)
def test_no_level_fires_too_early_or_within_its_cooldown(for_, cooldown, samples):
    now, since, last = 0.0, None, None
    rule_engine = engine(PIDS, for_=for_, cooldown=cooldown)
    for gap, value in samples:
        now += gap
        holds = value >= 18
        since = (now if since is None else since) if holds else None
        rule_engine, fired = rule_engine.observe({"pids.current": {"": value}}, LIMITS, now)
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
    rule_engine = engine(OOM, cooldown=cooldown)
    for gap, value in samples:
        now += gap
        rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": value}}, {}, now)
        went_up = before is not None and (value > before or 0 < value < before)
        assert bool(fired) == (went_up and (last is None or now - last >= cooldown))
        if fired:
            last = now
        before = value


# ---------------------------------------------------------------------------------------------------------------------
# Conditions of several atoms


def when(text, **keys):
    return engine(parse_condition(text), **keys)


def run(rule_engine, *snapshots, step=1.0):
    """Return the numbers of the snapshots on which the rule fired; None stands for a missing value."""
    fired_at = []
    for number, (oom, pids, pressure) in enumerate(snapshots):
        snapshot = {}
        if oom is not None:
            snapshot["memory.events"] = {"oom_kill": oom}
        if pids is not None:
            snapshot["pids.current"] = {"": pids}
        if pressure is not None:
            snapshot["memory.pressure"] = {"some avg10": pressure}
        rule_engine, fired = rule_engine.observe(snapshot, LIMITS, number * step)
        fired_at += [number] * len(fired)
    return fired_at


def test_and_needs_both_at_one_moment():
    rule_engine = when("memory.events oom_kill and pids.current >= 90%")
    assert run(rule_engine, (0, 1, None), (1, 1, None), (1, 19, None), (2, 19, None), (2, 19, None)) == [3]


def test_or_takes_either():
    rule_engine = when("memory.events oom_kill or pids.current >= 90%")
    assert run(rule_engine, (0, 1, None), (1, 1, None), (1, 19, None), (1, 19, None), (2, 19, None)) == [1, 2, 4]


def test_not_and_parentheses():
    rule_engine = when("pids.current >= 90% and not (memory.pressure some avg10 > 10%)")
    assert run(rule_engine, (None, 19, 50.0), (None, 19, 5.0), (None, 19, 50.0), (None, 19, 5.0)) == [1, 3]


def test_what_nothing_is_known_of_makes_nothing_true():
    rule_engine = when("pids.current >= 90% and not memory.pressure some avg10 > 10%")
    assert run(rule_engine, (None, 19, None), (None, 19, None), (None, 19, 5.0)) == [2]


def test_increases_by_counts_from_where_it_last_was_true():
    rule_engine = when("memory.events oom_kill increases by 3")
    counts = [5, 6, 7, 8, 9, 10, 11, 20]
    assert run(rule_engine, *((count, None, None) for count in counts)) == [3, 6, 7]


def test_a_rate_is_measured_over_a_second_at_least():
    rule_engine = when("memory.events oom_kill rate > 5/s", for_=2.0)
    # a quarter of a second apart: 2 each time is 8 a second
    assert run(rule_engine, *((2 * i, None, None) for i in range(20)), step=0.25) == [12]
    assert run(rule_engine, *((i, None, None) for i in range(20)), step=0.25) == []


def test_escalation_asks_for_then_after_at_most_within():
    rule_engine = when("memory.events oom_kill", action="restart", at_most=2, within=100.0, then=("stop",))
    asked = []
    for now, count in ((0, 0), (1, 1), (2, 2), (3, 3), (150, 4), (151, 5), (152, 6)):
        rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": count}}, {}, now)
        asked += [firing.action for firing in fired]
    assert asked == ["restart", "restart", "stop", "restart", "restart", "stop"]


def test_of_two_rules_that_want_opposite_things_the_more_drastic_has_the_last_word():
    rules = [Rule(when=OOM, action=action, name=f"policy[{i}]") for i, action in enumerate(reversed(SEVERITY_ORDER))]
    rule_engine, _ = Engine.for_rules(rules).observe({"memory.events": {"oom_kill": 0}}, {}, 0.0)
    _, fired = rule_engine.observe({"memory.events": {"oom_kill": 1}}, {}, 1.0)
    assert tuple(firing.action for firing in fired) == SEVERITY_ORDER


def test_files_that_have_to_be_read_together():
    rule_engine = when("memory.events oom_kill and pids.current >= 90%")
    assert rule_engine.files_read_with("memory.events") == ("memory.events", "pids.current")
    assert rule_engine.files_read_with("cpu.stat") == ("cpu.stat",)


def test_escalation_takes_its_steps_one_after_the_other():
    rule_engine = when("memory.events oom_kill", action="log", at_most=2, within=100.0, then=("restart", "stop"))
    asked = []
    for now in range(8):
        rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": now}}, {}, float(now))
        asked += [firing.action for firing in fired]
    assert asked == ["log", "log", "restart", "restart", "stop", "stop", "stop"]


STEPS = ("log", "restart", "stop")


def escalate(at_most, within, times):
    """Return the steps that a rule with three steps takes when its counter increases at these times."""
    rule_engine = when("memory.events oom_kill", action=STEPS[0], at_most=at_most, within=within, then=STEPS[1:])
    rule_engine, _ = rule_engine.observe({"memory.events": {"oom_kill": 0}}, {}, 0.0)
    asked = []
    for count, now in enumerate(times, 1):
        rule_engine, (firing,) = rule_engine.observe({"memory.events": {"oom_kill": count}}, {}, now)
        asked.append(firing.action)
    return asked


def test_a_step_that_was_done_at_most_times_does_not_come_again_when_those_before_it_are_long_ago():
    """When the firings of the first step had left the window, the second step ran a third time in it."""
    assert escalate(2, 100.0, [0, 50, 60, 70, 101]) == ["log", "log", "restart", "restart", "stop"]


def test_escalation_begins_anew_after_it_was_quiet_for_so_long():
    assert escalate(1, 100.0, [0, 10, 109, 208, 308]) == ["log", "restart", "stop", "stop", "log"]
    assert escalate(2, 100.0, [0, 60, 120, 180]) == ["log"] * 4  # never twice within the preceding window


@given(at_most=st.integers(1, 3), gaps=st.lists(st.sampled_from([0.5, 10.0, 50.0, 99.0, 100.0]), max_size=40))
def test_no_step_but_the_last_is_done_more_than_at_most_times_within_any_such_time(at_most, gaps):
    times = list(accumulate(gaps))
    asked = [STEPS.index(action) for action in escalate(at_most, 100.0, times)]
    for i, (step, now) in enumerate(zip(asked, times, strict=True)):
        same = [t for s, t in zip(asked[: i + 1], times, strict=False) if s == step and t > now - 100.0]
        assert len(same) <= at_most or step == len(STEPS) - 1
        quiet = i == 0 or now - times[i - 1] >= 100.0
        assert (step == 0) if quiet else (step >= asked[i - 1])


@pytest.mark.parametrize(("at_most", "within"), [(None, 0.0), (5, 100.0)])
def test_a_set_at_its_bound_goes_on_to_the_next_step(at_most, within):
    rule_engine = when(
        "memory.events oom_kill",
        action="set",
        set_={"pids_max": RelativeChange(50.0)},
        limit={"pids_max": 40},
        at_most=at_most,
        within=within,
        then=("restart",),
    )
    done, limits = [], {"pids.max": 20.0}
    for now in range(5):
        rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": now}}, limits, float(now))
        for firing in fired:
            done.append((firing.action, dict(firing.limits)))
            limits = {"pids.max": firing.limits.get("pids_max", limits["pids.max"])}
    assert done == [("set", {"pids_max": 30}), ("set", {"pids_max": 40}), ("restart", {}), ("restart", {})]


def test_a_set_at_its_bound_without_a_next_step_has_nothing_to_set():
    rule_engine = when("memory.events oom_kill", action="set", set_={"pids_max": 20})
    rule_engine, _ = rule_engine.observe({"memory.events": {"oom_kill": 0}}, {"pids.max": 20.0}, 0.0)
    _, (fired,) = rule_engine.observe({"memory.events": {"oom_kill": 1}}, {"pids.max": 20.0}, 1.0)
    assert (fired.action, fired.limits) == ("set", {})


def test_an_exit_is_true_for_its_moment_and_each_one_is_news():
    rule_engine = when("exit code != 0 and not exit oom_killed", action="log")
    exits = [{"code": 3.0, "oom_killed": 0.0}, {"code": 3.0, "oom_killed": 0.0}, {"code": 0.0, "oom_killed": 0.0}]
    times = []
    for now, facts in enumerate([*exits, {"signal": 9.0, "oom_killed": 1.0}]):
        rule_engine, fired = rule_engine.observe({"exit": facts}, {}, float(now))
        times += [now] * len(fired)
    assert times == [0, 1]


def test_an_exit_beside_a_level_is_over_with_the_next_sample():
    rule_engine = when("exit code == 3 or pids.current > 5", action="log")
    rule_engine, fired = rule_engine.observe({"exit": {"code": 3.0}}, {}, 0.0)
    assert len(fired) == 1
    rule_engine, fired = rule_engine.observe({"pids.current": {"": 1.0}}, {}, 1.0)
    assert fired == ()
    rule_engine, fired = rule_engine.observe({"pids.current": {"": 9.0}}, {}, 2.0)
    assert [firing.cause.file for firing in fired] == ["pids.current"]


def test_a_stall_is_told_by_its_own_key_and_counts_from_the_total():
    rule_engine = when("memory.pressure some stall > 100ms/1s", action="log")
    key = "some 100000 1000000"
    rule_engine, _ = rule_engine.observe({"memory.pressure": {key: 500.0}}, {}, 0.0)
    rule_engine, fired = rule_engine.observe({"memory.pressure": {"some avg10": 90.0, "some total": 99_000.0}}, {}, 1.0)
    assert fired == (), "a sample of the file is no trigger"
    rule_engine, (fired,) = rule_engine.observe({"memory.pressure": {"some total": 150_000.0, key: 150_000.0}}, {}, 2.0)
    assert (fired.cause.before, fired.cause.after, fired.cause.threshold) == (500, 150_000, 100_000)
    rule_engine, _ = rule_engine.observe({"memory.pressure": {"some avg10": 90.0, "some total": 160_000.0}}, {}, 2.5)
    rule_engine, (fired,) = rule_engine.observe({"memory.pressure": {"some total": 300_000.0, key: 300_000.0}}, {}, 3.0)
    assert (fired.cause.before, fired.cause.after) == (150_000, 300_000)  # the cause said 500 again


TEXTS = st.sampled_from(
    [
        "memory.events oom_kill",
        "pids.current >= 90%",
        "memory.pressure some avg10 > 10%",
        "memory.events oom_kill increases by 2",
        "memory.events oom_kill rate > 1/s",
    ]
)
CONDITIONS = st.recursive(
    TEXTS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]}) {t[1]} {t[2]}"),
        inner.map(lambda text: f"not ({text})"),
    ),
    max_leaves=4,
)
SAMPLES = st.lists(
    st.tuples(
        st.floats(0.0, 5.0),
        st.none() | st.integers(0, 9),
        st.none() | st.integers(0, 20),
        st.none() | st.sampled_from([0.0, 50.0]),
    ),
    max_size=30,
)


@given(
    texts=st.lists(CONDITIONS, min_size=1, max_size=3),
    cooldown=st.sampled_from([0.0, 4.0]),
    samples=SAMPLES,
)
def test_any_trace_through_any_rules_keeps_cooldowns_and_is_the_same_again(texts, cooldown, samples):
    def replay():
        rule_engine = Engine.for_rules(
            [
                Rule(when=parse_condition(text), action="log", cooldown=cooldown, name=f"policy[{i}]")
                for i, text in enumerate(texts)
            ]
        )
        now, out = 0.0, []
        for gap, oom, pids, pressure in samples:
            now += gap
            snapshot = {}
            if oom is not None:
                snapshot["memory.events"] = {"oom_kill": oom}
            if pids is not None:
                snapshot["pids.current"] = {"": pids}
            if pressure is not None:
                snapshot["memory.pressure"] = {"some avg10": pressure}
            rule_engine, fired = rule_engine.observe(snapshot, LIMITS, now)
            out += [(now, firing.cause) for firing in fired]
        return out

    first = replay()
    assert first == replay()
    for name in {cause.rule for _, cause in first}:
        times = [now for now, cause in first if cause.rule == name]
        assert all(later - earlier >= cooldown for earlier, later in pairwise(times))


def test_other_rules_keep_the_memory_of_those_that_say_the_same():
    quiet = Rule(when=OOM, action="log", cooldown=60.0, name="policy[0]", line=7)
    rule_engine = Engine.for_rules([quiet])
    rule_engine, _ = rule_engine.observe({"memory.events": {"oom_kill": 0}}, {}, 0.0)
    rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": 1}}, {}, 1.0)
    assert len(fired) == 1
    eager = Rule(when=OOM, action="restart", name="policy[0]", line=3)
    rule_engine = rule_engine.with_rules([eager, attrs.evolve(quiet, name="policy[1]", line=9)])
    rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": 5}}, {}, 2.0)
    assert fired == ()  # the cooldown continues; for the new rule this is the baseline
    rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": 6}}, {}, 3.0)
    assert [(firing.action, firing.rule.line) for firing in fired] == [("restart", 3)]
    rule_engine, fired = rule_engine.observe({"memory.events": {"oom_kill": 7}}, {}, 62.0)
    assert {(firing.rule.name, firing.action) for firing in fired} == {("policy[0]", "restart"), ("policy[1]", "log")}


def test_the_same_rule_twice_has_two_memories():
    rule = Rule(when=OOM, action="log", cooldown=60.0)
    rule_engine = Engine.for_rules([rule])
    rule_engine, _ = rule_engine.observe({"memory.events": {"oom_kill": 0}}, {}, 0.0)
    rule_engine, _ = rule_engine.observe({"memory.events": {"oom_kill": 1}}, {}, 1.0)
    both = rule_engine.with_rules([rule, rule])
    assert both.states[0] == rule_engine.states[0]
    assert both.states[1] == Engine.for_rules([rule]).states[0]


@pytest.mark.fault("F10")
def test_a_rule_that_found_no_member_fires_again_when_one_starts():
    rule = GroupRule(when=BYTES, action="kill", victim="newest", cooldown=3600.0)
    high = {"memory.current": {"": 200 << 20}}
    group, fired = Engine.for_rules([rule]).observe(high, LIMITS, 0.0)
    assert len(fired) == 1
    assert group.with_started_member() is group, "it has acted on a member"
    group = group.without_member(rule)
    assert group.observe(high, LIMITS, 1.0)[1] == (), "once is enough while there is none"
    group, fired = group.with_started_member().observe(high, LIMITS, 2.0)
    assert len(fired) == 1
    assert group.with_started_member().observe(high, LIMITS, 3.0)[1] == (), "the cooldown of an action"
    acted = group.without_member(rule).with_cooldown(4.0)  # by another rule, on a member that has started since
    assert acted.with_started_member() is acted
