"""Messages from the keeper to its client: child table, exits, errors."""

import attrs


class KeeperLost(Exception):  # noqa: N818
    """The connection is lost: the keeper has ended, or another supervisor has connected to it."""


class RefusedError(Exception):
    """The keeper refused a request; the text says why."""


class UnknownChildError(RefusedError):
    """The keeper does not have the child."""


class SpawnError(Exception):
    """No process was created. `step` is the failed step, `message` a whole sentence, `errno` the kernel's or 0."""

    def __init__(self, step: str, message: str, errno: int) -> None:
        super().__init__(message)
        self.step = step
        self.message = message
        self.errno = errno


@attrs.frozen
class SetupFailure:
    """Why a program was never executed: the failed step of the set-up, a whole sentence, and the errno or 0."""

    step: str
    message: str
    errno: int


@attrs.frozen
class Spawned:
    """A process that has been created; its set-up continues. The caller of `Keeper.spawn` owns the descriptors."""

    id: str
    pid: int
    """The pid of the first process on this host: the init if there is one."""
    stdout: int
    """The read end of a pipe, non-blocking; so is `stderr`."""
    stderr: int
    readiness: int = -1
    """The read end of the pipe for the newline of its readiness, non-blocking; -1 if it has none."""


@attrs.frozen
class Child:
    """A child as the keeper lists it. The descriptors are new duplicates; the caller of `Keeper.list` owns them."""

    id: str
    name: str
    pid: int
    stdout: int
    stderr: int
    program_pid: int | None
    """The program's own pid; None before it has been executed."""
    status: int | None
    """The raw wait status; None before the program has ended."""
    failure: SetupFailure | None
    notify: int = -1
    """The notify socket that came with "spawn"; -1 if there was none."""
    readiness: int = -1
    """The read end of the pipe for the newline of its readiness; -1 if there is none."""


@attrs.frozen
class Execed:
    """The program has been executed. `pid` is the program's own pid on this host."""

    id: str
    pid: int


@attrs.frozen
class Ended:
    """The program has ended or, with a `failure`, was never executed. Sent to each new client until acknowledged."""

    id: str
    status: int
    """The wait status as waitpid(2) returns it: for `os.waitstatus_to_exitcode`, `os.WCOREDUMP` and so on. -1: unknown,
    as the keeper that was the parent is dead, and this kernel reports the status to the parent only."""
    failure: SetupFailure | None = None
