"""The records that a transition of the lifecycle writes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from nsupervisor.core import events
from nsupervisor.core.backoff import starts_within
from nsupervisor.core.lifecycle import Lifecycle, State

if TYPE_CHECKING:
    from nsupervisor.service.instance.actor import Actor


COMMAND_NAMES: Mapping[type[events.Input], str] = {
    events.Start: "start",
    events.Stop: "stop",
    events.Restart: "restart",
    events.PolicyRestart: "recycle",
    events.Kill: "kill",
    events.Freeze: "freeze",
    events.Thaw: "thaw",
}
"""The name of each command in records."""


def log_transition(actor: "Actor", before: Lifecycle, event: events.Input) -> None:
    """Record a transition from `before` to the current lifecycle: the command, the restart decision, the new state."""
    new, say = actor.lifecycle, actor.log_event
    if isinstance(event, events.Command) and events.is_recorded_requester(event.requested_by):
        say("action", action=COMMAND_NAMES[type(event)], cause={"by": event.requested_by})
    if new.restarts > before.restarts or (new.state is State.BACKOFF and before.state is not State.BACKOFF):
        delay = new.deadline - trio.current_time() if new.state is State.BACKOFF and new.deadline else 0.0
        if before.state is not State.BACKOFF:  # recorded once, when the restart is decided, not again after the delay
            cause = {
                "exit": str(new.exit or actor.last_exit),
                "restart": actor.workload.restart,
                "reason": new.reason,
            }
            say("action", action="restart", cause=cause, delay_sec=round(delay, 6), **_start_budget(actor, delay))
    if new.state is not before.state:
        level = {State.FAILED: "error", State.BACKOFF: "warning"}.get(new.state, "info")
        say("state", level, **{"from": before.state.value, "to": new.state.value, "reason": new.reason})


def _start_budget(actor: "Actor", delay: float) -> dict[str, Any]:
    """Describe the start that comes in `delay` seconds: its number within the interval, and the start limit."""
    interval, lifecycle = actor.workload.start_limit_interval_sec, actor.lifecycle
    starts = len(starts_within(lifecycle.recent_starts, trio.current_time() + delay, interval)) + (
        lifecycle.state is State.BACKOFF
    )
    return {"start": starts, "start_limit_burst": actor.workload.start_limit_burst, "interval_sec": interval}
