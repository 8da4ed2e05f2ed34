"""The times at which calendar expressions match, with time zones and daylight saving time.

Pure: a time zone is an argument, and `tzinfo` objects of zoneinfo(3) compute. Instants are seconds since 1970 in UTC.

Daylight saving time changes local time in two ways, which have the names of PEP 495. In a *gap* the clock goes forward,
so some local times do not exist; in a *fold* it goes back, so some occur twice.

- An expression that names hours ("02:30") runs once for each local time: at the end of the gap if the time is in a gap,
  and the first time if it is in a fold. Several times in one gap are one occurrence.
- An expression for every hour ("*:0/15") follows real time: nothing is made up in a gap, and it runs in both passes of
  a fold.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo

from nsupervisor.config.calendar_expressions import CalendarExpression, is_leap

_EPOCH = datetime(1970, 1, 1)
_SECOND = timedelta(seconds=1)
_SCAN_S = 3 * 3600
"""Seconds within which a time zone has at most one change of its offset; no fold is longer."""


def next_of(expressions: Iterable[tuple[CalendarExpression, tzinfo]], after: float) -> int | None:
    """Return the first instant after `after` at which one of the expressions matches, each in its time zone."""
    instants = (next_after(expression, after, zone) for expression, zone in expressions)
    return min((instant for instant in instants if instant is not None), default=None)


def next_after(expression: CalendarExpression, after: float, zone: tzinfo = UTC) -> int | None:
    """Return the first instant later than `after` at which the expression matches; None if there is none.

    After the year 2199 nothing matches.
    """
    try:
        start = math.floor(after) + 1
        if expression.follows_real_time:
            return _next_in_real_time(expression, start, zone)
        return _next_once(expression, start, zone)
    except (OverflowError, ValueError):  # beyond the years of datetime
        return None


def matches(expression: CalendarExpression, local: datetime) -> bool:
    """Return whether a local time matches."""
    return next_local(expression, local) == local


def _next_once(expression: CalendarExpression, start: int, zone: tzinfo) -> int | None:
    """Find the first instant, `start` or later, of a local time that matches; each local time has one instant."""
    local = next_local(expression, _local(start, zone))
    while local is not None:
        instant = resolve(local, zone)
        if instant >= start:
            return instant
        local = next_local(expression, local + _SECOND)  # the first pass of a fold, and `start` is in the second
    return None


def _next_in_real_time(expression: CalendarExpression, start: int, zone: tzinfo) -> int | None:
    """Find the first instant, `start` or later, whose local time matches."""
    while (local := next_local(expression, _local(start, zone))) is not None:
        offset = _offset(start, zone)
        instant = _seconds(local) - offset
        horizon = min(instant, start + _SCAN_S)
        if _offset(horizon, zone) != offset:
            start = _change_within(start, horizon, zone)
        elif instant <= horizon:
            return instant
        else:  # no local time before `local` matches, so that a fold on the way there cannot repeat one that does
            start = max(horizon, resolve(local - timedelta(days=1), zone))
    return None


def resolve(local: datetime, zone: tzinfo) -> int:
    """Return the instant of a local time: the first one in a fold, and the end of the gap in a gap."""
    before = local.replace(tzinfo=zone, fold=0).utcoffset()
    assert before is not None
    instant = _seconds(local) - int(before.total_seconds())
    if _local(instant, zone) == local:
        return instant
    after = local.replace(tzinfo=zone, fold=1).utcoffset()
    assert after is not None
    return _change_within(_seconds(local) - int(after.total_seconds()) - 1, instant, zone)


def _change_within(low: int, high: int, zone: tzinfo) -> int:
    """Return the first instant in (low, high] with the offset of `high`, which differs from that of `low`."""
    offset = _offset(high, zone)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _offset(middle, zone) == offset else (middle, high)
    return high


def _offset(instant: int, zone: tzinfo) -> int:
    return _seconds(_local(instant, zone)) - instant


def _local(instant: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(instant, zone).replace(tzinfo=None, fold=0)


def _seconds(local: datetime) -> int:
    difference = local - _EPOCH
    return difference.days * 86_400 + difference.seconds


# ---- local time, without a time zone


def next_local(expression: CalendarExpression, start: datetime) -> datetime | None:
    """Return the first local time, `start` or later, that matches. Microseconds of `start` must be 0."""
    day = _next_day(expression, start.date())
    if day == start.date():
        if (time := _next_time(expression, start.hour, start.minute, start.second)) is not None:
            return datetime(day.year, day.month, day.day, *time)
        day = _next_day(expression, start.date() + timedelta(days=1))
    if day is None:
        return None
    return datetime(day.year, day.month, day.day, expression.hours[0], expression.minutes[0], expression.seconds[0])


def _next_time(expression: CalendarExpression, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
    """Return the first time of the day, this one or later, that matches; None if that is on another day."""
    hours, minutes, seconds = expression.hours, expression.minutes, expression.seconds
    if hour in hours:
        if minute in minutes and (found := _first(seconds, second)) is not None:
            return hour, minute, found
        if (found := _first(minutes, minute + 1)) is not None:
            return hour, found, seconds[0]
    if (found := _first(hours, hour + 1)) is not None:
        return found, minutes[0], seconds[0]
    return None


def _next_day(expression: CalendarExpression, start: date) -> date | None:
    for year in expression.years[bisect_left(expression.years, start.year) :]:
        month_start = start.month if year == start.year else 1
        for month in expression.months[bisect_left(expression.months, month_start) :]:
            first_weekday, length = date(year, month, 1).weekday(), _month_length(year, month)
            first = start.day if (year, month) == (start.year, start.month) else 1
            days = expression.days
            if expression.from_end:
                days = tuple(length + 1 - day for day in reversed(days))
            for day in days[bisect_left(days, first) :]:
                if day > length:
                    break
                if (first_weekday + day - 1) % 7 in expression.weekdays:
                    return date(year, month, day)
    return None


def _month_length(year: int, month: int) -> int:
    if month == 2:
        return 29 if is_leap(year) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _first(numbers: Sequence[int], minimum: int) -> int | None:
    index = bisect_left(numbers, minimum)
    return numbers[index] if index < len(numbers) else None
