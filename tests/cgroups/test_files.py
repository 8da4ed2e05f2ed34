"""The table of v1's names: conversions there and back, without a kernel."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.cgroups.files import (
    KERNEL_DEFAULTS,
    PAGE_SIZE,
    RESOURCE_FILES,
    V1_EQUIVALENTS,
    V2_WRITERS,
    shares_to_weight,
    weight_to_shares,
)
from nsupervisor.cgroups.parsing import parse_file
from nsupervisor.cgroups.values import display_text, encode_value


def test_default_weight_is_default_shares() -> None:
    assert weight_to_shares(100) == 1024
    assert shares_to_weight(1024) == 100


@given(st.integers(1, 10000))
def test_every_weight_comes_back_from_its_shares(weight: int) -> None:
    assert shares_to_weight(weight_to_shares(weight)) == weight
    assert 2 <= weight_to_shares(weight) <= 262144  # the range that cpu.shares has


@given(st.integers(1000, 10**9) | st.none(), st.integers(1000, 1_000_000))
def test_cpu_max_comes_back_from_v1(quota: int | None, period: int) -> None:
    text = encode_value("cpu_max", (quota, period))
    write = V1_EQUIVALENTS["cpu.max"].write
    assert write is not None
    written = dict(write(text, lambda name: ""))
    texts = [written[name] for name in V1_EQUIVALENTS["cpu.max"].files]
    assert V1_EQUIVALENTS["cpu.max"].read(texts) == parse_file("cpu.max", text)


def test_cpu_max_takes_the_old_quota_off_before_the_period_changes() -> None:
    write = V1_EQUIVALENTS["cpu.max"].write
    assert write is not None
    assert write("50000 10000", lambda name: "")[0] == ("cpu.cfs_quota_us", "-1")


def test_no_limit_on_v1_is_infinity() -> None:
    assert V1_EQUIVALENTS["memory.max"].read([f"{(2**63 - 1) // PAGE_SIZE * PAGE_SIZE}\n"]) == {"": inf}
    assert V1_EQUIVALENTS["memory.max"].read(["4096\n"]) == {"": 4096}


def test_memory_events_of_v1() -> None:
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"
    assert V1_EQUIVALENTS["memory.events"].read([control, "17\n"]) == {"oom_kill": 3, "max": 17}


def test_memory_events_of_kernels_before_4_13_have_no_oom_kill() -> None:
    assert V1_EQUIVALENTS["memory.events"].read(["oom_kill_disable 0\nunder_oom 0\n", "17\n"]) == {"max": 17}


def test_cpu_stat_of_hybrid_hosts_has_both_halves_in_microseconds() -> None:
    core = "usage_usec 10\nuser_usec 7\nsystem_usec 3\n"
    v1 = "nr_periods 4\nnr_throttled 2\nthrottled_time 9000\n"
    assert V1_EQUIVALENTS["cpu.stat"].read([core, v1]) == {
        "usage_usec": 10,
        "user_usec": 7,
        "system_usec": 3,
        "nr_periods": 4,
        "nr_throttled": 2,
        "throttled_usec": 9,
    }


def test_memory_stat_of_v1_has_the_names_of_v2_and_counts_the_subtree() -> None:
    values = V1_EQUIVALENTS["memory.stat"].read(["cache 1\nrss 2\ntotal_cache 10\ntotal_rss 20\n"])
    assert values == {"file": 10, "anon": 20}


@pytest.mark.parametrize("key", RESOURCE_FILES)
def test_none_is_the_kernels_own_value(key: str) -> None:
    assert encode_value(key, None) == KERNEL_DEFAULTS[RESOURCE_FILES[key]]


@pytest.mark.parametrize(
    ("file", "text", "shown"),
    [
        ("memory.max", str(64 << 20), "64M"),
        ("memory.max", "1000", "1000"),
        ("memory.high", str(3 << 30), "3G"),
        ("memory.max", "max", "no limit"),
        ("pids.max", "1024", "1024"),
        ("cpu.max", "50000 100000", '"50000 100000"'),
        ("cpuset.cpus", "", '""'),
    ],
)
def test_shows_values_as_a_person_writes_them(file: str, text: str, shown: str) -> None:
    assert display_text(file, text) == shown


limits = st.integers(1, 2**60) | st.just("max")
devices = st.builds("{}:{}".format, st.integers(1, 300), st.integers(0, 300))


@given(
    st.dictionaries(devices, st.tuples(limits, limits, limits, limits), max_size=4),
    st.dictionaries(devices, st.integers(1, 99), max_size=3),
)
def test_speeds_of_disks_come_back_from_v1_and_nothing_of_before_stays(
    wanted: dict[str, tuple[int | str, ...]], before: dict[str, int]
) -> None:
    names = ("rbps", "wbps", "riops", "wiops")
    text = "\n".join(
        f"{device} " + " ".join(f"{name}={limit}" for name, limit in zip(names, four, strict=True))
        for device, four in wanted.items()
    )
    v1 = V1_EQUIVALENTS["io.max"]
    assert v1.write is not None
    files = {name: dict(before) for name in v1.files}
    for name, line in v1.write(text, lambda name: "".join(f"{key} {value}\n" for key, value in before.items())):
        device, limit = line.split()
        files[name][device] = int(limit)
    texts = ["".join(f"{key} {value}\n" for key, value in files[name].items() if value) for name in v1.files]
    found = {key: value for key, value in v1.read(texts).items() if value != inf}
    assert found == {key: value for key, value in parse_file("io.max", text).items() if value != inf}


@given(
    st.integers(1, 10**6).map(lambda pages: pages * PAGE_SIZE),
    st.integers(0, 10**6).map(lambda pages: pages * PAGE_SIZE),
)
def test_swap_comes_back_from_memory_and_swap_together(memory: int, swap: int) -> None:
    v1 = V1_EQUIVALENTS["memory.swap.max"]
    assert v1.write is not None
    ((_, both),) = v1.write(str(swap), lambda name: f"{memory}")
    assert v1.read([both, str(memory)]) == {"": swap}
    assert v1.read([str((2**63 - 1) // PAGE_SIZE * PAGE_SIZE), str(memory)]) == {"": inf}


def test_huge_pages_of_v1() -> None:
    v1 = V1_EQUIVALENTS["hugetlb.2MB.max"]
    assert v1.write is not None
    assert v1.write("max", lambda name: "") == [("hugetlb.2MB.limit_in_bytes", "-1")]
    assert v1.read(["4194304\n"]) == {"": 4 << 20}


def test_weights_of_disks_of_v1() -> None:
    write = V1_EQUIVALENTS["io.weight"].write
    assert write is not None
    assert write("default 50\n8:0 70", lambda name: "default 100\n8:0 1\n8:16 2\n") == [
        ("blkio.bfq.weight_device", "8:16 default"),
        ("blkio.bfq.weight", "50"),
        ("blkio.bfq.weight_device", "8:0 70"),
    ]


@pytest.mark.parametrize("file", V2_WRITERS)
def test_a_device_that_is_no_longer_limited_is_set_back(file: str) -> None:
    writes = V2_WRITERS[file]("default 5" if "weight" in file else "", lambda name: "8:0 1\n" if name == file else "")
    assert file == "cpu.weight" or writes[0][1].startswith("8:0 ")


def test_idle_is_left_before_a_weight_is_set() -> None:
    assert V2_WRITERS["cpu.weight"]("50", lambda name: "1") == [("cpu.idle", "0"), ("cpu.weight", "50")]
    assert V2_WRITERS["cpu.weight"]("50", lambda name: "") == [("cpu.weight", "50")]  # before Linux 5.15
