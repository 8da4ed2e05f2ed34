"""Actions that the lifecycle requests from the shell around it.

They are data only. The shell executes them in the given order.
"""

import attrs

from nsupervisor.core.phases import Phase


@attrs.frozen
class Action:
    """An effect to apply to the workload."""


@attrs.frozen
class Spawn(Action):
    """Start this generation; requested only while no process of an earlier generation lives."""

    generation: int


@attrs.frozen
class Signal(Action):
    """Send a signal to the program, or with `whole_cgroup` to each process in its cgroup.

    `resumes`: SIGCONT follows, as in systemd.kill(5): a stopped process (state T in ps) would not handle a signal that
    should end it. The signal of a rule is sent as it is.
    """

    signal: int
    whole_cgroup: bool = False
    resumes: bool = True


@attrs.frozen
class RunHook(Action):
    """Run the command `step` of the key that belongs to `phase`, in the cgroup of the workload.

    While the program runs, the command is in its namespaces; otherwise in namespaces as the program's.
    """

    phase: Phase
    step: int


@attrs.frozen
class EndHook(Action):
    """Send SIGKILL to the command that runs; its end does not matter any more."""


@attrs.frozen
class KillAll(Action):
    """Write 1 to `cgroup.kill`: SIGKILL to every process in the cgroup, forks included."""


@attrs.frozen
class ReleaseSurvivors(Action):
    """Release processes that others have frozen, so that the SIGKILL before takes effect; report why they live on."""

    seconds: float
    """How long ago they were sent SIGKILL, or since the last attempt if that is reported."""
    is_reported: bool
    """Whether this generation's survivors have been reported already."""


@attrs.frozen
class ReportLeft(Action):
    """Report the processes that a generation has left and that run on (`kill_mode = "process"`)."""


@attrs.frozen
class FreezeAll(Action):
    """Write 1 to `cgroup.freeze`, which stops every process in the cgroup."""


@attrs.frozen
class ThawAll(Action):
    """Write 0 to `cgroup.freeze`, which lets every process in the cgroup continue."""
