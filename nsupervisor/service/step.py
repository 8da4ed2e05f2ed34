"""The records that a transition of the lifecycle writes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import trio

from nsupervisor.core import events
from nsupervisor.core.backoff import within
from nsupervisor.core.lifecycle import Life, State

if TYPE_CHECKING:
    from nsupervisor.service.actor import Actor


ACTIONS: Mapping[type[events.Event], str] = {
    events.Start: "start",
    events.Stop: "stop",
    events.Restart: "restart",
    events.Recycle: "recycle",
    events.Kill: "kill",
    events.Freeze: "freeze",
    events.Thaw: "thaw",
}
"""The name of each command in records."""


def tell(actor: "Actor", old: Life, event: events.Event) -> None:
    """Record a transition from `before` to the current lifecycle: the command, the restart decision, the new state."""
    new, say = actor.life, actor.say
    if isinstance(event, events.Wish) and event.by in ("operator", "boot", events.SHUTDOWN, "reload"):
        say("action", action=ACTIONS[type(event)], cause={"by": event.by})
    if new.restarts > old.restarts or (new.state is State.BACKOFF and old.state is not State.BACKOFF):
        delay = new.deadline - trio.current_time() if new.state is State.BACKOFF and new.deadline else 0.0
        if old.state is not State.BACKOFF:  # recorded once, when the restart is decided, not again after the delay
            cause = {
                "exit": str(new.exit or actor.last_exit),
                "restart": actor.workload.restart,
                "reason": new.reason,
            }
            say("action", action="restart", cause=cause, delay_sec=round(delay, 6), **_place(actor, delay))
    if new.state is not old.state:
        level = {State.FAILED: "error", State.BACKOFF: "warning"}.get(new.state, "info")
        say("state", level, **{"from": old.state.value, "to": new.state.value, "reason": new.reason})


def _place(actor: "Actor", delay: float) -> dict[str, Any]:
    """Describe the start that comes in `delay` seconds: its number within the interval, and the start limit."""
    interval, life = actor.workload.start_limit_interval_sec, actor.life
    starts = len(within(life.starts, trio.current_time() + delay, interval)) + (life.state is State.BACKOFF)
    return {"start": starts, "start_limit_burst": actor.workload.start_limit_burst, "interval_sec": interval}
