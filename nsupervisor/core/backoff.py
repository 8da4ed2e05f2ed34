"""How long to wait before the next start, and when to give up. Pure arithmetic on seconds."""

from collections.abc import Sequence

JITTER = 0.25
"""The part of each delay that is left to chance, so that workloads that fell together do not rise together."""


def delay(base: float, maximum: float, failures: int, chance: float) -> float:
    """The wait, in seconds, before the start that follows ``failures`` earlier failures in a row.

    It doubles from ``base`` up to ``maximum``, then loses up to a quarter to ``chance`` (0 ≤ chance < 1), so it lies
    within ``[0.75 * d, d]`` for ``d = min(base * 2**failures, maximum)``.
    """
    # 2.0**1024 overflows; far below that every delay has long met any maximum that a person would write.
    full = min(base * 2.0 ** min(failures, 64), maximum)
    return full * (1 - JITTER * chance)


def within(starts: Sequence[float], now: float, interval: float) -> tuple[float, ...]:
    """Those of the ``starts`` that the sliding window ``(now - interval, now]`` still holds."""
    return tuple(start for start in starts if start > now - interval)
