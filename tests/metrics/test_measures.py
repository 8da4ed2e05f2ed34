"""Histograms add up, and the loop's lag is how long a turn takes."""

import time
from functools import reduce
from operator import add

import trio
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.metrics.measures import Histogram, LoopLag

seconds = st.floats(0, 100, allow_nan=False)


@given(st.lists(seconds, unique=True, max_size=5).map(sorted), st.lists(seconds))
def test_each_count_is_of_the_values_up_to_its_bound(bounds, values):
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    for i, bound in enumerate(bounds):
        assert sum(histogram.counts[: i + 1]) == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)
    assert histogram.sum == reduce(add, values, 0.0)  # since Python 3.12, sum() rounds once at the end


def test_a_copy_stays_as_it_was():
    histogram = Histogram((1.0,))
    copy = histogram.copy()
    histogram.observe(0.5)
    assert (copy.counts, copy.sum) == ([0, 0], 0.0)


def test_a_turn_that_takes_long_is_seen_and_sleeping_is_not():
    histogram = Histogram((0.04,))

    async def main():
        trio.lowlevel.add_instrument(LoopLag(histogram))
        began = time.perf_counter()
        await trio.sleep(0.5)
        before = histogram.counts[1]
        time.sleep(0.05)  # noqa: ASYNC251 - it is what must not happen
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        assert histogram.counts[1] > before
        assert 0.05 < histogram.sum < time.perf_counter() - began - 0.49

    trio.run(main)
