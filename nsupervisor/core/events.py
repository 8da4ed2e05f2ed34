"""Inputs of the lifecycle: everything that can happen to a workload.

These classes are data only; `nsupervisor.core.lifecycle` defines what follows from them.

A *command* comes from an operator, from the boot, from a dependency or from a rule, and names its initiator in
`requested_by`. An *event* comes from the kernel or from the program itself, and belongs to one generation: the
lifecycle drops a late event about an earlier generation before it can do harm.
"""

import attrs

from nsupervisor.core.exits import Exit
from nsupervisor.core.initiators import OPERATOR, Initiator, to_initiator
from nsupervisor.core.phases import Phase
from nsupervisor.wire_names import wire


@attrs.frozen
class Input:
    """Anything that can happen to a workload."""


@attrs.frozen
class Command(Input):
    """A request to change what the workload does."""

    requested_by: Initiator = attrs.field(default=OPERATOR, converter=to_initiator, metadata=wire("by"))


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
class Reload(Command):
    """Have the program read its configuration again, with `reload_signal` or `exec_reload`."""


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
class NewMain(Event):
    """The program is another process from now on: a daemon, named by `pid_file`, whose start is complete with that."""


@attrs.frozen
class Extend(Event):
    """The program needs more time for its start, its run or its stop: at least `seconds` from now on.

    EXTEND_TIMEOUT_USEC of sd_notify(3).
    """

    seconds: float = attrs.field(metadata=wire("sec"))


@attrs.frozen
class Reloading(Event):
    """The program reads its configuration again, and will report when it is ready: RELOADING=1 of sd_notify(3).

    `since`: MONOTONIC_USEC in seconds, when it began; None if the program has not sent it.
    """

    since: float | None = attrs.field(default=None, metadata=wire("since"))


@attrs.frozen
class HookDone(Event):
    """A command of the phase has ended. `detail` says how, in words.

    `code`: its exit status; None if a signal has ended it, or it could not be run, or in traces of earlier versions.
    `is_populated`: some process lives in the cgroup.
    """

    phase: Phase = attrs.field(metadata=wire("phase"))
    step: int = attrs.field(metadata=wire("step"))
    is_success: bool = attrs.field(metadata=wire("success"))
    detail: str = attrs.field(default="", metadata=wire("detail"))
    code: int | None = attrs.field(default=None, metadata=wire("code"))
    is_populated: bool = attrs.field(default=False, metadata=wire("populated"))


@attrs.frozen
class Stopping(Event):
    """The program has begun to stop by itself: STOPPING=1 of sd_notify(3)."""


@attrs.frozen
class RestartReset(Event):
    """The program works well, so the delay of restarts begins with the first one: RESTART_RESET=1 of sd_notify(3)."""


@attrs.frozen
class NotReady(Event):
    """A probe found that the program, which was ready, is not ready any more; `reason` says why."""

    reason: str = attrs.field(metadata=wire("why"))


@attrs.frozen
class Unhealthy(Event):
    """The program missed its signs of life, or a probe has failed; `reason` says which.

    `probe`: "startup" or "liveness"; "" if the program itself has to give signs of life.
    """

    reason: str = attrs.field(metadata=wire("why"))
    probe: str = attrs.field(default="", metadata=wire("probe"))


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
