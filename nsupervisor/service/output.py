"""The output of one workload instance: from a generation's pipes to where its lines go."""

import os
from typing import Any

import attrs
import trio

from nsupervisor.config.model import Log
from nsupervisor.keeper.client import Spawned
from nsupervisor.logs import capture
from nsupervisor.metrics.counters import Counters
from nsupervisor.service.world import World


@attrs.define(eq=False)
class Output:
    """The captures of one instance. A generation's may go on after its end, beside those of the next one."""

    name: str
    instance: int | None
    settings: Log
    counters: Counters
    world: World
    _spawned: Spawned | None = None
    """The descriptors of a generation whose capture has not begun."""
    _open: int = 0
    _ended: trio.lowlevel.ParkingLot = attrs.field(init=False, factory=trio.lowlevel.ParkingLot)

    def expect(self, spawned: Spawned) -> None:
        """Keep the pipes of a new generation until `begin`."""
        self._spawned = spawned

    def begin(self, generation: int, pid: int | None) -> None:
        """Begin to read. Only once the program's own pid is known, or that there is none: the pipes wait, and so each
        record of its output has its pid, and comes after the one that says that it started."""
        spawned, self._spawned = self._spawned, None
        if spawned is None:
            return
        os.close(spawned.pidfd)  # the keeper has its own, and sends our signals
        labels: dict[str, Any] = {"workload": self.name, "generation": generation, "pid": pid}
        if self.instance is not None:
            labels["instance"] = self.instance
        for fd, stream in ((spawned.stdout, "stdout"), (spawned.stderr, "stderr")):
            self._open += 1
            self.world.nursery.start_soon(self._capture, fd, labels, stream)

    async def _capture(self, fd: int, labels: dict[str, Any], stream: str) -> None:
        journal = self.world.journal if getattr(self.settings, stream) == "journal" else None
        try:
            await capture(fd, journal, labels, stream, self.settings.max_line, self.counters.output[stream].add)
        finally:
            self._open -= 1
            self._ended.unpark_all()

    async def drained(self) -> None:
        """Wait until all output of generations that have ended has been read."""
        while self._open:
            await self._ended.park()
