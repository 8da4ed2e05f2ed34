"""Jobs that are done again and again, each at its own pace, by one task that sleeps in between."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

import attrs
import trio

TICK, SLOW_TICK = 0.05, 0.25
"""Seconds. What is due within the same one is done in one go, so that many jobs do not wake us all the time; the second
one is for jobs that are slow."""
LONGEST = 60.0
"""Seconds. A job that asks for a longer pause is asked again after this, so that no forgotten one is kept for long."""
_BREATH = 16
"""After so many jobs in a row, some 0.7 ms, others have their turn: at 1,000 workloads a round takes a while."""


@attrs.define(eq=False)
class Job:
    """work: does it, and says after how many seconds it is to be done again; infinity: when somebody plans it."""

    work: Callable[[], float]
    due: float = math.inf
    """On trio's clock; infinity: not planned."""
    ended: bool = False


class Sampler:
    """The plan of all jobs. Its methods are for the trio thread only, and may be called by the jobs."""

    def __init__(self) -> None:
        self._plan: list[tuple[float, int, Job]] = []
        self._number = count()
        self._sooner = trio.Event()

    def plan(self, job: Job, delay: float) -> None:
        """Do it in so many seconds, at the latest; infinity calls it off. An earlier plan for it is forgotten."""
        if delay == math.inf or job.ended:
            job.due = math.inf
            return
        now = trio.current_time()
        due = now + min(delay, LONGEST)
        tick = SLOW_TICK if delay >= 4 * SLOW_TICK else TICK
        if delay >= 2 * tick:
            due = math.floor(due / tick) * tick
        job.due = due
        if not self._plan or due < self._plan[0][0]:
            self._sooner.set()
        heapq.heappush(self._plan, (due, next(self._number), job))

    def end(self, job: Job) -> None:
        """Never do it again, also where it is being done now."""
        job.ended, job.due = True, math.inf

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._plan[0][0] if self._plan else math.inf):
                await self._sooner.wait()
            now, done = trio.current_time(), 0
            while self._plan and self._plan[0][0] <= now:
                due, _, job = heapq.heappop(self._plan)
                if job.due != due:
                    continue  # called off, or planned anew
                job.due = math.inf
                delay = job.work()
                if job.due == math.inf:
                    self.plan(job, delay)
                done += 1
                if done % _BREATH == 0:
                    await trio.lowlevel.checkpoint()
