"""When the state or the change of a path acts on its workload."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.paths import PathConfig
from nsupervisor.core.path_triggers import (
    PathLook,
    PathTriggerState,
    counts,
    on_action,
    on_look,
    on_request,
)

CHANGED = PathConfig(path_changed="/a/b")
EXISTS = PathConfig(path_exists="/a/b")
SPOOL = PathConfig(directory_not_empty="/spool")


def looked(path: PathConfig, *looks: PathLook, state: PathTriggerState | None = None) -> PathTriggerState:
    state = state or PathTriggerState()
    for look in looks:
        state = on_look(state, path, look, False)
    return state


def test_the_first_look_at_what_may_change_is_the_base_line() -> None:
    assert not looked(CHANGED, PathLook(False, "1")).is_pending
    assert looked(CHANGED, PathLook(False, "1"), PathLook(False, "2")).is_pending


def test_an_event_counts_although_the_fingerprint_is_the_same() -> None:
    state = looked(CHANGED, PathLook(False, "1"))
    assert on_look(state, CHANGED, PathLook(False, "1"), True).is_pending


def test_a_change_stays_pending_until_it_acts() -> None:
    state = looked(CHANGED, PathLook(False, "1"), PathLook(False, "2"), PathLook(False, "2"))
    assert state.is_pending
    assert not on_action(state, CHANGED, 0.0).is_pending


def test_a_condition_is_pending_while_it_is_true() -> None:
    state = looked(EXISTS, PathLook(True, "1"))
    assert state.is_pending
    assert on_action(state, EXISTS, 0.0).is_pending
    assert not looked(EXISTS, PathLook(False, "missing"), state=state).is_pending


@given(st.lists(st.floats(0, 60), min_size=1, max_size=80), st.integers(1, 20), st.floats(0.5, 40))
def test_no_interval_has_more_actions_than_the_limit(gaps: list[float], burst: int, interval: float) -> None:
    path = attrs.evolve(CHANGED, trigger_limit_burst=burst, trigger_limit_interval_sec=interval)
    state, now, acted = PathTriggerState(), 0.0, []
    for gap in gaps:
        now += gap
        state = on_action(state, path, now)
        if state.is_suspended:
            break
        acted.append(now)
    for at in acted:
        assert sum(at - interval < other <= at for other in acted) <= burst
    if state.is_suspended:
        assert sum(now - interval < other <= now for other in acted) == burst
        assert on_request(state) == attrs.evolve(state, acted_at=(), acted_on=None, is_suspended=False)


@given(st.integers(1, 60))
def test_a_job_that_takes_one_file_at_a_time_is_no_loop(files: int) -> None:
    state = PathTriggerState()
    for left in range(files, 0, -1):
        state = on_action(looked(SPOOL, PathLook(True, str(left)), state=state), SPOOL, 0.0)
        assert not state.is_suspended


def test_a_job_that_takes_nothing_is_a_loop() -> None:
    state = looked(SPOOL, PathLook(True, "1"))
    actions = 0
    while not state.is_suspended:
        state, actions = on_action(state, SPOOL, actions * 0.1), actions + 1
    assert actions == SPOOL.trigger_limit_burst + 1


def test_an_interval_of_0_is_no_limit() -> None:
    path = attrs.evolve(CHANGED, trigger_limit_interval_sec=0.0, trigger_limit_burst=1)
    state = PathTriggerState()
    for _ in range(100):
        state = on_action(state, path, 1.0)
    assert not state.is_suspended


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        (SPOOL, "a", True),
        (attrs.evolve(SPOOL, include=("*.csv", "x")), "a.csv", True),
        (attrs.evolve(SPOOL, include=("*.csv", "x")), "a.txt", False),
        (attrs.evolve(SPOOL, exclude=("*.part",)), "a.part", False),
        (attrs.evolve(SPOOL, include=("a*",), exclude=("*.part",)), "a.part", False),
        (SPOOL, "web.log", False),
        (SPOOL, "web.log.1", False),
        (SPOOL, "web.log.12.gz", False),
        (SPOOL, "web.logs", True),
        (PathConfig(path_exists_glob="/a/*.job"), "x.job", True),
        (PathConfig(path_exists_glob="/a/*.job"), ".x.job", False),
        (PathConfig(path_exists_glob="/a/.*.job"), ".x.job", True),
    ],
)
def test_names_that_count(path: PathConfig, name: str, expected: bool) -> None:
    assert counts(path, name, ("web.log",)) == expected
