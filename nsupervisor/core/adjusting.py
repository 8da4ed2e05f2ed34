"""The action ``set``: from what a limit is now to what a rule makes of it. Pure arithmetic."""

from collections.abc import Mapping
from math import inf

from nsupervisor.config.model import Rule
from nsupervisor.config.units import Relative

Settings = Mapping[str, float | None]
"""Limits by key ("memory_high" → bytes, "cpu_max" → CPUs); None is no limit."""


def file_of(key: str) -> str:
    """The cgroup file of a key that can be adjusted: memory_swap_max → memory.swap.max."""
    return key.replace("_", ".")


def adjusted(rule: Rule, limits: Settings) -> dict[str, float | None]:
    """What ``set`` is to change now, by key. What is at its bound is left out, and so is what the host has not.

    ``limits``: what is in force, by file; cpu.max as a number of CPUs.
    """
    found: dict[str, float | None] = {}
    for key, wanted in rule.set_.items():
        if file_of(key) not in limits:
            continue
        now = _number(limits[file_of(key)])
        after = _bounded(now, _applied(now, wanted), key, rule)
        if after != now:
            found[key] = None if after == inf else after
    return found


def _applied(now: float, wanted: object) -> float:
    if not isinstance(wanted, Relative):
        return _number(wanted)
    if now == inf:  # nothing can be added to no limit, nor taken away from it
        return inf
    return max(0.0, now * (1 + wanted.percent / 100) if wanted.percent is not None else now + wanted.amount)


def _bounded(now: float, after: float, key: str, rule: Rule) -> float:
    """Not past the bound, whichever side it comes from; and in the steps that the kernel counts in."""
    bound = _number(rule.limit.get(key)) if key in rule.limit else None
    if bound is not None and after != now:
        after = min(after, max(bound, now)) if after > now else max(after, min(bound, now))
    if after == inf or key == "cpu_max":
        return after
    if key.startswith("memory_"):
        return after // PAGE * PAGE if after >= PAGE or key in _MAY_BE_NOTHING else float(PAGE)
    rounded = round(after)
    if rounded == now and isinstance(rule.set_[key], Relative) and after != now:  # a tenth of 4 processes is one, too
        rounded += 1 if after > now else -1
    return float(max(1, rounded))


_MAY_BE_NOTHING = ("memory_min", "memory_low", "memory_swap_max", "memory_zswap_max")
PAGE = 4096
"""The kernel rounds limits of memory down to pages; so what is read back is what was meant."""


def _number(value: object) -> float:
    """A limit as a number: no limit is infinity, a quota and its period are a number of CPUs."""
    if value is None:
        return inf
    if isinstance(value, tuple):
        quota, period = value
        return inf if quota is None else quota / period
    assert isinstance(value, int | float)
    return float(value)
