"""Timers for people: the table, the line in the details of a workload, and the next times of an expression."""

from __future__ import annotations

from datetime import datetime, tzinfo

from nsupervisor.terminal.numbers import format_duration
from nsupervisor.terminal.style import FAINT, RED, colorize
from nsupervisor.terminal.table import format_table

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

HEADS = ("NEXT", "LEFT", "LAST", "PASSED", "WORKLOAD", "RESULT")


def timer_lines(timers: Sequence[dict[str, Any]], width: int, colour: bool) -> list[str]:
    """Return the lines of the table, the next one first. Times are local. width: of the terminal, 0 if unknown."""

    def paint(column: int, value: str, padded: str) -> str:
        is_failure = column == 5 and value.startswith(("exit code", "SIG")) and value != "exit code 0"
        return colorize(padded, FAINT if column == -1 else RED if is_failure else "", colour)

    ordered = sorted(timers, key=lambda timer: (timer["next_at"] is None, timer["next_at"] or 0))
    rows = [
        (
            _format_moment(timer["next_at"]),
            format_duration(timer["left_sec"]),
            _format_moment(timer["last_at"]),
            format_duration(timer["passed_sec"]),
            timer["name"],
            _format_result(timer),
        )
        for timer in ordered
    ]
    return format_table(HEADS, rows, right=(1, 3), width=width, paint=paint)


def describe_timer(timer: dict[str, Any]) -> str:
    """Return a sentence about when it runs next, and what became of the last time."""
    times = ", ".join(timer["times"])
    if not timer["armed"]:
        return f"{times}: not armed ({timer['latest']})"
    text = times
    if timer["suspended"]:
        text += ": suspended"
    elif timer["next_at"] is None:
        text += ": no further run"
    else:
        text += f": next {_format_moment(timer['next_at'])}, in {format_duration(timer['left_sec'])}"
    return f"{text}; the latest: {timer['latest']}" if timer["latest"] else text


def next_times(text: str, count: int, zone: tzinfo, after: float) -> Iterator[str]:
    """Yield lines with the next times of a calendar expression or a cron line. Raises ValueError and LookupError."""
    from nsupervisor.config.calendar_expressions import CalendarExpression, parse_calendar
    from nsupervisor.config.cron import parse_cron
    from nsupervisor.core.timers.occurrences import next_of
    from nsupervisor.service.platform.timer_zones import find_zone

    is_cron = text.strip().startswith("@") or len(text.split()) >= 5
    parsed: tuple[CalendarExpression, ...] = parse_cron(text) if is_cron else (parse_calendar(text),)
    expressions = [(one, find_zone(one.time_zone) if one.time_zone else zone) for one in parsed]
    now, moment = after, after
    for number in range(count):
        found = next_of(expressions, moment)
        if found is None:
            yield "no further time" if number else "never"
            return
        moment = found
        local = datetime.fromtimestamp(found, expressions[0][1])
        yield f"{local:%a %Y-%m-%d %H:%M:%S %Z}  in {format_duration(found - now)}"


def _format_moment(moment: float | None) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment):%a %Y-%m-%d %H:%M:%S}"


def _format_result(timer: dict[str, Any]) -> str:
    if not timer["armed"]:
        return "not armed"
    if timer["running"]:
        return "running"
    return str(timer["last_exit"] or timer["latest"] or "-")
