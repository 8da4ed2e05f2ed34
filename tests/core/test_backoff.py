"""Delays stay within their bounds for any numbers."""

from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.core.backoff import JITTER_FRACTION, compute_delay, starts_within

SECONDS = st.floats(0.0, 1e6)
CHANCE = st.floats(0.0, 1.0, exclude_max=True)


@given(SECONDS, SECONDS, st.integers(0, 10**6), CHANCE)
def test_a_delay_stays_within_its_bounds(base, maximum, failures, jitter):
    full = min(base * 2.0 ** min(failures, 64), maximum)
    assert full * (1 - JITTER_FRACTION) <= compute_delay(base, maximum, failures, jitter) <= min(full, maximum)


@given(SECONDS, SECONDS, st.integers(0, 1000), CHANCE)
def test_a_further_failure_never_shortens_the_delay(base, maximum, failures, jitter):
    assert compute_delay(base, maximum, failures, jitter) <= compute_delay(base, maximum, failures + 1, jitter)


def test_zero_means_at_once():
    assert compute_delay(0.0, 30.0, 1000, 0.5) == 0.0


WHOLE = st.integers(0, 1000)


@given(st.lists(WHOLE), WHOLE, WHOLE)
def test_the_window_slides(starts, now, interval):
    assert list(starts_within(starts, now, interval)) == [start for start in starts if now - start < interval]
