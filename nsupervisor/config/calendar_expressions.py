"""Calendar expressions, systemd.time(7) "Calendar Events": "Mon..Fri 06:00", "*-*-* 00/2:00:00", "*-*~01", "daily".

Pure. `parse_calendar` makes a `CalendarExpression`: for each field the numbers that match. The function that finds the
next match is `nsupervisor.core.timers.occurrences.next_after`. The message of each ValueError ends the sentence "THE
EXPRESSION …".

    [WEEKDAYS] [[YEAR-]MONTH-DAY] [HOUR:MINUTE[:SECOND]] [ZONE]

Each field is `*`, or a list of `N`, `N..M`, `N/STEP` and `N..M/STEP`. `~` in place of the last `-` counts the days from
the end of the month. Weekdays and dates must both match. Without a date each day matches, without a time midnight.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from nsupervisor.config.quoting import did_you_mean, quoted

YEARS = range(1970, 2200)
"""The years of calendar expressions, as in systemd."""
_MONTHS, _DAYS, _HOURS, _MINUTES = range(1, 13), range(1, 32), range(24), range(60)
_DAYS_FROM_END = range(1, 29)
"""The days that each month has, counted from its end."""
ALL_WEEKDAYS = frozenset(range(7))
WEEKDAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WORDS: Mapping[str, str] = {
    "minutely": "*-*-* *:*:00",
    "hourly": "*-*-* *:00:00",
    "daily": "*-*-* 00:00:00",
    "weekly": "Mon *-*-* 00:00:00",
    "monthly": "*-*-01 00:00:00",
    "quarterly": "*-01,04,07,10-01 00:00:00",
    **dict.fromkeys(("semiannually", "semi-annually", "biannually", "bi-annually"), "*-01,07-01 00:00:00"),
    **dict.fromkeys(("yearly", "annually"), "*-01-01 00:00:00"),
}
_ZONE = re.compile(r"(?P<rest>.*?)\s+(?P<zone>UTC|[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)+|[A-Z]{3,4})", re.DOTALL)
_EXAMPLE = 'write for example "Mon..Fri 06:00", "*-*-01 02:30:00" or "daily"'
_MAX_TEXT = 256
_MAX_DAYS = {4: 30, 6: 30, 9: 30, 11: 30, 2: 29}


class CalendarExpression(NamedTuple):
    """The numbers that match, for each field; all tuples are sorted and have at least one number."""

    text: str
    years: tuple[int, ...] = tuple(YEARS)
    months: tuple[int, ...] = tuple(_MONTHS)
    days: tuple[int, ...] = tuple(_DAYS)
    """Days of the month; with `from_end` 1 is the last one."""
    from_end: bool = False
    weekdays: frozenset[int] = ALL_WEEKDAYS
    """0 is Monday. A day matches if its weekday and its date do."""
    hours: tuple[int, ...] = (0,)
    minutes: tuple[int, ...] = (0,)
    seconds: tuple[int, ...] = (0,)
    time_zone: str = ""
    """The name of a time zone, "UTC", or "" for that of the timer."""

    @property
    def follows_real_time(self) -> bool:
        """Whether it names no hour, so that a change to or from daylight saving time does not concern it."""
        return len(self.hours) == len(_HOURS)


@lru_cache(maxsize=4096)
def parse_calendar(text: str) -> CalendarExpression:
    """Parse a calendar expression. Raises ValueError."""
    if len(text) > _MAX_TEXT:
        raise ValueError(f"is longer than {_MAX_TEXT} characters; write several expressions")
    rest, zone = _split_zone(text.strip())
    if not rest:
        raise ValueError(f"is empty; {_EXAMPLE}")
    weekdays, date, time = _split(_WORDS.get(rest.lower(), rest))
    fields: dict[str, Any] = {**_parse_weekdays(weekdays), **_parse_date(date), **_parse_time(time)}
    expression = CalendarExpression(text.strip(), time_zone=zone, **fields)
    check_possible(expression)
    return expression


def check_possible(expression: CalendarExpression) -> None:
    """Refuse dates that no year has, such as 30 February. Raises ValueError."""
    if expression.from_end:
        return
    if not any(day <= _MAX_DAYS.get(month, 31) for month, day in product(expression.months, expression.days)):
        raise ValueError("has only days that its months do not have; write a date that exists, or ~01 for the last day")
    if expression.months == (2,) and expression.days == (29,) and not any(map(is_leap, expression.years)):
        raise ValueError("has 29 February in years without one; write another date, or ~01 for the last day")


def is_leap(year: int) -> bool:
    """Return whether a year has 29 February."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _split_zone(text: str) -> tuple[str, str]:
    """Split the time zone off. Whether it exists is a fact of the host, which the caller checks."""
    if (match := _ZONE.fullmatch(text)) is None or match["zone"].lower() in _WORDS:
        return text, ""
    return match["rest"], match["zone"]


def _split(text: str) -> tuple[str, str, str]:
    """Split into weekdays, date and time, each of which may be missing ("")."""
    parts = text.split()
    weekdays = parts.pop(0) if parts and parts[0][0].isalpha() else ""
    time = parts.pop() if parts and ":" in parts[-1] else ""
    date = parts.pop(0) if parts else ""
    if parts:
        raise ValueError(f"has {quoted(parts[0])} where a time is expected; {_EXAMPLE}")
    if not weekdays and not time and date and "-" not in date and "~" not in date:
        raise ValueError(f"has {quoted(date)}, which is neither a date nor a time; {_EXAMPLE}")
    return weekdays, date, time


def _parse_weekdays(text: str) -> dict[str, object]:
    if not text:
        return {}
    days: set[int] = set()
    for part in text.removesuffix(",").split(","):
        first, *last = re.split(r"\.\.|-", part, maxsplit=1)
        begin = _weekday(first)
        end = _weekday(last[0]) if last else begin
        if end < begin:
            raise ValueError(f'has {quoted(part)}, but a week begins on Monday; write for example "Sat,Sun,Mon"')
        days.update(range(begin, end + 1))
    return {"weekdays": frozenset(days)}


def _weekday(text: str) -> int:
    for number, name in enumerate(WEEKDAY_NAMES):
        if text.lower() in (name, name[:3]):
            return number
    hint = did_you_mean(text.lower(), (*_WORDS, *(name[:3] for name in WEEKDAY_NAMES), *WEEKDAY_NAMES))
    raise ValueError(f"has {quoted(text)}, which is neither a weekday nor a word such as daily{hint}; {_EXAMPLE}")


def _parse_date(text: str) -> dict[str, object]:
    if not text:
        return {}
    match = re.fullmatch(r"(?:(?P<year>[^-~]+)-)?(?P<month>[^-~]+)(?P<mark>[-~])(?P<day>[^-~]+)", text)
    if match is None:
        raise ValueError(f'has {quoted(text)}, which is not a date; write for example "*-*-01", "12-24" or "*-*~01"')
    from_end = match["mark"] == "~"
    return {
        "years": _parse_field(match["year"] or "*", "year", YEARS),
        "months": _parse_field(match["month"], "month", _MONTHS),
        "days": _days_from_end(match["day"]) if from_end else _parse_field(match["day"], "day", _DAYS),
        "from_end": from_end,
    }


def _days_from_end(text: str) -> tuple[int, ...]:
    """Return the days of "~07/1", counted from the end of the month: a step goes towards the end."""
    if text == "*":
        raise ValueError('has "~*"; write "-*" for each day')
    days: set[int] = set()
    for part in text.split(","):
        start, stop, step = _parse_part(part, "day", _DAYS_FROM_END)
        if stop is not None:
            days.update(range(stop, start - 1, -step))
        else:
            days.update(range(start, 0, -step) if "/" in part else (start,))
    return tuple(sorted(days))


def _parse_time(text: str) -> dict[str, object]:
    if not text:
        return {}
    hour, minute, second, *more = [*text.split(":"), ""] if text.count(":") == 1 else text.split(":")
    if more:
        raise ValueError(f'has {quoted(text)}, which is not a time; write "HOUR:MINUTE" or "HOUR:MINUTE:SECOND"')
    if "." in second.replace("..", ""):
        raise ValueError(f"has {quoted(second)}, a part of a second; write whole seconds")
    return {
        "hours": _parse_field(hour, "hour", _HOURS),
        "minutes": _parse_field(minute, "minute", _MINUTES),
        "seconds": _parse_field(second, "second", _MINUTES) if text.count(":") == 2 else (0,),
    }


def _parse_field(text: str, name: str, numbers: range) -> tuple[int, ...]:
    if text == "*":
        return tuple(numbers)
    if text.startswith("*/"):
        raise ValueError(f'has "{text}" for the {name}; write "{numbers[0]}{text[1:]}"')
    matching: set[int] = set()
    for part in text.split(","):
        start, stop, step = _parse_part(part, name, numbers)
        last = stop if stop is not None else numbers[-1] if "/" in part else start
        matching.update(range(start, last + 1, step))
    return tuple(sorted(matching))


def _parse_part(text: str, name: str, numbers: range) -> tuple[int, int | None, int]:
    """Return start, stop (None: no range) and step of one element of a list."""
    match = re.fullmatch(r"([0-9]{1,4})(?:\.\.([0-9]{1,4}))?(?:/([0-9]{1,4}))?", text, re.ASCII)
    if match is None:
        raise ValueError(f'has {quoted(text)} for the {name}; write *, a number, "N..M", or "N/STEP"')
    start, stop = (_in_range(number, text, name, numbers) if number else None for number in match.group(1, 2))
    step = int(match[3] or 1)
    assert start is not None
    if stop is not None and stop < start:
        raise ValueError(f"has {quoted(text)} for the {name}, which ends before it begins; write two ranges")
    if step == 0:
        raise ValueError(f"has the step 0 in {quoted(text)} for the {name}; write at least 1")
    is_within = start - step >= 1 if numbers is _DAYS_FROM_END else start + step <= numbers[-1]
    if match[3] and stop is None and not is_within:
        raise ValueError(f"has a step in {quoted(text)} that leads out of the {name}s; write the number alone")
    return start, stop, step


def _in_range(text: str, part: str, name: str, numbers: range) -> int:
    number = int(text)
    if name == "year" and number < 100:
        number += 1900 if number >= 70 else 2000
    if number not in numbers:
        raise ValueError(
            f"has {quoted(part)} for the {name}, which is out of range; write {numbers[0]} to {numbers[-1]}"
        )
    return number
