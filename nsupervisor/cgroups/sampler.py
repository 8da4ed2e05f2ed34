"""A scheduler for recurring jobs: one task runs each job at its own interval and sleeps in between."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

import attrs
import trio

TICK, SLOW_TICK = 0.05, 0.25
"""Tick lengths in seconds. Jobs due within the same tick run together, so that many jobs cause few wakeups.

The second one is for jobs with long intervals.
"""
LONGEST = 60.0
"""Seconds. A job that asks for a longer delay runs after this, so that a forgotten one is not kept for long."""
_YIELD_EVERY = 16
"""The number of jobs, some 0.7 ms, after which other tasks run: at 1,000 workloads a round takes a while."""


@attrs.define(eq=False)
class Job:
    """A recurring job of the sampler.

    work: runs it, and returns the seconds until the next run; infinity: until it is scheduled explicitly.
    """

    work: Callable[[], float]
    due: float = math.inf
    """The time of the next run on trio's clock; infinity: not scheduled."""
    ended: bool = False


class Sampler:
    """The schedule of all jobs. Its methods are for the trio thread only, and may be called by the jobs."""

    def __init__(self) -> None:
        self._plan: list[tuple[float, int, Job]] = []
        self._number = count()
        self._sooner = trio.Event()

    def plan(self, job: Job, delay: float) -> None:
        """Run the job after at most `delay` seconds, whatever was scheduled before; infinity cancels the run."""
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
        """Never run the job again, even if it is running now."""
        job.ended, job.due = True, math.inf

    async def run(self) -> None:
        """Run due jobs until cancelled."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._plan[0][0] if self._plan else math.inf):
                await self._sooner.wait()
            now, jobs_run = trio.current_time(), 0
            while self._plan and self._plan[0][0] <= now:
                due, _, job = heapq.heappop(self._plan)
                if job.due != due:
                    continue  # cancelled or rescheduled
                job.due = math.inf
                delay = job.work()
                if job.due == math.inf:
                    self.plan(job, delay)
                jobs_run += 1
                if jobs_run % _YIELD_EVERY == 0:
                    await trio.lowlevel.checkpoint()
