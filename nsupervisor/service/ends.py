"""Exit reports of one instance, kept until they are in the output.

A record goes into a buffer, and the lifecycle after an exit is checkpointed for the next supervisor before the buffer
is written out. A supervisor that is killed between the two has reported the exit to no reader. So the checkpoint also
holds the reports that may not be in the output yet. The next supervisor writes them again, marked as `duplicate`,
because the first copy may have been written.
"""

from collections.abc import Callable

import attrs
import trio

from nsupervisor.service.state import End
from nsupervisor.service.status import exit_record
from nsupervisor.service.voice import Voice

MOST = 50
"""Most undelivered reports that one instance keeps. More accumulate only if the output has not been written for long;
the oldest are then reported once, or counted as dropped."""


@attrs.define(eq=False)
class Ends:
    """Reports the exits of one instance, at least once each."""

    voice: Voice
    nursery: trio.Nursery
    remember: Callable[[], None]
    """Checkpoint the instance, with the present `undelivered`."""
    untold: tuple[End, ...] = ()
    """The reports whose records may not be in the output yet, oldest first."""
    _told: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)

    def say(self, end: End, duplicate: bool = False) -> None:
        """Record an exit. After the next checkpoint, no death of the supervisor can lose it."""
        self._say(end, {"duplicate": True} if duplicate else {})
        self.untold = (*self.untold, end)[-MOST:]

    def _say(self, end: End, more: dict[str, bool]) -> None:
        if end.exit.failure is None:
            self.voice.say(end.generation, "exited", pid=end.pid, **exit_record(end.exit), **more)
        else:
            message = f"workload {self.voice.name}: {end.exit.failure}"
            self.voice.say(end.generation, "not started", "error", message=message, **more)

    def say_again(self, untold: tuple[End, ...]) -> None:
        """Record the exits that an earlier supervisor may not have delivered."""
        for end in untold:
            self.say(end, duplicate=True)

    def settle(self) -> None:
        """Release the records that were held back, and forget the reports once they are in the output."""
        self.voice.release()
        if self.untold:
            self.nursery.start_soon(self._settle, self.untold)

    async def _settle(self, said: tuple[End, ...]) -> None:
        await self.voice.journal.written()
        self.untold = tuple(end for end in self.untold if not any(end is report for report in said))
        self.remember()
        self._told.unpark_all()

    async def told(self) -> None:
        """Wait until all reports are in the output."""
        while self.untold:
            await self._told.park()
