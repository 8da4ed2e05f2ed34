"""When the state or the change of a path acts on its workload. Pure.

Events of the kernel only say when to look: each look returns whether the condition holds and a fingerprint of what is
there, and the decision follows from these. So a change is found that was made while no supervisor ran, or whose event
was lost. A change acts at least once; changes while it cannot act yet act once afterwards.

What a request has stopped stays stopped, and what has failed waits for a request, as for sockets. A trigger that acts
too often is suspended until a request starts the workload: its program may cause the change that starts it. A condition
that is true counts only while nothing else changes, because a program that empties a directory bit by bit is no loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import attrs

from nsupervisor.config.paths import PathConfig
from nsupervisor.wire_names import wire


@attrs.frozen
class PathTriggerState:
    """The state of one path of a workload. The next supervisor continues with it."""

    fingerprint: str | None = attrs.field(default=None, metadata=wire("fingerprint"))
    """The fingerprint at the latest look; None: there was none yet."""
    is_pending: bool = attrs.field(default=False, metadata=wire("pending"))
    """Whether it is to act as soon as it can."""
    acted_at: tuple[float, ...] = attrs.field(default=(), metadata=wire("acted_at"))
    """The times of the latest actions that count, in seconds of the monotonic clock."""
    acted_on: str | None = attrs.field(default=None, metadata=wire("acted_on"))
    """The fingerprint at the latest action."""
    is_suspended: bool = attrs.field(default=False, metadata=wire("suspended"))


@attrs.frozen
class PathLook:
    """The result of a look at a path."""

    holds: bool
    """For a condition that is true or false: whether it is true."""
    fingerprint: str


def on_look(state: PathTriggerState, path: PathConfig, look: PathLook, has_changed: bool) -> PathTriggerState:
    """Return the state after a look. `has_changed`: an event has said so."""
    if path.is_level:
        is_pending = look.holds
    else:
        is_new = state.fingerprint is not None and (has_changed or look.fingerprint != state.fingerprint)
        is_pending = state.is_pending or is_new
    return attrs.evolve(state, fingerprint=look.fingerprint, is_pending=is_pending)


def on_action(state: PathTriggerState, path: PathConfig, now: float) -> PathTriggerState:
    """Count an action that is due, or suspend the trigger; `is_suspended` tells which. `now`: in seconds."""
    has_progress = path.is_level and state.acted_on is not None and state.fingerprint != state.acted_on
    interval = path.trigger_limit_interval_sec
    recent = () if has_progress else tuple(at for at in state.acted_at if now - interval < at <= now)
    if interval and len(recent) >= path.trigger_limit_burst:
        return attrs.evolve(state, is_suspended=True)
    return attrs.evolve(
        state, is_pending=path.is_level and state.is_pending, acted_at=(*recent, now), acted_on=state.fingerprint
    )


def on_request(state: PathTriggerState) -> PathTriggerState:
    """Return the state after a request has started the workload: nothing is suspended any more."""
    return attrs.evolve(state, acted_at=(), acted_on=None, is_suspended=False)


def counts(path: PathConfig, name: str, own_logs: Sequence[str]) -> bool:
    """Return whether a name in the directory of a path counts. `own_logs`: names of the workload's log files there."""
    if any(name == log or name.startswith(f"{log}.") for log in own_logs):  # rotated ones, too
        return False
    if path.path_exists_glob is not None:
        pattern = path.path.rpartition("/")[2]
        return fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))
    if path.include and not any(fnmatchcase(name, pattern) for pattern in path.include):
        return False
    return not any(fnmatchcase(name, pattern) for pattern in path.exclude)
