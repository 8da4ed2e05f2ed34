"""Calendar expressions: what they mean, and the messages about those that are wrong."""

import re

import pytest

from nsupervisor.config.calendar_expressions import ALL_WEEKDAYS, parse_calendar


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("daily", {"hours": (0,), "minutes": (0,), "seconds": (0,), "weekdays": ALL_WEEKDAYS}),
        ("Weekly", {"weekdays": {0}, "hours": (0,)}),
        ("hourly", {"hours": tuple(range(24)), "minutes": (0,)}),
        ("quarterly", {"months": (1, 4, 7, 10), "days": (1,)}),
        ("06:00", {"hours": (6,), "minutes": (0,), "seconds": (0,), "days": tuple(range(1, 32))}),
        ("Mon..Fri 06:00", {"weekdays": {0, 1, 2, 3, 4}, "hours": (6,)}),
        ("mon-wednesday,Sat 06:00:30", {"weekdays": {0, 1, 2, 5}, "seconds": (30,)}),
        ("Sun", {"weekdays": {6}, "hours": (0,)}),
        ("*-*-* 00/2:00:00", {"hours": tuple(range(0, 24, 2))}),
        ("*-*-* 00,12:00:00", {"hours": (0, 12)}),
        ("*:0/15", {"hours": tuple(range(24)), "minutes": (0, 15, 30, 45), "seconds": (0,)}),
        ("*-*~01", {"days": (1,), "from_end": True}),
        ("*-02~03..05", {"months": (2,), "days": (3, 4, 5), "from_end": True}),
        ("Mon *-05~07/1", {"days": (1, 2, 3, 4, 5, 6, 7), "from_end": True, "weekdays": {0}}),
        ("12-24 18:00", {"months": (12,), "days": (24,), "hours": (18,)}),
        ("26-12-24", {"years": (2026,), "hours": (0,)}),
        ("2026..2028/2-1-1", {"years": (2026, 2028)}),
        ("*-*-1..7,20 8..17/4:30", {"days": (*range(1, 8), 20), "hours": (8, 12, 16), "minutes": (30,)}),
        ("02:30 Europe/Berlin", {"time_zone": "Europe/Berlin", "hours": (2,)}),
        ("daily UTC", {"time_zone": "UTC", "hours": (0,)}),
    ],
)
def test_an_expression_is_a_set_of_numbers_for_each_field(text: str, fields: dict[str, object]) -> None:
    expression = parse_calendar(text)
    assert {name: getattr(expression, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("dayly", 'has "dayly", which is neither a weekday nor a word such as daily, did you mean "daily"?'),
        ("Fri..Mon 06:00", "a week begins on Monday"),
        ("*-13-01", 'has "13" for the month, which is out of range; write 1 to 12'),
        ("25:00", 'has "25" for the hour, which is out of range; write 0 to 23'),
        ("12:60", "for the minute, which is out of range; write 0 to 59"),
        ("*-02-30", "has only days that its months do not have"),
        ("2027-02-29", "has 29 February in years without one"),
        ("*/5:00", 'has "*/5" for the hour; write "0/5"'),
        ("*:*/10", 'has "*/10" for the minute; write "0/10"'),
        ("*:0/0", "has the step 0"),
        ("*:50/20", "leads out of the minutes"),
        ("5..3:00", "ends before it begins"),
        ("12:00:00.5", "a part of a second"),
        ("1:2:3:4", "is not a time"),
        ("17", "neither a date nor a time"),
        ("*-*-*-*", "is not a date"),
        ("06:00 Mon", 'has "Mon" where a time is expected'),
        ("*-*~*", 'has "~*"'),
        ("*-*~31", "which is out of range; write 1 to 28"),
        ("9" * 300, "is longer than 256 characters"),
        ("x" * 20 + ":00", "which is neither a weekday"),
        ("1000000000000:00", "for the hour"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_calendar(text)
