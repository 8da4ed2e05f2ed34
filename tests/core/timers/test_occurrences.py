"""The next match of a calendar expression: by definition, in time zones, and compared with systemd and cronsim."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nsupervisor.config.calendar_expressions import CalendarExpression, parse_calendar
from nsupervisor.config.cron import parse_cron
from nsupervisor.core.timers.occurrences import matches, next_after, next_local, next_of, resolve
from tests.core.timers.calendar_strategies import ZONES, calendar_texts, cron_texts

BERLIN = ZoneInfo("Europe/Berlin")
instants = st.integers(1_600_000_000, 2_000_000_000)
near_changes = st.builds(
    lambda change, delta: change + delta,
    st.sampled_from(
        [
            1_774_746_000,  # Europe, 29 March 2026, 01:00 UTC: forward
            1_792_890_000,  # Europe, 25 October 2026, 01:00 UTC: back
            1_775_315_400,  # Lord Howe, 4 April 2026: back by half an hour
            1_788_667_200,  # Santiago, 6 September 2026, at midnight: forward
        ]
    ),
    st.integers(-90_000, 90_000),
)


def parsed(text: str) -> CalendarExpression:
    try:
        return parse_calendar(text)
    except ValueError:  # only dates that do not exist
        assume(False)
        raise


def local_times(text: str, start: str, count: int, zone: ZoneInfo = BERLIN) -> list[str]:
    expression = parse_calendar(text)
    after: float | None = datetime.fromisoformat(start).replace(tzinfo=zone).timestamp()
    times = []
    for _ in range(count):
        assert after is not None
        after = next_after(expression, after, zone)
        assert after is not None
        times.append(datetime.fromtimestamp(after, zone).isoformat(" ", "minutes"))
    return times


@given(calendar_texts(), instants)
@settings(max_examples=150, deadline=None)
def test_nothing_between_an_instant_and_the_next_match_matches(text: str, after: int) -> None:
    expression = parsed(text)
    found = next_after(expression, after, UTC)
    if found is None:
        return
    assert found > after
    assert matches(expression, datetime.fromtimestamp(found, UTC).replace(tzinfo=None))
    days = range(after // 86_400, found // 86_400 + 1)
    for day in (*days[:400], *days[-400:]):  # each day in between, by definition
        date = datetime(1970, 1, 1) + timedelta(days=day)
        length = (date.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
        number = length.day + 1 - date.day if expression.from_end else date.day
        is_match = (
            date.year in expression.years
            and date.month in expression.months
            and number in expression.days
            and date.weekday() in expression.weekdays
        )
        if is_match:
            seconds = [
                day * 86_400 + hour * 3600 + minute * 60 + second
                for hour in expression.hours
                for minute in expression.minutes
                for second in (expression.seconds[0], expression.seconds[-1])
            ]
            assert not [second for second in seconds if after < second < found]


@given(calendar_texts(), near_changes, st.sampled_from(ZONES))
@settings(max_examples=200, deadline=None)
def test_each_second_near_a_change_of_the_offset_agrees_with_the_definition(text: str, after: int, name: str) -> None:
    """Compare with a search through each second of the next hours."""
    zone, expression = ZoneInfo(name), parsed(text)
    found = next_after(expression, after, zone)
    horizon = min(found - 1 if found is not None else after + 5000, after + 5000)
    for instant in range(after + 1, horizon + 1):
        assert not is_occurrence(expression, instant, zone), datetime.fromtimestamp(instant, zone)
    assert found is None or is_occurrence(expression, found, zone)


def is_occurrence(expression: CalendarExpression, instant: int, zone: ZoneInfo) -> bool:
    aware = datetime.fromtimestamp(instant, zone)
    local = aware.replace(tzinfo=None, fold=0)
    if expression.follows_real_time:
        return matches(expression, local)
    if aware.fold:
        return False
    if matches(expression, local):
        return True
    before = datetime.fromtimestamp(instant - 1, zone).replace(tzinfo=None, fold=0)
    in_gap = next_local(expression, before + timedelta(seconds=1))
    return in_gap is not None and in_gap < local  # a time in the gap that ends here


@given(instants, st.sampled_from(ZONES))
def test_a_local_time_that_exists_resolves_to_itself(instant: int, name: str) -> None:
    zone = ZoneInfo(name)
    aware = datetime.fromtimestamp(instant, zone)
    local = aware.replace(tzinfo=None, fold=0)
    assert resolve(local, zone) == instant if not aware.fold else resolve(local, zone) < instant


def test_a_time_in_the_gap_runs_at_its_end() -> None:
    assert local_times("02:30", "2026-03-28 12:00", 2) == ["2026-03-29 03:00+02:00", "2026-03-30 02:30+02:00"]
    assert local_times("02:0/10", "2026-03-29 00:00", 2) == ["2026-03-29 03:00+02:00", "2026-03-30 02:00+02:00"]
    santiago = ZoneInfo("America/Santiago")
    assert local_times("daily", "2026-09-05 12:00", 1, santiago) == ["2026-09-06 01:00-03:00"]


def test_a_time_in_the_fold_runs_the_first_time() -> None:
    assert local_times("02:30", "2026-10-24 12:00", 2) == ["2026-10-25 02:30+02:00", "2026-10-26 02:30+01:00"]
    second_pass = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1).timestamp()
    assert next_after(parse_calendar("02:30"), second_pass, BERLIN) == resolve(datetime(2026, 10, 26, 2, 30), BERLIN)


def test_an_expression_for_every_hour_follows_real_time() -> None:
    assert local_times("*:30", "2026-03-29 01:00", 2) == ["2026-03-29 01:30+01:00", "2026-03-29 03:30+02:00"]
    assert local_times("*:30", "2026-10-25 02:00", 3) == [
        "2026-10-25 02:30+02:00",
        "2026-10-25 02:30+01:00",
        "2026-10-25 03:30+01:00",
    ]


def test_several_expressions_have_the_first_match_of_any() -> None:
    expressions = [(expression, UTC) for expression in parse_cron("0 0 13 * FRI")]
    friday = datetime(2026, 3, 6, tzinfo=UTC).timestamp()
    assert next_of(expressions, friday - 1) == friday
    assert next_of(expressions, friday) == datetime(2026, 3, 13, tzinfo=UTC).timestamp()
    assert next_of([], friday) is None


def test_what_is_over_has_no_next_match() -> None:
    assert next_after(parse_calendar("2020-01-01"), 1.7e9) is None
    assert next_after(parse_calendar("Mon 2026-03-31"), 1.7e9) is None
    assert next_after(parse_calendar("daily"), 1e12) is None


# ---- other implementations


def systemd_times(texts: Sequence[str], base: int, zone: str) -> dict[str, list[int]]:
    """Return the next three matches of each expression, as systemd-analyze(1) prints them."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    moment = datetime.fromtimestamp(base, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    result = subprocess.run(
        [program, "calendar", "--iterations=3", f"--base-time={moment}", *texts],
        env={**os.environ, "TZ": zone, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    times: dict[str, list[int]] = {}
    for block in re.split(r"\n\n|(?=  Original form: )", result.stdout):
        if (original := re.search(r"(?:Original|Normalized) form: (.*)", block)) is None:
            continue
        pattern = r"(?:\(in UTC\)|Next elapse|Iter\. #\d+): \w+ (\d+-\d+-\d+ \d+:\d+:\d+) UTC"
        found = [datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() for text in re.findall(pattern, block)]
        times[original[1]] = [int(instant) for instant in found]
    return times


@given(st.lists(calendar_texts(), min_size=40, max_size=40, unique=True), instants)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_systemd_finds_the_same_times(texts: list[str], base: int) -> None:
    """In UTC, as the two differ on purpose where daylight saving time changes."""
    compared = 0
    for text, theirs in systemd_times(texts, base, "UTC").items():
        if theirs and text in texts:
            expression, after = parse_calendar(text), float(base)
            for instant in theirs:
                found = next_after(expression, after, UTC)
                if found is not None and found < instant and matches(expression, utc(found)):
                    break  # systemd 252 skips a day after a step that leads out of it: "11/10,06:00" after 21:00
                assert found == instant, (text, base)
                after = float(found)
                compared += 1
    assert compared > 10


def utc(instant: float) -> datetime:
    return datetime.fromtimestamp(instant, UTC).replace(tzinfo=None)


@given(cron_texts(), instants)
@settings(max_examples=100, deadline=None)
def test_cronsim_finds_the_same_times(text: str, base: int) -> None:
    cronsim = pytest.importorskip("cronsim", reason="cronsim, which is only for this test, is not installed")
    theirs = cronsim.CronSim(text, datetime.fromtimestamp(base, UTC))
    expressions = [(expression, UTC) for expression in parse_cron(text)]
    after: float | None = base
    for _ in range(3):
        assert after is not None
        after = next_of(expressions, after)
        assert after == next(theirs).timestamp()
