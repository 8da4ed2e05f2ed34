"""Two samples, and what they make; the parts of `top` that are pure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.cli.rates import HEADS, compute_rates, sort_instances, table_cells
from nsupervisor.cli.screen import BARS, drop_columns_to_fit, sparkline

COUNTERS = (
    *("cpu_usage_usec", "periods", "throttled_periods", "throttled_usec", "io_read_bytes", "io_write_bytes"),
    *("network_receive_bytes", "network_transmit_bytes", "cpu_stalled_usec", "memory_stalled_usec", "io_stalled_usec"),
)


def sample(at, name="web", **counters):
    same = {"name": name, "state": "running", "generation": 1, "memory_current": 10 << 20, "memory_max": 64 << 20}
    same |= {"pids_current": 3, "pids_max": None, "cpu_max_percent": None}
    return {"at": at, **same, **dict.fromkeys(COUNTERS), **counters}


def one(before, after):
    (measured,) = compute_rates([before], [after])
    return measured


def test_a_processor_and_a_half_for_two_seconds():
    measured = one(sample(10.0, cpu_usage_usec=1_000_000), sample(12.0, cpu_usage_usec=4_000_000))
    assert (measured["cpu_percent"], measured["interval_sec"]) == (150, 2)


def test_throttling_is_of_the_periods_that_there_were():
    measured = one(sample(0, periods=100, throttled_periods=50), sample(1, periods=110, throttled_periods=54))
    assert measured["throttled_percent"] == 40
    assert (
        one(sample(0, periods=7, throttled_periods=7), sample(1, periods=7, throttled_periods=7))["throttled_percent"]
        == 0
    )


def test_bytes_and_pressure():
    before = sample(0, io_read_bytes=0, io_write_bytes=4096, memory_stalled_usec=100)
    measured = one(before, sample(0.5, io_read_bytes=512, io_write_bytes=4096, memory_stalled_usec=125_100))
    assert (measured["io_read_bytes_per_sec"], measured["io_write_bytes_per_sec"]) == (1024, 0)
    assert measured["memory_wait_percent"] == 25


def test_what_is_not_counted_stays_unknown():
    measured = one(sample(0), sample(1))
    assert {value for key, value in measured.items() if key.endswith(("percent", "per_sec"))} == {None}
    assert table_cells(measured) == ("web", "running", "-", "10M/64M", "3", *("-",) * 8)


def test_a_cgroup_that_was_made_anew_counts_from_nothing():
    measured = one(sample(0, cpu_usage_usec=9_000_000), sample(1, cpu_usage_usec=100_000))
    assert measured["cpu_percent"] == 10


def test_an_instance_that_was_not_there_before():
    (measured,) = compute_rates([], [sample(1, cpu_usage_usec=100)])
    assert measured["cpu_percent"] is None


@given(st.data())
def test_nothing_is_ever_negative(data):
    counter = st.none() | st.integers(0, 2**63)
    before, after = (sample(at, **{name: data.draw(counter) for name in COUNTERS}) for at in (0.0, 1.0))
    measured = one(before, after)
    assert all(value is None or value >= 0 for key, value in measured.items() if key.endswith(("percent", "per_sec")))
    assert len(table_cells(measured)) == len(HEADS)


def test_limits_are_shown():
    measured = one(sample(0, cpu_usage_usec=0), sample(1, cpu_usage_usec=123_456, cpu_max_percent=20.0, pids_max=8))
    assert table_cells(measured)[2:5] == ("12.3/20", "10M/64M", "3/8")


@pytest.mark.parametrize(
    ("by", "order"),
    [
        *(("cpu", "bac"), ("memory", "cab"), ("processes", "abc"), ("name", "abc")),
        *(("io", "bca"), ("network", "acb"), ("pressure", "cba"), ("state", "bca")),
    ],
)
def test_sorting(by, order):
    def one(name, cpu, memory, io, network, wait):
        return {
            "name": name,
            "state": {"a": "ready", "b": "failed", "c": "running"}[name],
            "cpu_percent": cpu,
            "memory_current": memory,
            "pids_current": 1,
            "io_read_bytes_per_sec": io,
            "io_write_bytes_per_sec": io,
            "network_receive_bytes_per_sec": network,
            "network_transmit_bytes_per_sec": None,
            "cpu_wait_percent": wait,
            "memory_wait_percent": 0.0,
            "io_wait_percent": None,
        }

    measured = [one("a", 1.0, 5, None, 9.0, 0.0), one("b", 9.0, None, 2.0, None, 1.0), one("c", None, 7, 1.0, 1.0, 2.0)]
    assert "".join(one["name"] for one in sort_instances(measured, by)) == order
    if by != "processes":  # all have one; what is equal stays as it was
        assert "".join(one["name"] for one in sort_instances(measured, by, reverse=True)) == order[::-1]


def test_sparklines():
    assert sparkline([0, 50, 100], 100) == "▁▅█"
    assert sparkline([0, 5, 10], None) == "▁▅█"
    assert sparkline([0, 0], None) == "▁▁"
    assert sparkline([200], 100) == "█"


@given(st.lists(st.floats(0, 1e12), max_size=16), st.none() | st.floats(0, 1e12))
def test_sparklines_have_a_bar_for_each_sample(samples, limit):
    bars = sparkline(samples, limit)
    assert len(bars) == len(samples)
    assert set(bars) <= set(BARS)


def test_columns_go_where_there_is_no_room():
    def columns():
        return {head: ["x" * 8] for head in HEADS}

    assert list(fitted(columns(), 200)) == list(HEADS)
    assert "IO-WAIT%" not in fitted(columns(), 100)
    assert list(fitted(columns(), 1)) == ["NAME", "CPU%", "MEMORY"]
    without_values = columns() | {"THROTTLED%": ["-"], "STATE": [""]}
    assert [head for head in HEADS if head not in fitted(without_values, 115)] == ["STATE", "THROTTLED%"]


def fitted(columns, width):
    drop_columns_to_fit(columns, width)
    return columns


def test_traffic_is_of_the_own_namespace():
    before = sample(0, network_receive_bytes=0, network_transmit_bytes=100)
    measured = one(before, sample(2, network_receive_bytes=4096, network_transmit_bytes=100))
    assert (measured["network_receive_bytes_per_sec"], measured["network_transmit_bytes_per_sec"]) == (2048, 0)
    assert table_cells(measured)[8:10] == ("2K", "0")
