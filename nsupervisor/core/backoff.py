"""Restart delays and the start limit window. Pure arithmetic on seconds."""

from collections.abc import Sequence

JITTER_FRACTION = 0.25
"""Largest fraction of a delay that jitter removes, so that workloads that failed together do not restart together."""

UNLIMITED_BASE_S = 0.1
"""Shortest base, in seconds, of the delays after the first one of a workload without a start limit."""


def compute_delay(base: float, maximum: float, consecutive_failures: int, jitter: float) -> float:
    """Compute the delay, in seconds, before the start that follows `consecutive_failures` consecutive failures.

    The delay doubles from `base` up to `maximum`, then loses up to a quarter to `jitter` (0 ≤ jitter < 1), so it
    lies within `[0.75 * d, d]` for `d = min(base * 2**consecutive_failures, maximum)`.
    """
    # 2.0**1024 overflows; at 2.0**64 every delay has reached any realistic maximum.
    full = min(base * 2.0 ** min(consecutive_failures, 64), maximum)
    return full * (1 - JITTER_FRACTION * jitter)


def starts_within(starts: Sequence[float], now: float, interval: float) -> tuple[float, ...]:
    """Return the `starts` that lie in the sliding window `(now - interval, now]`."""
    return tuple(start for start in starts if start > now - interval)
