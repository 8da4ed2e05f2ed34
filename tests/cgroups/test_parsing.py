"""Parsing of interface files: texts as the kernel writes them, and properties for all others."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.cgroups.parsing import parse_cpu_list, parse_file, parse_flat, parse_nested, parse_number, parse_single

keys = st.text(string.ascii_lowercase + "_", min_size=1, max_size=12)
counts = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("file", "text", "values"),
    [
        ("pids.current", "17\n", {"": 17}),
        ("pids.max", "max\n", {"": math.inf}),
        ("memory.events", "low 0\nhigh 12\noom_kill 3\n", {"low": 0, "high": 12, "oom_kill": 3}),
        ("memory.events.local", "oom 1\n", {"oom": 1}),
        ("cgroup.events", "populated 1\nfrozen 0\n", {"populated": 1, "frozen": 0}),
        ("cpu.stat", "usage_usec 5\nnr_throttled 2\n", {"usage_usec": 5, "nr_throttled": 2}),
        ("cpu.max", "max 100000\n", {"quota": math.inf, "period": 100000}),
        ("cpu.max", "50000 100000\n", {"quota": 50000, "period": 100000}),
        (
            "memory.pressure",
            "some avg10=0.22 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=9\n",
            {
                "some avg10": 0.22,
                "some avg60": 0,
                "some avg300": 0,
                "some total": 12,
                "full avg10": 0.1,
                "full avg60": 0,
                "full avg300": 0,
                "full total": 9,
            },
        ),
        ("io.stat", "8:0 rbytes=4096 wios=1\n254:0 \n", {"8:0 rbytes": 4096, "8:0 wios": 1}),
        ("io.max", "8:16 rbps=2097152 wbps=max\n", {"8:16 rbps": 2097152, "8:16 wbps": math.inf}),
        ("io.stat", "", {}),
    ],
)
def test_reads_what_the_kernel_writes(file: str, text: str, values: dict[str, float]) -> None:
    assert parse_file(file, text) == values


@given(st.dictionaries(keys, counts))
def test_flat_files_read_back(values: dict[str, int]) -> None:
    assert parse_flat("".join(f"{key} {value}\n" for key, value in values.items())) == values


@given(st.dictionaries(keys, st.dictionaries(keys, counts, min_size=1)))
def test_nested_files_read_back(values: dict[str, dict[str, int]]) -> None:
    text = "".join(f"{key} {' '.join(f'{k}={v}' for k, v in pairs.items())}\n" for key, pairs in values.items())
    assert parse_nested(text) == {f"{key} {name}": v for key, pairs in values.items() for name, v in pairs.items()}


@given(counts | st.just("max"))
def test_single_values_read_back(value: int | str) -> None:
    assert parse_single(f"{value}\n") == {"": math.inf if value == "max" else value}


@given(counts)
def test_large_counters_keep_every_digit(value: int) -> None:
    assert str(parse_number(str(value))) == str(value)


@given(st.sampled_from(["pids.current", "memory.events", "memory.pressure", "cpu.max"]), st.text(max_size=60))
def test_any_other_text_is_a_value_error(file: str, text: str) -> None:
    try:
        values = parse_file(file, text)
    except ValueError:
        return
    assert all(isinstance(value, int | float) and not math.isnan(value) for value in values.values())


@given(st.sets(st.integers(0, 200)))
def test_cpu_lists_read_back_in_both_notations(cpus: set[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(cpus)))) == cpus
    assert parse_cpu_list(",".join(f"{cpu}-{cpu}" for cpu in cpus) + "\n") == cpus


def test_cpu_ranges() -> None:
    assert parse_cpu_list("0-2,4\n") == {0, 1, 2, 4}
