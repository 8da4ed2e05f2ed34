"""Sampling delays: short near a threshold, long far from it. Pure.

The kernel does not report levels, so the supervisor has to sample them. The delay depends on how far a value is from
the threshold of its comparison, as a fraction of the threshold, and on how soon it would arrive there at its latest
rate of change.
"""

from collections.abc import Mapping
from math import inf

from nsupervisor.config.condition_terms import PRESSURE_FILES, PROBE, UPTIME, needs_sampling
from nsupervisor.config.conditions import Atom
from nsupervisor.core.rules.rules import RATE_SPAN_S, Engine, Limits, Snapshot, threshold, with_host_totals

FASTEST_S, NEAR_S, SLOWEST_S = 0.05, 0.08, 2.0
"""Seconds between two samples of a value that approaches quickly, that is near, and that is far away."""
NEAR_FRACTION, FAR_FRACTION = 0.1, 0.6
"""Distances, as fractions of the threshold: up to the first a value is near, from the second on far."""
MOVING_COUNTER_S, STILL_COUNTER_S = 0.25, 1.0
"""Seconds between two samples of a counter that the kernel does not report: while it moves, and while it does not."""
PRESSURE_S = 0.5
"""Shortest delay for pressure averages, in seconds. The kernel updates them every 2 s."""


def next_sample_delay(
    engine: Engine, before: Snapshot, after: Snapshot, elapsed: float, limits: Limits, now: float
) -> float:
    """Compute the longest delay, in seconds, before the next sample of the levels.

    `before` and `after`: the last two samples, `elapsed` seconds apart; `engine` has observed both.
    """
    delay_s = inf
    limits = with_host_totals(limits, after)
    for rule, state in zip(engine.rules, engine.states, strict=True):
        for atom, atom_state in zip(rule.when.atoms, state.atoms, strict=True):
            if atom.kind == "level":
                delay = _level_delay(atom, before, after, elapsed, limits)
            elif atom.kind == "rate":
                delay = _rate_delay(atom, atom_state.rate)
            elif atom.kind == "counter" and needs_sampling(atom.file):
                delay = MOVING_COUNTER_S if _value(atom, before) != _value(atom, after) else STILL_COUNTER_S
            else:
                continue
            delay_s = min(delay_s, delay)
        if state.holding_since is not None and not rule.when.is_momentary:
            due_at = state.holding_since + rule.for_ if not state.has_fired else inf
            if state.fired_at is not None and rule.cooldown > 0:
                due_at = max(state.holding_since + rule.for_, state.fired_at + rule.cooldown)
            if due_at > now:
                delay_s = min(delay_s, max(due_at - now, FASTEST_S))
    return delay_s


def quiescent_until(engine: Engine, snapshot: Snapshot, limits: Limits, now: float) -> float:
    """Compute until when another observation of this snapshot, just observed, would not change the rules."""
    until = inf
    for rule, state in zip(engine.rules, engine.states, strict=True):
        if state.holding_since is not None and (rule.when.is_momentary or not state.has_fired or rule.cooldown > 0):
            return now
        for atom, atom_state in zip(rule.when.atoms, state.atoms, strict=True):
            if (atom.is_momentary and atom_state.is_true) or (atom.kind == "rate" and atom_state.rate != 0):
                return now
            value = _value(atom, snapshot) if atom.file == UPTIME else None
            limit = threshold(atom, limits) if value is not None else None
            if value is not None and limit is not None and value <= limit:
                until = min(until, now + limit - value)
    return until


def _level_delay(atom: Atom, before: Snapshot, after: Snapshot, elapsed: float, limits: Limits) -> float:
    if atom.file == PROBE:  # each result is shown to the rules
        return inf
    limit = threshold(atom, limits)
    value = _value(atom, after)
    if value is None or limit is None:
        return SLOWEST_S
    if atom.file == UPTIME:  # which is known in advance
        return limit - value + 0.001 if value <= limit else inf
    distance = abs(value - limit)
    is_adjacent = atom.file == "pids.current" and distance <= 1  # one more process crosses the threshold
    delay = NEAR_S if is_adjacent else delay_for_distance(distance, limit)
    earlier = _value(atom, before)
    if earlier is not None and earlier != value and elapsed > 0 and abs(earlier - limit) > distance:
        arrival_s = distance / (abs(value - earlier) / elapsed)
        delay = min(delay, max(FASTEST_S, arrival_s / 2))
    return max(delay, PRESSURE_S) if atom.file in PRESSURE_FILES else delay


def _rate_delay(atom: Atom, rate: float | None) -> float:
    assert atom.threshold is not None
    return (
        SLOWEST_S if rate is None else max(RATE_SPAN_S, delay_for_distance(abs(rate - atom.threshold), atom.threshold))
    )


def delay_for_distance(distance: float, limit: float) -> float:
    """Compute the delay, in seconds, for a constant value from its distance to the threshold."""
    fraction = distance / max(abs(limit), 1.0)
    if fraction <= NEAR_FRACTION:
        return NEAR_S
    return (
        SLOWEST_S
        if fraction >= FAR_FRACTION
        else NEAR_S + (SLOWEST_S - NEAR_S) * (fraction - NEAR_FRACTION) / (FAR_FRACTION - NEAR_FRACTION)
    )


def _value(atom: Atom, snapshot: Mapping[str, Mapping[str, float]]) -> float | None:
    values = snapshot.get(atom.file)
    return None if values is None else atom.value_in(values)
