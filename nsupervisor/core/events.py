"""Inputs of the lifecycle: everything that can happen to a workload.

These classes are data only; `nsupervisor.core.lifecycle` defines what follows from them.

A *command* comes from an operator, from the boot, from a dependency or from a rule, and names its source in
`requested_by`. An *event* comes from the kernel or from the program itself, and belongs to one generation: the
lifecycle drops a late event about an earlier generation before it can do harm.
"""

import attrs

from nsupervisor.core.exits import Exit
from nsupervisor.wire_names import wire

OPERATOR = "operator"
"""The value of `requested_by` for a command from outside of all workloads."""
SHUTDOWN = "shutdown"
"""The value of `requested_by` when the shutdown of the service ends everything."""


def by_workload(name: str) -> str:
    """Return the value of `requested_by` for a command of a process in the workload instance `name`."""
    return f"workload {name}"


_TOGETHER = "with "


def together_with(name: str) -> str:
    """Return the value of `requested_by` for a stop because the workload `name`, which is required, stops."""
    return f"{_TOGETHER}{name}"


def is_together(requested_by: str) -> bool:
    """Return whether the command follows from one about another workload."""
    return requested_by.startswith(_TOGETHER)


def requester_phrase(requested_by: str) -> str:
    """Return the source of a command for a sentence: "by operator", "with postgres"."""
    return requested_by if is_together(requested_by) else f"by {requested_by}"


def is_recorded_requester(requested_by: str) -> bool:
    """Return whether a command has a record of its own; that of a rule or of a dependency is recorded elsewhere."""
    is_known = requested_by in (OPERATOR, "boot", SHUTDOWN, "reload")
    return is_known or requested_by.startswith(by_workload("")) or is_together(requested_by)


@attrs.frozen
class Input:
    """Anything that can happen to a workload."""


@attrs.frozen
class Command(Input):
    """A request to change what the workload does."""

    requested_by: str = attrs.field(default=OPERATOR, metadata=wire("by"))


@attrs.frozen
class Start(Command):
    """Run the workload. Forgives earlier failures: resets the back-off and the start limit."""


@attrs.frozen
class Stop(Command):
    """Stop the workload gracefully, and leave it stopped."""


@attrs.frozen
class Restart(Command):
    """Stop the workload gracefully, then start it at once. Forgives earlier failures, as `Start` does."""


@attrs.frozen
class PolicyRestart(Command):
    """Restart for a rule: stop gracefully, then start again, subject to the back-off and the start limit."""


@attrs.frozen
class Kill(Command):
    """Kill every process of the workload now (`cgroup.kill`); then the restart policy decides."""


@attrs.frozen
class Freeze(Command):
    """Stop all processes of the workload until it is thawed (`cgroup.freeze`)."""


@attrs.frozen
class Thaw(Command):
    """Let a frozen workload continue."""


@attrs.frozen
class Event(Input):
    """Something that became true of one generation of the workload."""

    generation: int = attrs.field(metadata=wire("generation"))


@attrs.frozen
class Execed(Event):
    """Every set-up step and execve(2) succeeded: the program runs."""


@attrs.frozen
class Ready(Event):
    """The program reported that it is ready, or a probe found that it is."""


@attrs.frozen
class Unhealthy(Event):
    """The program missed its signs of life; `reason` says which."""

    reason: str = attrs.field(metadata=wire("why"))


@attrs.frozen
class Exited(Event):
    """The program exited. `populated`: some other process still lives in its cgroup."""

    exit: Exit = attrs.field(metadata=wire("exit"))
    populated: bool = attrs.field(metadata=wire("populated"))


@attrs.frozen
class Emptied(Event):
    """No process lives in the workload's cgroup any more (`populated 0` in cgroup.events)."""


@attrs.frozen
class Timeout(Input):
    """The deadline in `Lifecycle.deadline` has passed."""
