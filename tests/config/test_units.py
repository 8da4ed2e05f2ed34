"""Units: the texts that people write, and their conversion to numbers and back."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 * 2**20),
        ("1.5G", 3 * 2**29),
        ("4096", 4096),
        ("4096B", 4096),
        ("1 K", 1024),
        ("0", 0),
        ("7E", 7 * 2**60),
        ("infinity", None),
        ("max", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "64 bananas", "64m", "M", "-1", "1,5G", "0.3", "8E", "1e9", "٤M", "9" * 50, "64M\n"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="; write"):
        units.parse_size(text)


@given(st.one_of(st.none(), st.integers(0, units.MAX_SIZE)))
def test_a_size_survives_the_way_to_text_and_back(size: int | None) -> None:
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("10s", 10),
        ("10", 10),
        ("1min 30s", 90),
        ("1min30s", 90),
        ("1.5h", 5400),
        ("2 days", 172800),
        ("1w", 604800),
        ("5us", 0.000005),
        (" 3 sec ", 3),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "soon", "10x", "-1s", "1:30", "10s,", "1e3", "200000w", "s", "1month", "9" * 90]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="; write"):
        units.parse_duration(text)


@given(st.floats(0, units.MAX_SECONDS, allow_subnormal=False) | st.integers(0, 10**9).map(float))
def test_a_duration_survives_the_way_to_text_and_back(seconds: float) -> None:
    if seconds and seconds < 1e-9:
        return  # no unit for these
    text = units.format_duration(seconds)
    if len(text) <= 80:
        assert units.parse_duration(text) == pytest.approx(seconds, rel=1e-12)


def test_durations_are_shown_as_people_write_them() -> None:
    assert [units.format_duration(s) for s in (0.25, 90.0, 3600.0, 0.0, 1.5, 86461.0)] == [
        "250ms",
        "1min 30s",
        "1h",
        "0s",
        "1.5s",
        "1d 1min 1s",
    ]


def test_signals() -> None:
    assert units.parse_signal("SIGTERM") == units.parse_signal("TERM") == units.parse_signal(15) == signal.SIGTERM
    assert units.parse_signal("SIGRTMIN+3") == signal.SIGRTMIN + 3
    assert units.format_signal(15) == "SIGTERM"


@pytest.mark.parametrize(
    "value", [0, -1, 65, 10**30, "", "SIG", "sigterm", "BANANA", "TERM+1", "RTMIN+99", "RTMIN+", "15"]
)
def test_what_is_no_signal(value: str | int) -> None:
    with pytest.raises(ValueError, match="; write"):
        units.parse_signal(value)


@given(st.sampled_from(sorted(signal.valid_signals())))
def test_a_signal_survives_the_way_to_text_and_back(number: int) -> None:
    assert units.parse_signal(units.format_signal(number)) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("150%", (150000, 100000)),
        ("1.5 %", (1500, 100000)),
        ("150000 100000", (150000, 100000)),
        ("max", (None, 100000)),
        ("max 50000", (None, 50000)),
    ],
)
def test_cpu_shares(text: str, value: tuple[int | None, int]) -> None:
    assert units.parse_cpu_max(text) == value


@pytest.mark.parametrize(
    "text", ["", "150", "%", "0%", "0.5%", "1 2 3", "500 100000", "max max", "1000 100", "150000 9999999", "-5%"]
)
def test_what_is_no_cpu_share(text: str) -> None:
    with pytest.raises(ValueError, match="; write"):
        units.parse_cpu_max(text)


@given(st.tuples(st.none() | st.integers(1000, 2**44), st.integers(1000, 10**6)))
def test_a_cpu_share_survives_the_way_to_text_and_back(value: tuple[int | None, int]) -> None:
    assert units.parse_cpu_max(units.format_cpu_max(value)) == value


def test_cpu_lists() -> None:
    assert units.parse_cpu_list("0-1,4") == (0, 1, 4)
    assert units.parse_cpu_list("4, 0-1,1") == (0, 1, 4)
    assert units.format_cpu_list([4, 0, 1]) == "0-1,4"


@pytest.mark.parametrize("text", ["", ",", "1-", "a", "3-1", "-1", "0-99999999999", "8192", "1;2"])
def test_what_is_no_cpu_list(text: str) -> None:
    with pytest.raises(ValueError, match="; write"):
        units.parse_cpu_list(text)


@given(st.sets(st.integers(0, units.MAX_CPU), min_size=1, max_size=50))
def test_a_cpu_list_survives_the_way_to_text_and_back(cpus: set[int]) -> None:
    assert units.parse_cpu_list(units.format_cpu_list(cpus)) == tuple(sorted(cpus))


PARSERS = (units.parse_size, units.parse_duration, units.parse_signal, units.parse_cpu_max, units.parse_cpu_list)


@given(st.sampled_from(PARSERS), st.text() | st.text("0123456789.-+%, KMGsminxaSIGRTN", max_size=100))
def test_any_text_is_a_value_or_a_message(parser, text: str) -> None:
    message = "; write"
    try:
        parser(text)
    except ValueError as error:
        message = str(error)
    assert "; write" in message
