"""Compute the limits that the rule action `set` writes. Pure arithmetic."""

from collections.abc import Mapping
from math import inf

from nsupervisor.config.model import Rule
from nsupervisor.config.units import RelativeChange

LimitValues = Mapping[str, float | None]
"""Limits by key ("memory_high" → bytes, "cpu_max" → CPUs); None means no limit."""


def cgroup_file(key: str) -> str:
    """Return the cgroup file of an adjustable key: memory_swap_max → memory.swap.max."""
    return key.replace("_", ".")


def next_limits(rule: Rule, limits: LimitValues) -> dict[str, float | None]:
    """Compute the limits that the rule's `set` changes now, by key.

    Leaves out limits that are at their bound already, and limits that the host does not support.

    limits: the limits in force, by file; cpu.max as a number of CPUs.
    """
    changes: dict[str, float | None] = {}
    for key, target in rule.set_.items():
        if cgroup_file(key) not in limits:
            continue
        now = _number(limits[cgroup_file(key)])
        after = _clamp(now, _apply_target(now, target), key, rule)
        if after != now:
            changes[key] = None if after == inf else after
    return changes


def _apply_target(now: float, target: object) -> float:
    if not isinstance(target, RelativeChange):
        return _number(target)
    if now == inf:  # an unset limit can neither grow nor shrink
        return inf
    return max(0.0, now * (1 + target.percent / 100) if target.percent is not None else now + target.amount)


def _clamp(now: float, after: float, key: str, rule: Rule) -> float:
    """Clamp the new value to the rule's bound, and round it to a value that the kernel accepts.

    The bound holds for increases and for decreases.
    """
    bound = _number(rule.limit.get(key)) if key in rule.limit else None
    if bound is not None and after != now:
        after = min(after, max(bound, now)) if after > now else max(after, min(bound, now))
    if after == inf or key == "cpu_max":
        return after
    if key.startswith("memory_"):
        return after // PAGE_SIZE * PAGE_SIZE if after >= PAGE_SIZE or key in _MAY_BE_ZERO else float(PAGE_SIZE)
    rounded = round(after)
    if (
        rounded == now and isinstance(rule.set_[key], RelativeChange) and after != now
    ):  # 10% of 4 processes changes the limit by 1
        rounded += 1 if after > now else -1
    return float(max(1, rounded))


_MAY_BE_ZERO = ("memory_min", "memory_low", "memory_swap_max", "memory_zswap_max")
PAGE_SIZE = 4096
"""Bytes in a page. The kernel rounds memory limits down to pages; rounding first makes the value read back match."""


def _number(value: object) -> float:
    """Convert a limit to a number: no limit is infinity, a quota and its period are a number of CPUs."""
    if value is None:
        return inf
    if isinstance(value, tuple):
        quota, period = value
        return inf if quota is None else quota / period
    assert isinstance(value, int | float)
    return float(value)
