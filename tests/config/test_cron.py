"""Cron lines: what they mean, and the messages about those that are wrong."""

import re

import pytest

from nsupervisor.config.cron import parse_cron


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0 2 * * *", {"minutes": (0,), "hours": (2,), "seconds": (0,)}),
        ("*/20 * * * *", {"minutes": (0, 20, 40), "hours": tuple(range(24))}),
        ("5/20 * * * *", {"minutes": (5, 25, 45)}),
        ("0 8-17/4 * * MON-FRI", {"hours": (8, 12, 16), "weekdays": {0, 1, 2, 3, 4}}),
        ("0 0 * * 7", {"weekdays": {6}}),
        ("0 0 * * 0", {"weekdays": {6}}),
        ("0 0 * * 5-7", {"weekdays": {4, 5, 6}}),
        ("0 0 1,15 jan-mar *", {"months": (1, 2, 3), "days": (1, 15)}),
        ("@daily", {"hours": (0,), "minutes": (0,)}),
        ("@weekly", {"weekdays": {6}}),
        ("0 0 */2 * 1", {"days": tuple(range(1, 32, 2)), "weekdays": {0}}),
    ],
)
def test_a_line_is_a_set_of_numbers_for_each_field(text: str, fields: dict[str, object]) -> None:
    (expression,) = parse_cron(text)
    assert {name: getattr(expression, name) for name in fields} == fields


def test_a_day_of_the_month_or_a_weekday_matches() -> None:
    by_day, by_weekday = parse_cron("0 0 13 * FRI")
    assert (by_day.days, len(by_day.weekdays)) == ((13,), 7)
    assert (len(by_weekday.days), by_weekday.weekdays) == (31, {4})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has 0 fields instead of 5"),
        ("0 0 2 * * *", "has 6 fields instead of 5"),
        ("60 * * * *", 'has "60" for the minute, which is out of range; write 0 to 59'),
        ("* * * foo *", 'has "foo" for the month, which is not a number'),
        ("* * * * mo", 'has "mo" for the weekday, which is not a number, did you mean "mon"?'),
        ("*-5 * * * *", 'has "*-5" for the minute'),
        ("*/0 * * * *", "has the step 0"),
        ("5-3 * * * *", "ends before it begins"),
        ("* * 30 2 *", "has only days that its months do not have"),
        ("@reboot", "write on_startup_sec = 0"),
        ("@dayly", 'did you mean "@daily"?'),
        ("1, * * * *", 'has "" for the minute'),
    ],
)
def test_a_wrong_line_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_cron(text)
