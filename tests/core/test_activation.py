"""When traffic on a socket starts its workload."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.sockets import SocketConfig
from nsupervisor.core.activation import ActivationState, on_traffic
from nsupervisor.core.edges import may_be_started
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.core.states import State

SOCKET = SocketConfig(listen_stream="127.0.0.1:80", trigger_limit_interval_sec=2.0, trigger_limit_burst=3)


def test_a_start_above_the_limit_ends_it() -> None:
    state = ActivationState()
    for now in (0.0, 0.5, 1.0):
        state = on_traffic(state, now, SOCKET)
        assert not state.is_limited
    assert on_traffic(state, 1.9, SOCKET).is_limited
    assert not on_traffic(state, 2.0, SOCKET).is_limited


@given(st.lists(st.floats(0.0, 10.0), max_size=60))
def test_no_interval_has_more_starts_than_the_limit(gaps: list[float]) -> None:
    state, now, starts = ActivationState(), 0.0, []
    for gap in gaps:
        now += gap
        state = on_traffic(state, now, SOCKET)
        if state.is_limited:
            assert len([at for at in starts if at > now - 2.0]) == 3
            break
        starts.append(now)
        assert len([at for at in starts if at > now - 2.0]) <= 3
        assert len(state.starts) <= 3


def test_an_interval_of_zero_is_no_limit() -> None:
    socket, state = attrs.evolve(SOCKET, trigger_limit_interval_sec=0.0), ActivationState()
    for _ in range(100):
        state = on_traffic(state, 0.0, socket)
    assert state == ActivationState()


@pytest.mark.parametrize("state", State)
def test_only_what_is_down_by_itself_is_started(state: State) -> None:
    lifecycle = attrs.evolve(Lifecycle(), state=state)
    assert may_be_started(lifecycle) == (state in (State.STOPPED, State.EXITED))


@pytest.mark.parametrize(
    ("reason", "expected"), [("stopped by operator", False), ("stopped with db", True), ("", True)]
)
def test_what_a_request_has_stopped_stays_stopped(reason: str, expected: bool) -> None:
    assert may_be_started(attrs.evolve(Lifecycle(), state=State.STOPPED, reason=reason)) == expected
