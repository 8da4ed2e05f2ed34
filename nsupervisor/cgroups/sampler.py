"""A scheduler for recurring jobs: one task runs each job at its own interval and sleeps in between."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count

import attrs
import trio

TICK_S, SLOW_TICK_S = 0.05, 0.25
"""Tick lengths in seconds. Jobs due within the same tick run together, so that many jobs cause few wakeups.

The second one is for jobs with long intervals.
"""
MAX_DELAY_S = 60.0
"""Seconds. A job that asks for a longer delay runs after this, so that a forgotten one is not kept for long."""
_YIELD_EVERY = 16
"""The number of jobs, some 0.7 ms, after which other tasks run: at 1,000 workloads a round takes a while."""


@attrs.define(eq=False)
class SampleJob:
    """A recurring job of the sampler.

    work: runs it, and returns the seconds until the next run; infinity: until it is scheduled explicitly.
    """

    run: Callable[[], float]
    due_at: float = math.inf
    """The time of the next run on trio's clock; infinity: not scheduled."""
    is_cancelled: bool = False


class Sampler:
    """The schedule of all jobs. Its methods are for the trio thread only, and may be called by the jobs."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, SampleJob]] = []
        self._sequence = count()
        self._earlier_due = trio.Event()

    def schedule(self, job: SampleJob, delay: float) -> None:
        """Run the job after at most `delay` seconds, whatever was scheduled before; infinity cancels the run."""
        if delay == math.inf or job.is_cancelled:
            job.due_at = math.inf
            return
        now = trio.current_time()
        due = now + min(delay, MAX_DELAY_S)
        tick = SLOW_TICK_S if delay >= 4 * SLOW_TICK_S else TICK_S
        if delay >= 2 * tick:
            due = math.floor(due / tick) * tick
        job.due_at = due
        if not self._queue or due < self._queue[0][0]:
            self._earlier_due.set()
        heapq.heappush(self._queue, (due, next(self._sequence), job))

    def cancel(self, job: SampleJob) -> None:
        """Never run the job again, even if it is running now."""
        job.is_cancelled, job.due_at = True, math.inf

    async def run(self) -> None:
        """Run due jobs until cancelled."""
        while True:
            self._earlier_due = trio.Event()
            with trio.move_on_at(self._queue[0][0] if self._queue else math.inf):
                await self._earlier_due.wait()
            now, jobs_run = trio.current_time(), 0
            while self._queue and self._queue[0][0] <= now:
                due, _, job = heapq.heappop(self._queue)
                if job.due_at != due:
                    continue  # cancelled or rescheduled
                job.due_at = math.inf
                delay = job.run()
                if job.due_at == math.inf:
                    self.schedule(job, delay)
                jobs_run += 1
                if jobs_run % _YIELD_EVERY == 0:
                    await trio.lowlevel.checkpoint()
