"""Decide whether the service ends because of its workloads (`supervisor.exit_on`), and with which status. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nsupervisor.core.exits import Exit
from nsupervisor.core.lifecycle import Lifecycle
from nsupervisor.core.states import DOWN_STATES, State

ALL_EXITED = "all exited"
EXIT_FAILED = 1
"""Exit status for a failure without one of its own, for example after a time limit."""


class InstanceView(NamedTuple):
    """The facts about a workload instance that the decision reads."""

    workload: str
    lifecycle: Lifecycle
    is_starting: bool
    """Whether a start of it waits for something that happens by itself."""


class ServiceEnd(NamedTuple):
    """The end of the service: its exit status, and the element of `supervisor.exit_on` that was met."""

    status: int
    condition: str


def find_end(exit_on: Sequence[str], instances: Iterable[InstanceView]) -> ServiceEnd | None:
    """Return the end that the first condition which is met leads to; None if none is met.

    "NAME failed": an instance of NAME has failed, and is not started again. "NAME exited": all instances of NAME have
    ended with success. "all exited": nothing runs, nothing will start, and something has run.
    """
    views = list(instances)
    for condition in exit_on:
        if condition == ALL_EXITED:
            chosen, is_met = views, _have_all_ended(views)
        else:
            name, _, what = condition.rpartition(" ")
            chosen = [view for view in views if view.workload == name]
            is_met = _has_failed(chosen) if what == "failed" else _have_all_succeeded(chosen)
        if is_met:
            return ServiceEnd(_status(chosen), condition)
    return None


def exit_status(exit_: Exit | None) -> int:
    """Return the status by which a shell reports an exit: its code, or 128 and the number of its signal."""
    if exit_ is None or (exit_.code is None and exit_.signal is None):
        return EXIT_FAILED
    return exit_.code if exit_.code is not None else 128 + (exit_.signal or 0)


def _has_failed(views: Sequence[InstanceView]) -> bool:
    return any(view.lifecycle.state is State.FAILED and not view.is_starting for view in views)


def _have_all_succeeded(views: Sequence[InstanceView]) -> bool:
    return bool(views) and all(view.lifecycle.state is State.EXITED and not view.is_starting for view in views)


def _have_all_ended(views: Sequence[InstanceView]) -> bool:
    has_run = any(view.lifecycle.state in (State.EXITED, State.FAILED) for view in views)
    return has_run and all(view.lifecycle.state in DOWN_STATES and not view.is_starting for view in views)


def _status(views: Iterable[InstanceView]) -> int:
    """Return the status of the first instance that has failed, in the order of the configuration, or 0."""
    for view in views:
        if view.lifecycle.state is State.FAILED:
            return exit_status(view.lifecycle.exit) or EXIT_FAILED
    return 0
