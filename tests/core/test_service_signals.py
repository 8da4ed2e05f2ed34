"""What the service does after a signal."""

import signal

import pytest

from nsupervisor.core.service_signals import SignalResponse, respond_to_signal

HUP, TERM, INT = signal.SIGHUP, signal.SIGTERM, signal.SIGINT


@pytest.mark.fault("D17")
@pytest.mark.parametrize("outlives", [False, True])
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("stopping", [False, True])
@pytest.mark.parametrize("signum", [HUP, TERM, INT])
def test_each_signal(signum: int, stopping: bool, gone: bool, outlives: bool) -> None:
    response = respond_to_signal(signum, is_stopping=stopping, is_terminal_gone=gone, outlives_terminal=outlives)
    if signum == HUP and stopping:  # of one closed terminal there may be several: they must not kill
        assert response is SignalResponse.NOTHING
    elif signum == HUP and not gone:
        assert response is SignalResponse.RELOAD
    elif signum == HUP:
        assert response is (SignalResponse.OUTLIVE if outlives else SignalResponse.STOP)
    else:
        assert response is (SignalResponse.KILL if stopping else SignalResponse.STOP)
