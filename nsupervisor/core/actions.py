"""What the lifecycle asks of the shell around it. Data only; the shell does them in the order given."""

import attrs


@attrs.frozen
class Action:
    """Something to be done to the workload."""


@attrs.frozen
class Spawn(Action):
    """Start this generation. Asked for only while no process of an earlier one lives."""

    generation: int


@attrs.frozen
class Signal(Action):
    """Send a signal to the program; with ``everyone``, to each process in its cgroup."""

    signal: int
    everyone: bool = False


@attrs.frozen
class KillAll(Action):
    """Write 1 to ``cgroup.kill``: SIGKILL to every process in the cgroup, forks included."""


@attrs.frozen
class FreezeAll(Action):
    """Write 1 to ``cgroup.freeze``."""


@attrs.frozen
class ThawAll(Action):
    """Write 0 to ``cgroup.freeze``."""


@attrs.frozen
class Complain(Action):
    """Write a warning to the log: something is not as it should be, and a person may have to look."""

    text: str
