"""Decide how the service responds to a signal."""

import signal
from enum import Enum


class SignalResponse(Enum):
    """The response of the service to a signal."""

    STOP = "stop"
    """Stop everything in order."""
    KILL = "kill"
    """Kill what is left of an orderly stop."""
    RELOAD = "reload"
    """Read the configuration again."""
    OUTLIVE = "outlive"
    """Continue without the terminal, as the service was started with SIGHUP ignored."""
    NOTHING = "nothing"


def respond_to_signal(
    signum: int, *, is_stopping: bool, is_terminal_gone: bool = False, outlives_terminal: bool = False
) -> SignalResponse:
    """Decide what a signal means: SIGHUP, or a request to stop.

    SIGHUP means that the terminal was closed if the controlling terminal is gone, even if a shell or sudo sent the
    signal: they relay it. Of the several that arrive then, the second must not kill what the first one stops in order.
    """
    if signum != signal.SIGHUP:
        return SignalResponse.KILL if is_stopping else SignalResponse.STOP
    if is_stopping:
        return SignalResponse.NOTHING
    if is_terminal_gone:
        return SignalResponse.OUTLIVE if outlives_terminal else SignalResponse.STOP
    return SignalResponse.RELOAD
