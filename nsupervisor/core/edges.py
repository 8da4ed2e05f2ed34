"""Conditions of edges between workloads, decided by the state of the other workload. Pure.

A module of its own, because planning a reload needs only the names of `nsupervisor.core.dependencies`.
"""

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.relations import DependencyCondition
from nsupervisor.core.lifecycle import Lifecycle, is_up
from nsupervisor.core.states import State

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
            has_run = lifecycle.exit is not None and lifecycle.exit.setup_failure is None
            return lifecycle.state in (State.EXITED, State.FAILED) and has_run
        case "completed_successfully":
            return lifecycle.state is State.EXITED
    return False
