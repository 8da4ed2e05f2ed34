"""Words and numbers for people."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.terminal.numbers import format_count, format_duration, format_past, format_size
from nsupervisor.terminal.style import colorize, escape_control, has_colour
from nsupervisor.terminal.table import format_table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (1, "1B"),
        (1023, "1023B"),
        (1024, "1K"),
        (12_939_428, "12.3M"),
        (64 << 20, "64M"),
        ((1 << 20) - 1, "1M"),
        (5 << 60, "5E"),
    ],
)
def test_sizes(number, text):
    assert format_size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0s"),
        (4.9, "4s"),
        (60, "1min"),
        (61, "1min 1s"),
        (3600, "1h"),
        (3605, "1h"),
        (93_784, "1d 2h"),
        (86_700, "1d"),
        (10**9, "11574d 1h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@given(st.integers(0, 2**70))
def test_sizes_are_short(number):
    assert len(format_size(number)) <= 8


@given(st.floats(0, 1e9))
def test_durations_never_say_nothing(seconds):
    assert format_duration(seconds)


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_a_table_has_one_line_per_row_and_aligned_columns(rows):
    lines = format_table(("A", "B", "C"), rows, right=[1])
    assert len(lines) == len(rows) + 1
    assert all("\n" not in line and "\033" not in line for line in lines)


@given(st.lists(st.tuples(st.text("ab ", max_size=30), st.text(max_size=200)), max_size=5), st.integers(40, 100))
def test_a_table_is_cut_at_the_terminal_s_width(rows, width):
    assert all(len(line) <= width for line in format_table(("A", "B"), rows, width=width))


def test_colour_does_not_move_columns():
    plain = format_table(("A", "B"), [("x", "y"), ("long", "z")])
    painted = format_table(
        ("A", "B"), [("x", "y"), ("long", "z")], paint=lambda column, value, padded: colorize(padded, "31", True)
    )
    assert [line.replace("\033[31m", "").replace("\033[0m", "").rstrip() for line in painted] == plain


@given(st.text())
def test_what_programs_say_cannot_drive_the_terminal(text):
    assert not any((ord(c) < 32 and c not in "\n\t") or ord(c) == 127 for c in escape_control(text))


def test_a_file_has_no_colour():
    assert not has_colour(io.StringIO())


@pytest.mark.fault("D23")
def test_plural():
    assert [format_count(n, "workload") for n in (0, 1, 2)] == ["0 workloads", "1 workload", "2 workloads"]
    assert [format_past(n, "line", "dropped") for n in (1, 2)] == ["1 line was dropped", "2 lines were dropped"]


def test_a_narrow_table_gives_up_empty_columns_and_then_those_at_its_right():
    heads = ("NAME", "EMPTY", "CPU%", "READ/S", "WRITE/S")
    rows = [("web", "-", "1.0", "2", "3"), ("db", "-", "0.0", "4", "5")]

    def shown(width):
        return format_table(heads, rows, right=range(1, 5), width=width)

    assert shown(34) == shown(0)
    assert shown(33) == ["NAME  CPU%  READ/S  WRITE/S", "web    1.0       2        3", "db     0.0       4        5"]
    assert shown(21) == ["NAME  CPU%  READ/S  …", "web    1.0       2", "db     0.0       4"]
    assert shown(13) == ["NAME  CPU%  …", "web    1.0", "db     0.0"]
    assert shown(5) == ["NAME  …", "web", "db"]


def test_a_last_column_of_text_is_cut_before_other_columns_are_given_up():
    heads, rows = ("NAME", "PIDS", "DETAIL"), [("web", "12", "started by boot and well")]
    assert format_table(heads, rows, right=[1], width=22) == ["NAME  PIDS  DETAIL", "web     12  started b…"]
    assert format_table(heads, rows, right=[1], width=18) == ["NAME  DETAIL", "web   started by …"]
