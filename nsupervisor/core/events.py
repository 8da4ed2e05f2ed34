"""Everything that can happen to a workload. Data only; `nsupervisor.core.lifecycle` says what follows.

A *wish* comes from a person, from boot, from a dependency or from a rule, and says from whom in ``by``.
A *fact* comes from the kernel or from the program itself, and belongs to one generation: one that comes late, about a
generation that is gone, is dropped before it can do harm.
"""

import attrs

from nsupervisor.core.exits import Exit

SHUTDOWN = "shutdown"
"""Whose wish it is when everything ends because the service does."""


@attrs.frozen
class Event:
    """Anything that can happen to a workload."""


@attrs.frozen
class Wish(Event):
    """Somebody wants something of the workload."""

    by: str = "operator"


@attrs.frozen
class Start(Wish):
    """Run it. Forgives earlier failures: back-off and start limit begin anew."""


@attrs.frozen
class Stop(Wish):
    """End it in order, and leave it stopped."""


@attrs.frozen
class Restart(Wish):
    """End it in order, then run it at once. Forgives earlier failures, as `Start` does."""


@attrs.frozen
class Recycle(Wish):
    """A rule's restart: end it in order, then run it again, but slowed by back-off and bounded by the start limit."""


@attrs.frozen
class Kill(Wish):
    """End every process of it now (``cgroup.kill``); what follows is the restart policy's choice."""


@attrs.frozen
class Freeze(Wish):
    """Let none of its processes run until it is thawed (``cgroup.freeze``)."""


@attrs.frozen
class Thaw(Wish):
    """Let a frozen workload run on."""


@attrs.frozen
class Fact(Event):
    """Something became true of one generation of the workload."""

    generation: int


@attrs.frozen
class Execed(Fact):
    """Every set-up step was done and execve(2) succeeded: the program runs."""


@attrs.frozen
class Ready(Fact):
    """The program says that it does its work, or a probe says so."""


@attrs.frozen
class Unhealthy(Fact):
    """The program has stopped showing signs of life; ``why`` says which were missed."""

    why: str


@attrs.frozen
class Exited(Fact):
    """The program has ended. ``populated``: some other process still lives in its cgroup."""

    exit: Exit
    populated: bool


@attrs.frozen
class Emptied(Fact):
    """No process lives in the workload's cgroup any more (``populated 0`` in cgroup.events)."""


@attrs.frozen
class Timeout(Event):
    """The deadline that `Life.deadline` asked for has passed."""
