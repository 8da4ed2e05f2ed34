"""Measurements of the service itself: histograms of event loop lag, rule reactions and keeper requests."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter

import trio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsupervisor.keeper.reconnecting import ReconnectingKeeper

LOOP_LAG_BOUNDS_S = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
REACTION_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
KEEPER_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)


class Histogram:
    """Counts of values by ascending upper bounds, in seconds, and the sum of all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """For each bound, the number of values up to it and above the previous bound; the last: above all bounds."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value, in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        """Return a copy with the present counts."""
        duplicate = Histogram(self.bounds)
        duplicate.counts, duplicate.sum = self.counts.copy(), self.sum
        return duplicate


class LoopLag(trio.abc.Instrument):
    """Measures how long each tick of the event loop takes, from one poll of the kernel's I/O events to the next.

    Events that arrive meanwhile wait, so this is the lag of the loop. A task that sleeps and measures how late it wakes
    would measure less, and would wake an idle service. This instrument costs a microsecond per tick.
    """

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._tick_started: float | None = None

    def after_io_wait(self, timeout: float) -> None:
        """Note the begin of a tick."""
        self._tick_started = perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """Record the duration of the tick that ends."""
        if self._tick_started is not None:
            self._histogram.observe(perf_counter() - self._tick_started)


class Measures:
    """All measurements of the service."""

    def __init__(self) -> None:
        self.loop_lag = Histogram(LOOP_LAG_BOUNDS_S)
        self.reaction = Histogram(REACTION_BOUNDS_S)
        self.keeper_round_trip: dict[str, Histogram] = {}
        """By the request's wire name, such as "spawn"."""

    def start(self, keeper: ReconnectingKeeper) -> None:
        """Start to measure the event loop of the calling task, until it ends, and the replies of `keeper`."""
        trio.lowlevel.add_instrument(LoopLag(self.loop_lag))
        keeper.on_answer = self.record_keeper_reply

    def record_reaction(self, since: float) -> None:
        """Record that a rule's action begins now. `since`: when its cause was read, on `time.perf_counter`."""
        self.reaction.observe(perf_counter() - since)

    def record_keeper_reply(self, request: str, seconds: float) -> None:
        """Record the seconds that the keeper took to reply to a request."""
        histogram = self.keeper_round_trip.get(request)
        if histogram is None:
            histogram = self.keeper_round_trip[request] = Histogram(KEEPER_BOUNDS_S)
        histogram.observe(seconds)
