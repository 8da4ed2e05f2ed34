"""The machine as simulated timers use it: a wall clock that tests set, and a disk that survives stops and kills."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import tzinfo
from zoneinfo import ZoneInfo

import attrs
import trio

from nsupervisor.service.platform.timer_host import Stamps, WallClock
from tests.simulation.seam import Life

WALL_AT_0 = 1_792_886_400.0
"""The wall clock at the time 0 of the machine: 25 October 2026, 00:00 UTC."""
ZONE = ZoneInfo("Europe/Berlin")
"""The local time zone."""


@attrs.define(eq=False)
class TimerDisk:
    """The state of timers on a machine. It outlives supervisors."""

    offset: float = WALL_AT_0
    stamps: dict[str, float] = attrs.field(factory=dict)
    _sleepers: dict[trio.Event, Life] = attrs.field(factory=dict)

    def set_clock(self, by_seconds: float) -> None:
        """Set the wall clock forward, or back; wake all that wait for it."""
        self.offset += by_seconds
        for event, life in list(self._sleepers.items()):
            if not life.is_dead:
                event.set()

    async def sleep_until(self, life: Life, wall: float | None) -> bool:
        """Sleep until a time of the wall clock, or until the clock is set; return whether it was."""
        event = trio.Event()
        self._sleepers[event] = life
        deadline = float("inf") if wall is None else wall - self.offset
        with trio.move_on_at(deadline):
            await event.wait()
        del self._sleepers[event]
        return event.is_set()


@attrs.define(eq=False)
class _Clock:
    disk: TimerDisk
    life: Life

    async def sleep_until(self, wall: float | None) -> bool:
        self.life.call("sleep until a time")
        return await self.disk.sleep_until(self.life, wall)


@attrs.define(eq=False)
class _Stamps:
    disk: TimerDisk
    life: Life

    def read(self, workload: str) -> float | None:
        self.life.call("read stamp")
        return self.disk.stamps.get(workload)

    def write(self, workload: str, handled_until: float) -> None:
        self.life.call("write stamp")
        self.disk.stamps[workload] = handled_until


@attrs.define(eq=False)
class SimulatedTimerHost:
    """Implements `nsupervisor.service.platform.timer_host.TimerHost`."""

    disk: TimerDisk
    life: Life

    def now(self) -> float:
        return self.disk.offset + trio.current_time()

    @contextmanager
    def open_clock(self) -> Iterator[WallClock]:
        self.life.call("open clock")
        yield _Clock(self.disk, self.life)

    def zone(self, name: str) -> tzinfo:
        return ZoneInfo(name) if name else ZONE

    def machine_id(self) -> str:
        return "simulated"

    def stamps(self, directory: str, service: str) -> Stamps:
        return _Stamps(self.disk, self.life)
