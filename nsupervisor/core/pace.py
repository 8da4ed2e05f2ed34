"""How soon to look again: often where a rule is about to change its mind, seldom where it is far from that. Pure.

The kernel does not tell of levels, so they have to be sampled. What counts is how far a value is from the threshold of
its comparison, in parts of the threshold, and how long it would take to get there if it went on as it did lately.
"""

from collections.abc import Mapping
from math import inf

from nsupervisor.config.conditions import Atom
from nsupervisor.config.facts import PRESSURES, UPTIME, sampled
from nsupervisor.core.rules import RATE_SPAN, Engine, Limits, Snapshot, threshold, with_host

FASTEST, NEAR, SLOWEST = 0.05, 0.08, 2.0
"""Seconds between two samples: of what comes nearer quickly, of what is near, of what is far away."""
NEARBY, FAR = 0.1, 0.6
"""Distances, in parts of the threshold: up to the first it is near, from the second on far."""
COUNTING, STILL = 0.25, 1.0
"""Of a counter that nobody tells of: while it moves, and while it does not."""
AVERAGES = 0.5
"""The kernel makes the averages of pressure every 2 s; to look more often than this finds the same."""


def pace(engine: Engine, before: Snapshot, after: Snapshot, elapsed: float, limits: Limits, now: float) -> float:
    """Seconds after which to look at the levels again, at most.

    ``before`` and ``after``: the last two samples, ``elapsed`` seconds apart; ``engine`` has seen both.
    """
    soonest = inf
    limits = with_host(limits, after)
    for rule, memory in zip(engine.rules, engine.memories, strict=True):
        for atom, remembered in zip(rule.when.atoms, memory.atoms, strict=True):
            if atom.kind == "level":
                delay = _of_level(atom, before, after, elapsed, limits)
            elif atom.kind == "rate":
                delay = _of_rate(atom, remembered.rate)
            elif atom.kind == "counter" and sampled(atom.file):
                delay = COUNTING if _value(atom, before) != _value(atom, after) else STILL
            else:
                continue
            soonest = min(soonest, delay)
        if memory.since is not None and not rule.when.momentary:
            due = memory.since + rule.for_ if not memory.spent else inf
            if memory.fired_at is not None and rule.cooldown > 0:
                due = max(memory.since + rule.for_, memory.fired_at + rule.cooldown)
            if due > now:
                soonest = min(soonest, max(due - now, FASTEST))
    return soonest


def still_until(engine: Engine, snapshot: Snapshot, limits: Limits, now: float) -> float:
    """Until when the rules would learn nothing from seeing this snapshot, which they have just seen, once more."""
    until = inf
    for rule, memory in zip(engine.rules, engine.memories, strict=True):
        if memory.since is not None and (rule.when.momentary or not memory.spent or rule.cooldown > 0):
            return now
        for atom, remembered in zip(rule.when.atoms, memory.atoms, strict=True):
            if (atom.momentary and remembered.truth) or (atom.kind == "rate" and remembered.rate != 0):
                return now
            value = _value(atom, snapshot) if atom.file == UPTIME else None
            limit = threshold(atom, limits) if value is not None else None
            if value is not None and limit is not None and value <= limit:
                until = min(until, now + limit - value)
    return until


def _of_level(atom: Atom, before: Snapshot, after: Snapshot, elapsed: float, limits: Limits) -> float:
    limit = threshold(atom, limits)
    value = _value(atom, after)
    if value is None or limit is None:
        return SLOWEST
    if atom.file == UPTIME:  # which is known in advance
        return limit - value + 0.001 if value <= limit else inf
    distance = abs(value - limit)
    next_to_it = atom.file == "pids.current" and distance <= 1  # one more process crosses it
    delay = NEAR if next_to_it else by_distance(distance, limit)
    earlier = _value(atom, before)
    if earlier is not None and earlier != value and elapsed > 0 and abs(earlier - limit) > distance:
        arrives = distance / (abs(value - earlier) / elapsed)
        delay = min(delay, max(FASTEST, arrives / 2))
    return max(delay, AVERAGES) if atom.file in PRESSURES else delay


def _of_rate(atom: Atom, rate: float | None) -> float:
    assert atom.threshold is not None
    return SLOWEST if rate is None else max(RATE_SPAN, by_distance(abs(rate - atom.threshold), atom.threshold))


def by_distance(distance: float, limit: float) -> float:
    """Seconds for a value that stands still, from how far it is from its threshold."""
    part = distance / max(abs(limit), 1.0)
    if part <= NEARBY:
        return NEAR
    return SLOWEST if part >= FAR else NEAR + (SLOWEST - NEAR) * (part - NEARBY) / (FAR - NEARBY)


def _value(atom: Atom, snapshot: Mapping[str, Mapping[str, float]]) -> float | None:
    values = snapshot.get(atom.file)
    return None if values is None else atom.of(values)
