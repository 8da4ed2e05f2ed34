"""The client's side of a process that has entered the namespaces of a workload: `Keeper.enter` makes it."""

import attrs
import trio

from nsupervisor.keeper.messages import SetupFailure

LOST = SetupFailure("keeper", "the connection to the keeper is lost, which ends the command", 0)
"""The failure of an entry whose keeper has ended: its exit status is unknown."""


@attrs.define(eq=False)
class Entry:
    """A process that the keeper has started in the namespaces of a workload, until it has ended."""

    id: str
    pid: int = attrs.field(init=False, default=0)
    """Its pid on this host, once it has been executed."""
    status: int | None = attrs.field(init=False, default=None)
    """The wait status, as waitpid(2) returns it; None before its end."""
    failure: SetupFailure | None = attrs.field(init=False, default=None)
    """Why it was never executed, or is lost."""
    _changed: trio.Event = attrs.field(init=False, factory=trio.Event)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.status is not None

    async def wait_executed(self) -> None:
        """Wait until it has been executed, or has ended."""
        while not self.pid and not self.has_ended:
            await self._changed.wait()

    async def wait_ended(self) -> None:
        """Wait until it has ended."""
        while not self.has_ended:
            await self._changed.wait()

    def executed(self, pid: int) -> None:
        """Note that it has been executed; for the connection to the keeper."""
        self.pid = pid
        self._notify()

    def ended(self, status: int, failure: SetupFailure | None = None) -> None:
        """Note its end; for the connection to the keeper."""
        self.status, self.failure = status, failure
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@attrs.frozen
class KeptEntry:
    """An entry that has outlived its client, as `Keeper.list_kept` returns it."""

    entry: Entry
    outputs: tuple[int, ...]
    """The ends to read of its standard output and error; none if no descriptor was free."""
