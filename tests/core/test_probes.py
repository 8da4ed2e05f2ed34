"""The thresholds and the times of probes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.probes import LivenessConfig, ProbeConfig, ReadinessConfig
from nsupervisor.core.probes import ProbeResult, ProbeState, begin, handle_result

OK, BAD = ProbeResult(True, "HTTP 200"), ProbeResult(False, "HTTP 503")


def verdicts(kind, results, config=None, **state):
    """Return the verdict after each of these results ("+" and "-"); each probe takes no time."""
    config = config or ProbeConfig(start_interval_sec=10.0)
    now = begin(kind, config, 0.0, **state)
    found = ""
    for result in results:
        now = handle_result(now, OK if result == "+" else BAD, config, now.due_at)
        found += {True: "+", False: "-", None: "?"}[now.verdict]
    return found


@pytest.mark.parametrize(
    ("kind", "results", "success", "failure", "expected"),
    [
        # kubelet: readiness begins as failed, and passes at the first success
        ("readiness", "--+", 1, 3, "--+"),
        ("readiness", "+--+---+", 1, 3, "++++++-+"),
        ("readiness", "+---", 1, 1, "+---"),
        ("readiness", "-+-++", 2, 1, "----+"),
        ("readiness", "+-+-+++", 3, 1, "------+"),
        # liveness begins as passed
        ("liveness", "--+--", 1, 3, "+++++"),
        ("liveness", "---", 1, 3, "++-"),
        ("liveness", "-", 1, 1, "-"),
        # startup is open until a threshold is reached
        ("startup", "--+", 1, 3, "??+"),
        ("startup", "---", 1, 3, "??-"),
        ("startup", "-+", 1, 1, "-+"),
    ],
)
def test_only_results_in_a_row_count(kind, results, success, failure, expected):
    config = ProbeConfig(success_threshold=success, failure_threshold=failure, start_interval_sec=10.0)
    assert verdicts(kind, results, config) == expected


def test_an_unknown_result_does_not_count():
    config = ProbeConfig(failure_threshold=2, start_interval_sec=10.0)
    state = begin("liveness", config, 0.0)
    for result, verdict in ((BAD, True), (ProbeResult(None, "no keeper"), True), (BAD, False)):
        before = state.due_at
        state = handle_result(state, result, config, state.due_at)
        assert (state.verdict, state.due_at - before) == (verdict, 10.0)


def test_until_the_first_success_it_runs_more_often_and_only_one_failure_a_period_counts():
    config = ProbeConfig(period_sec=10.0, start_interval_sec=0.5, failure_threshold=2)
    state = begin("startup", config, 100.0)
    times = []
    while state.verdict is None:
        times.append(state.due_at)
        state = handle_result(state, BAD, config, state.due_at)
    assert times == [100.0 + n * 0.5 for n in range(21)], "the failures at 100 and 110 counted"
    state = handle_result(begin("startup", config, 100.0), OK, config, 100.2)
    assert (state.verdict, state.due_at) == (True, 110.0)


def test_a_start_interval_is_never_longer_than_the_period():
    config = ProbeConfig(period_sec=2.0, start_interval_sec=5.0)
    assert handle_result(begin("readiness", config, 0.0), BAD, config, 0.0).due_at == 2.0


def test_the_first_probe_waits_for_the_initial_delay_and_after_a_takeover_for_a_part_of_the_period():
    config = LivenessConfig(initial_delay_sec=7.0, period_sec=10.0)
    assert begin("liveness", config, 100.0).due_at == 107.0
    state = begin("liveness", config, 100.0, is_passed=True, share=0.25)
    assert (state.due_at, state.verdict) == (102.5, True)
    assert begin("readiness", ReadinessConfig(), 100.0, is_passed=True).verdict is True


def test_probes_that_were_due_while_one_ran_are_left_out():
    config = ProbeConfig(period_sec=1.0, start_interval_sec=1.0)
    state = handle_result(begin("readiness", config, 0.0), OK, config, 3.4)
    assert state.due_at == 4.0
    assert handle_result(state, BAD, config, 4.1).due_at == 5.0


@given(
    st.builds(
        ProbeConfig,
        period_sec=st.floats(0.1, 100.0),
        start_interval_sec=st.floats(0.1, 100.0),
        success_threshold=st.integers(1, 4),
        failure_threshold=st.integers(1, 4),
    ),
    st.sampled_from(["startup", "readiness", "liveness"]),
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 30.0)), min_size=1, max_size=60),
)
def test_a_verdict_changes_only_after_enough_results_in_a_row(config, kind, results):
    state = begin(kind, config, 0.0)
    row: list[bool] = []
    for is_success, took in results:
        before: ProbeState = state
        now = state.due_at + took
        state = handle_result(state, OK if is_success else BAD, config, now)
        row.append(is_success)
        assert state.due_at > before.due_at
        assert state.due_at > now - 1e-6, "the next one is not due in the past"
        if state.verdict is not before.verdict:
            threshold = config.success_threshold if is_success else config.failure_threshold
            assert state.verdict is is_success
            assert row[-threshold:] == [is_success] * threshold
