"""What is measured of the service itself: three histograms, fed where the thing happens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from time import perf_counter

import trio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsupervisor.service.kept import Kept

LOOP_BOUNDS = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
REACTION_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
KEEPER_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)


class Histogram:
    """How often a value was at most each of the bounds (seconds, ascending), and the sum of all values."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How many values are above the bound before and at most this one; the last: above all bounds."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Take in a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Histogram:
        """As it is now."""
        other = Histogram(self.bounds)
        other.counts, other.sum = self.counts.copy(), self.sum
        return other


class Turns(trio.abc.Instrument):
    """Measures how long each turn of the event loop takes, from one look at what the kernel has to say to the next.

    What happens meanwhile waits, so this is the loop's lag. A task that sleeps and sees how late it wakes would
    measure less, and would wake an idle service; this costs a microsecond a turn, and nothing when there are none.
    """

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._began: float | None = None

    def after_io_wait(self, timeout: float) -> None:
        """The turn begins."""
        self._began = perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """It has ended."""
        if self._began is not None:
            self._histogram.observe(perf_counter() - self._began)


class Measures:
    """All of them."""

    def __init__(self) -> None:
        self.loop = Histogram(LOOP_BOUNDS)
        self.reaction = Histogram(REACTION_BOUNDS)
        self.keeper: dict[str, Histogram] = {}
        """By what the keeper was asked to do."""

    def begin(self, keeper: Kept) -> None:
        """Measure the event loop that this is called in, until it ends, and the keeper's answers."""
        trio.lowlevel.add_instrument(Turns(self.loop))
        keeper.on_answer = self.keeper_answered

    def reacted(self, since: float) -> None:
        """An action of a rule begins now, for what was read at `since` (`time.perf_counter`)."""
        self.reaction.observe(perf_counter() - since)

    def keeper_answered(self, request: str, seconds: float) -> None:
        """The keeper has answered."""
        histogram = self.keeper.get(request)
        if histogram is None:
            histogram = self.keeper[request] = Histogram(KEEPER_BOUNDS)
        histogram.observe(seconds)
