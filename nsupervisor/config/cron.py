"""The five time fields of a cron line, crontab(5), as calendar expressions.

Pure. A cron line is one or two `CalendarExpression`: two if both the day of the month and the weekday are restricted,
since a day matches then if one of them does. So cron lines and calendar expressions have the same times, daylight
saving time included. The message of each ValueError ends the sentence "THE LINE …".

    MINUTE HOUR DAY MONTH WEEKDAY       or @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from nsupervisor.config.calendar_expressions import (
    ALL_WEEKDAYS,
    WEEKDAY_NAMES,
    CalendarExpression,
    check_possible,
)
from nsupervisor.config.quoting import did_you_mean, quoted

_WORDS: Mapping[str, str] = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY_NAMES = ("sun", *(name[:3] for name in WEEKDAY_NAMES))  # 0 and 7 are both Sunday
_EXAMPLE = 'write minute, hour, day, month and weekday, for example "30 2 * * MON-FRI"'


@lru_cache(maxsize=4096)
def parse_cron(text: str) -> tuple[CalendarExpression, ...]:
    """Parse a cron line; a time matches if it matches one of the expressions. Raises ValueError."""
    text = text.strip()
    if text.startswith("@"):
        if text.lower() == "@reboot":
            raise ValueError("has no times; write on_startup_sec = 0 in its place")
        if text.lower() not in _WORDS:
            raise ValueError(f"is not a word of cron{did_you_mean(text.lower(), tuple(_WORDS))}; {_EXAMPLE}")
    fields = _WORDS.get(text.lower(), text).split()
    if len(fields) != 5:
        raise ValueError(f"has {len(fields)} fields instead of 5; {_EXAMPLE}")
    minute, hour, day, month, weekday = fields
    minutes = _parse_field(minute, "minute", range(60))
    hours = _parse_field(hour, "hour", range(24))
    days = _parse_field(day, "day", range(1, 32))
    months = _parse_field(month, "month", range(1, 13), _MONTH_NAMES)
    # Python's weekday 0 is Monday.
    weekdays = frozenset((number - 1) % 7 for number in _parse_field(weekday, "weekday", range(8), _DAY_NAMES))
    every_day = tuple(range(1, 32))
    if day.startswith("*") or weekday.startswith("*"):
        chosen: Sequence[tuple[tuple[int, ...], frozenset[int]]] = ((days, weekdays),)
    else:
        chosen = ((days, ALL_WEEKDAYS), (every_day, weekdays))
    expressions = tuple(
        CalendarExpression(
            text, months=months, days=days, weekdays=weekdays, hours=hours, minutes=minutes, seconds=(0,)
        )
        for days, weekdays in chosen
    )
    if len(expressions) == 1:
        check_possible(expressions[0])
    return expressions


def _parse_field(text: str, name: str, numbers: range, names: Sequence[str] = ()) -> tuple[int, ...]:
    matching: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\*|[0-9a-z]+)(?:-([0-9a-z]+))?(?:/([0-9]{1,4}))?", part, re.ASCII | re.IGNORECASE)
        if match is None or (match[1] == "*" and match[2]):
            raise ValueError(f'has {quoted(part)} for the {name}; write *, a number, "N-M", or "*/STEP"')
        if match[1] == "*":
            first, last = numbers[0], numbers[-1]
            if name == "weekday":
                last = 6  # so that a step does not count Sunday twice
        else:
            first = _number(match[1], part, name, numbers, names)
            last = _number(match[2], part, name, numbers, names) if match[2] else numbers[-1] if match[3] else first
        if last < first:
            raise ValueError(f"has {quoted(part)} for the {name}, which ends before it begins; write two ranges")
        step = int(match[3] or 1)
        if step == 0:
            raise ValueError(f"has the step 0 in {quoted(part)} for the {name}; write at least 1")
        matching.update(range(first, last + 1, step))
    return tuple(sorted(matching))


def _number(text: str, part: str, name: str, numbers: range, names: Sequence[str]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + (1 if name == "month" else 0)
    if not text.isdecimal():
        hint = did_you_mean(text.lower(), names) if names else ""
        raise ValueError(
            f"has {quoted(part)} for the {name}, which is not a number{hint}; write {numbers[0]} to {numbers[-1]}"
        )
    if len(text) > 4 or int(text) not in numbers:
        raise ValueError(
            f"has {quoted(part)} for the {name}, which is out of range; write {numbers[0]} to {numbers[-1]}"
        )
    return int(text)
