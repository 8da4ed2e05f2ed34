"""Edges between workloads while these run: whether a condition holds, and which change of one concerns others. Pure.

A module of its own, because planning a reload needs only the names of `nsupervisor.core.dependencies`.
"""

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.relations import DependencyCondition
from nsupervisor.core.backoff import UNLIMITED_BASE_S
from nsupervisor.core.initiators import Initiator
from nsupervisor.core.lifecycle import Lifecycle, is_skipped, is_up
from nsupervisor.core.states import DOWN_STATES, State

_EXECUTED_STATES = frozenset({State.RUNNING, State.READY, State.FROZEN})


def is_met(condition: DependencyCondition, lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether an edge's condition holds for the other workload, of which these are.

    "ready": it is up (`lifecycle.is_up`). "started": its program has been executed and not ended, or it is up.
    "completed": it has run to its end, with whatever result, and is not started again. "completed_successfully": its
    end was a success.
    """
    if is_up(lifecycle, workload):
        return True
    match condition:
        case "started":
            return lifecycle.state in _EXECUTED_STATES
        case "completed":
            has_run = lifecycle.exit is not None and lifecycle.exit.has_run
            return lifecycle.state in (State.EXITED, State.FAILED) and has_run
        case "completed_successfully":
            return lifecycle.state is State.EXITED and not is_skipped(lifecycle)
    return False


def is_active(lifecycle: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether a workload that is bound to this one may go on: its program runs, or has done its single job.

    A program that is not ready any more still runs, as for BindsTo= of systemd.unit(5).
    """
    return lifecycle.state in _EXECUTED_STATES or is_up(lifecycle, workload)


def has_ended(before: Lifecycle, after: Lifecycle, workload: WorkloadConfig) -> bool:
    """Check whether a change has ended what bound workloads depend on; another generation is another program."""
    if not is_active(before, workload):
        return False
    return not is_active(after, workload) or after.generation != before.generation


def has_failed(before: Lifecycle, after: Lifecycle) -> bool:
    """Check whether the workload has failed for good by this change: no restart follows."""
    return after.state is State.FAILED and before.state is not State.FAILED


def has_succeeded(before: Lifecycle, after: Lifecycle) -> bool:
    """Check whether the workload has done its work by this change: it ended with success, and no restart follows."""
    return after.state is State.EXITED and before.state is not State.EXITED and not is_skipped(after)


def stop_initiator(lifecycle: Lifecycle) -> Initiator | None:
    """Return the initiator of the stop that keeps a workload down; None if none does."""
    if lifecycle.state is not State.STOPPED or not lifecycle.reason.startswith("stopped "):
        return None
    return Initiator.from_text(lifecycle.reason.removeprefix("stopped ").removeprefix("by "))


def is_held_down(lifecycle: Lifecycle) -> bool:
    """Check whether an operator, a workload or a rule has stopped it: then no other workload may start it."""
    initiator = stop_initiator(lifecycle)
    return initiator is not None and initiator.is_request


def may_be_started(lifecycle: Lifecycle) -> bool:
    """Return whether traffic or a path starts an instance: it is down, neither by a request nor by a failure."""
    return lifecycle.state in (State.STOPPED, State.EXITED) and not is_held_down(lifecycle)


def must_be_upheld(lifecycle: Lifecycle) -> bool:
    """Check whether a workload that others uphold is down, and no command about it or another one has stopped it."""
    initiator = stop_initiator(lifecycle)
    return lifecycle.state in DOWN_STATES and (initiator is None or initiator.kind == "shutdown")


def uphold_delay(lifecycle: Lifecycle, workload: WorkloadConfig) -> float:
    """Return the seconds until a start for the workloads that uphold this one.

    A program that has ended by itself waits for the longest delay of its restarts: it may end at once each time.
    """
    if lifecycle.state is State.STOPPED:
        return 0.0
    return max(workload.restart_max_delay_sec, UNLIMITED_BASE_S)
