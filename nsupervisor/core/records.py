"""The records that a transition of the lifecycle writes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.backoff import starts_within
from nsupervisor.core.exits import Exit
from nsupervisor.core.initiators import CONFIGURATION, Initiator
from nsupervisor.core.lifecycle import Lifecycle, State, has_timed_out
from nsupervisor.core.phases import HOOK_KEYS, Phase

_SURVIVORS = (
    "still populated {:g} s after SIGKILL: a process waits in the kernel (state D in ps), "
    "often for a disk or a network file system; nothing new starts until it is gone"
)
_FROZEN = "still populated {:g} s after SIGKILL: another program has frozen {} in {}; {}"


def describe_survivors(
    seconds: float, frozen_pids: Sequence[int] = (), freezers: Sequence[str] = (), problem: str = ""
) -> str:
    """Describe why processes live on, this number of seconds after SIGKILL.

    frozen_pids, freezers: those that another program has frozen, and the cgroups of version 1 that hold them. problem:
    why they could not be moved out of these; "" if they were.
    """
    if not frozen_pids:
        return _SURVIVORS.format(round(seconds, 1))
    pids = ", ".join(map(str, frozen_pids[:5])) + (", …" if len(frozen_pids) > 5 else "")
    outcome = "they have been moved out, so that they end"
    if problem:
        outcome = f"{problem}; write THAWED to freezer.state there"
    return _FROZEN.format(round(seconds, 1), f"process {pids}", ", ".join(freezers), outcome)


COMMAND_NAMES: Mapping[type[events.Input], str] = {
    events.Start: "start",
    events.Stop: "stop",
    events.Restart: "restart",
    events.PolicyRestart: "recycle",
    events.Kill: "kill",
    events.Freeze: "freeze",
    events.Thaw: "thaw",
    events.Reload: "reload",
}
"""The name of each command in records."""


@attrs.frozen
class TransitionRecord:
    """A record to write: its event, its log level, and its other fields."""

    event: str
    level: str
    fields: Mapping[str, Any]


def transition_records(
    before: Lifecycle,
    input_: events.Input,
    after: Lifecycle,
    last_exit: Exit | None,
    workload: WorkloadConfig,
    now: float,
) -> Iterator[TransitionRecord]:
    """Yield the records of a transition, in order: the command, the decision to restart, the new state."""
    if isinstance(input_, events.Command) and _is_recorded(input_.requested_by):
        fields = {"action": COMMAND_NAMES[type(input_)], "cause": input_.requested_by.cause()}
        yield TransitionRecord("action", "info", fields)
    if before.is_reloading and not after.is_reloading:
        took = {"took_sec": round(now - before.phase_since, 3)}
        if after.reload_failure:
            yield TransitionRecord("program reload failed", "warning", {"message": after.reload_failure, **took})
        else:
            yield TransitionRecord("program reloaded", "info", took)
    if (failure := _hook_failure(before, input_, after, now)) is not None:
        yield TransitionRecord("hook failed", "warning", failure)
    enters_backoff = after.state is State.BACKOFF and before.state is not State.BACKOFF
    # A restart is recorded once, when it is decided, not again after the delay.
    if enters_backoff or (after.restarts > before.restarts and before.state is not State.BACKOFF):
        delay_s = after.deadline - now if after.state is State.BACKOFF and after.deadline else 0.0
        cause = {"exit": str(after.exit or last_exit), "restart": workload.restart, "reason": after.reason}
        budget = _start_budget(after, workload, now + delay_s)
        yield TransitionRecord(
            "action", "info", {"action": "restart", "cause": cause, "delay_sec": round(delay_s, 6), **budget}
        )
    if after.state is not before.state:
        level = {State.FAILED: "error", State.BACKOFF: "warning"}.get(after.state, "info")
        if after.state is State.EXITED and after.exit is not None and after.exit.background_remedy:
            level = "warning"
        yield TransitionRecord(
            "state", level, {"from": before.state.value, "to": after.state.value, "reason": after.reason}
        )


def _hook_failure(before: Lifecycle, input_: events.Input, after: Lifecycle, now: float) -> Mapping[str, Any] | None:
    """Return the fields about a command of a hook that has failed; None if none has. A reload has a record itself."""
    if before.phase not in HOOK_KEYS or before.phase is Phase.RELOAD:
        return None
    fields = {"hook": HOOK_KEYS[before.phase], "step": before.step, "took_sec": round(now - before.step_since, 3)}
    if isinstance(input_, events.HookDone) and (input_.phase, input_.step) == (before.phase, before.step):
        name = f"{HOOK_KEYS[before.phase]}[{before.step}]"
        text = f"{name} {input_.detail}, after {fields['took_sec']:g} s"
        if after.hook_failure != before.hook_failure and after.hook_failure:
            text = after.hook_failure  # with the time as the lifecycle had it
        return None if input_.is_success or has_timed_out(before) else {"message": text, **fields}
    if isinstance(input_, events.Timeout) and after.hook_failure != before.hook_failure and after.hook_failure:
        return {"message": after.hook_failure, **fields}
    return None


def _is_recorded(initiator: Initiator) -> bool:
    """Return whether a command has a record of its own; that of a rule or of a removal is recorded elsewhere."""
    return initiator.kind != "rule" and initiator != CONFIGURATION


def _start_budget(lifecycle: Lifecycle, workload: WorkloadConfig, starts_at: float) -> dict[str, Any]:
    """Describe a start at `starts_at`: its number within the interval, and the start limit."""
    recent = starts_within(lifecycle.recent_starts, starts_at, workload.start_limit_interval_sec)
    return {
        "start": len(recent) + (lifecycle.state is State.BACKOFF),
        "start_limit_burst": workload.start_limit,
        "interval_sec": workload.start_limit_interval_sec,
    }
