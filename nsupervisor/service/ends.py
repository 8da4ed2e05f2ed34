"""How the generations of one instance ended, until that has been told.

A record is put into a buffer, and the life after the end is written down for the next supervisor before the buffer is
written out. A supervisor that is killed between the two has told nobody. So what is written down has the ends that may
not be in the output yet, too, and the next supervisor tells them, marked as `duplicate`, since they may be there.
"""

from collections.abc import Callable

import attrs
import trio

from nsupervisor.service.state import End
from nsupervisor.service.status import exit_record
from nsupervisor.service.voice import Voice

MOST = 50
"""Of one instance. More wait only where the output has not been written for long; then the oldest are told once, or
counted as dropped."""


@attrs.define(eq=False)
class Ends:
    """Of one instance."""

    voice: Voice
    nursery: trio.Nursery
    remember: Callable[[], None]
    """Write down what `untold` is now."""
    untold: tuple[End, ...] = ()
    """Those whose records may not be in the output yet, oldest first."""
    _told: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)

    def say(self, end: End, duplicate: bool = False) -> None:
        """Have an end recorded; from the next `remember` on no death of ours can lose it."""
        self._say(end, {"duplicate": True} if duplicate else {})
        self.untold = (*self.untold, end)[-MOST:]

    def _say(self, end: End, more: dict[str, bool]) -> None:
        if end.exit.failure is None:
            self.voice.say(end.generation, "exited", pid=end.pid, **exit_record(end.exit), **more)
        else:
            message = f"workload {self.voice.name}: {end.exit.failure}"
            self.voice.say(end.generation, "not started", "error", message=message, **more)

    def say_again(self, untold: tuple[End, ...]) -> None:
        """Have those recorded that an earlier supervisor has left."""
        for end in untold:
            self.say(end, duplicate=True)

    def settle(self) -> None:
        """Hold nothing back any more; and forget those that have been said so far, once they are in the output."""
        self.voice.release()
        if self.untold:
            self.nursery.start_soon(self._settle, self.untold)

    async def _settle(self, said: tuple[End, ...]) -> None:
        await self.voice.journal.written()
        self.untold = tuple(end for end in self.untold if not any(end is one for one in said))
        self.remember()
        self._told.unpark_all()

    async def told(self) -> None:
        """Wait until all are in the output."""
        while self.untold:
            await self._told.park()
