"""What a client of the keeper is told: what it has, what has become of it, and why something cannot be."""

import attrs


class KeeperLost(Exception):  # noqa: N818
    """The keeper is gone, or another supervisor has taken it over."""


class RefusedError(Exception):
    """The keeper can't do that now; the text says why."""


class SpawnError(Exception):
    """No process was made. `step` is where it failed, `message` a whole sentence, `errno` the kernel's reason or 0."""

    def __init__(self, step: str, message: str, errno: int) -> None:
        super().__init__(message)
        self.step = step
        self.message = message
        self.errno = errno


@attrs.frozen
class Failure:
    """Why a program was never executed: the step of the set-up, a whole sentence, the kernel's errno (or 0)."""

    step: str
    message: str
    errno: int


@attrs.frozen
class Spawned:
    """A process that has been made; its set-up goes on. The descriptors belong to whoever called `Keeper.spawn`."""

    id: str
    pid: int
    """The first process, in this host's numbers: the init where there is one."""
    stdout: int
    """The read end of a pipe, non-blocking; `stderr` too."""
    stderr: int


@attrs.frozen
class Child:
    """What the keeper knows of a child. The descriptors are new duplicates; who called `Keeper.list` owns them."""

    id: str
    name: str
    pid: int
    stdout: int
    stderr: int
    program: int | None
    """The program's own pid, once it has been executed."""
    status: int | None
    """The raw wait status, once it has ended."""
    failure: Failure | None
    notify: int = -1
    """Its notify socket, where it came with one."""


@attrs.frozen
class Execed:
    """The program has been executed. `pid` is its own, in this host's numbers."""

    id: str
    pid: int


@attrs.frozen
class Ended:
    """The program has ended, or (with a failure) never came to be. Told again to each new client until acknowledged."""

    id: str
    status: int
    """As waitpid(2) gives it: for `os.waitstatus_to_exitcode`, `os.WCOREDUMP` and so on. -1: nobody knows it any more,
    as the keeper that was its parent is dead, and this kernel does not tell anybody else."""
    failure: Failure | None = None
