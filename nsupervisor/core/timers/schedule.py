"""The times of one timer: its expressions, each with its time zone, and its stable offset. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import tzinfo

import attrs

from nsupervisor.config.calendar_expressions import CalendarExpression, parse_calendar
from nsupervisor.config.cron import parse_cron
from nsupervisor.config.timers import TimerConfig
from nsupervisor.core.timers.occurrences import next_of

LATE_AFTER_S = 60.0
"""Seconds after which an occurrence counts as missed, unless the configuration says otherwise. As systemd's default of
AccuracySec."""


@attrs.frozen
class Schedule:
    """The configuration of a timer, ready for decisions."""

    timer: TimerConfig
    expressions: tuple[tuple[CalendarExpression, tzinfo], ...] = ()
    offset: float = 0.0
    """Seconds by which each run is later than its occurrence."""

    @property
    def tolerance(self) -> float:
        """Seconds by which a run may be late; a later one is missed."""
        if self.timer.starting_deadline_sec is not None:
            return self.timer.starting_deadline_sec
        return float("inf") if self.timer.persistent else LATE_AFTER_S

    def next_occurrence(self, after: float) -> int | None:
        """Return the first occurrence later than `after`; None if there is none."""
        return next_of(self.expressions, after)


def make_schedule(timer: TimerConfig, name: str, machine_id: str, zone: Callable[[str], tzinfo]) -> Schedule:
    """Make the schedule of the timer of the workload `name`.

    zone: returns the time zone of a name, that of the host for "". Raises LookupError if it does not know the name.
    """
    expressions = [
        *(parse_calendar(text) for text in timer.on_calendar),
        *(expression for text in timer.cron for expression in parse_cron(text)),
    ]
    zones = {name: zone(name) for name in {one.time_zone or timer.timezone or "" for one in expressions}}
    return Schedule(
        timer,
        tuple((one, zones[one.time_zone or timer.timezone or ""]) for one in expressions),
        stable_fraction(name, machine_id) * timer.randomized_offset_sec,
    )


def stable_fraction(name: str, machine_id: str) -> float:
    """Return a number from [0, 1) that depends on the host and the name alone, as systemd's FixedRandomDelay=."""
    digest = hashlib.blake2b(f"{machine_id}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)
