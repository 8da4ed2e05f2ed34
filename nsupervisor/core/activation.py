"""When traffic on a socket starts its workload. Pure.

A socket is watched while its workload is down by itself: it was never started, or has ended and is not restarted. What
a request has stopped stays stopped, and what has failed waits for a request. A program that ends without taking the
connection would be started again at once, without end: the trigger limit is that of systemd.socket(5).
"""

from __future__ import annotations

import attrs

from nsupervisor.config.sockets import SocketConfig


@attrs.frozen
class ActivationState:
    """The starts by one socket. `is_limited`: too many came too soon, so a request has to start the workload."""

    starts: tuple[float, ...] = ()
    """The times of the latest starts."""
    is_limited: bool = False


def on_traffic(state: ActivationState, now: float, socket: SocketConfig) -> ActivationState:
    """Count a start, or note that the limit is reached; `is_limited` tells which. `now`: in seconds."""
    if not socket.trigger_limit_interval_sec:
        return state
    recent = tuple(at for at in state.starts if at > now - socket.trigger_limit_interval_sec)
    if len(recent) >= socket.trigger_limit_burst:
        return attrs.evolve(state, is_limited=True)
    return ActivationState((*recent, now))
