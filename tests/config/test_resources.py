"""Resources: their values, their conflicts, and changes of them at run time."""

from decimal import Decimal
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsupervisor.config.changes import apply_changes, changed_limits, parse_changes
from nsupervisor.config.load import parse
from nsupervisor.config.model import IoLatency, IoMax, RdmaMax, Resources, WorkloadConfig
from nsupervisor.config.problems import ConfigError
from nsupervisor.config.units import Percent, format_size, parse_percent


def web(text: str, more: str = "") -> WorkloadConfig:
    return parse(f'[workload.web]\ncommand = ["a"]\n{more}[workload.web.resources]\n{text}\n', "f").workloads["web"]


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        web(text)
    return [str(problem) for problem in caught.value.problems]


def percent(text: str) -> Percent:
    return Percent(Decimal(text))


def test_every_key_has_its_python_value() -> None:
    loaded = web("""
    memory_min = 0
    memory_low = "12.5%"
    memory_high = "max"
    memory_max = "100%"
    memory_swap_max = 0
    memory_zswap_max = "10 %"
    pids_max = "25%"
    cpu_max = "50%"
    cpu_max_burst = "20ms"
    cpu_weight = "idle"
    cpuset_cpus = "1,0"
    cpuset_mems = "0"
    cpuset_cpus_partition = "isolated"
    io_max = [{ device = "/srv", rbps = "10M", wiops = 100, wbps = "max" }]
    io_weight = 50
    io_latency = [{ device = "/dev/sda", target = "10ms" }, { device = "/srv", target = 500 }]
    hugetlb_2MB_max = "64M"
    hugetlb_1GB_max = 0
    misc_max = { sev = 3, sev_es = "max" }
    rdma_max = [{ device = "mlx4_0", hca_handle = 0 }]
    unified = { "cpu.uclamp.min" = " 10 " }
    """).resources
    assert loaded == Resources(
        memory_min=0,
        memory_low=percent("12.5"),
        memory_max=percent("100"),
        memory_swap_max=0,
        memory_zswap_max=percent("10"),
        pids_max=percent("25"),
        cpu_max=(50000, 100000),
        cpu_max_burst=20000,
        cpu_weight="idle",
        cpuset_cpus="0-1",
        cpuset_mems="0",
        cpuset_cpus_partition="isolated",
        io_max=(IoMax(device="/srv", rbps=10 << 20, wiops=100),),
        io_weight={"default": 50},
        io_latency=(IoLatency(device="/dev/sda", target=10000), IoLatency(device="/srv", target=500)),
        hugetlb={"2MB_max": 64 << 20, "1GB_max": 0},
        misc_max={"sev": 3, "sev_es": None},
        rdma_max=(RdmaMax(device="mlx4_0", hca_handle=0),),
        unified={"cpu.uclamp.min": "10"},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory_min = '2M'\nmemory_low = '1M'", "memory_min: 2M is above memory_low (1M), so that memory_low has no"),
        ("memory_low = '2M'\nmemory_high = '1M'", "memory_low: 2M is above memory_high (1M), which is all"),
        ("memory_min = '2M'\nmemory_max = '1M'", "memory_min: 2M is above memory_max (1M), which is all"),
        ("memory_high = '30%'\nmemory_max = '20.5%'", "30% is above memory_max (20.5%), so it would never be reached"),
        ("pids_max = '0%'", 'is not a share of what the host has; write "1%"'),
        ("cpu_max_burst = 5000", "cpu_max_burst: needs a share to go beyond; set cpu_max"),
        ("cpu_max_burst = '60ms'\ncpu_max = '50%'", "60000 microseconds is above the quota of cpu_max (50000)"),
        ("cpu_max_burst = 1.5", 'is not a time; write for example "20ms"'),
        ("cpu_weight = 'lazy'", 'is not a weight; write for example 200, or "idle"'),
        ("cpuset_mems = 'x'", "is not a list of memory nodes"),
        ("cpuset_mems = '5000'", "above 1023"),
        ("cpuset_cpus_partition = 'root'", '"root" does not say of which CPUs; set cpuset_cpus'),
        ("cpuset_cpus_partition = 'roots'", 'did you mean "root"'),
        ("io_max = { device = '/' }", "write [[workload.web.resources.io_max]], with two brackets"),
        ("io_max = [{ rbps = 1 }]", "io_max[0].device: is missing"),
        ("io_max = [{ device = 'srv', rbps = 1 }]", 'io_max[0].device: "srv" is not an absolute path'),
        ("io_max = [{ device = '/' }]", "io_max[0]: limits nothing; write one of rbps, wbps, riops, wiops"),
        ("io_max = [{ device = '/', rbps = 0 }]", "io_max[0].rbps: 0 is too small"),
        ("io_max = [{ device = '/', riops = 0 }]", "io_max[0].riops: 0 is out of range"),
        ("io_max = [{ device = '/', rbps = 1 }, { device = '/', rbps = 2 }]", 'io_max[1].device: "/" is there twice'),
        ("io_weight = 0", "0 is no weight; write a number from 1 to 10000"),
        ("io_weight = {}", "is empty"),
        ("io_weight = { srv = 5 }", 'has a weight for "srv", which is neither a path nor default'),
        ("io_weight = { '/srv' = 'x' }", 'has "x" in it, which is no weight'),
        ("io_latency = [{ device = '/', target = 0 }]", "is no time to wait for"),
        ("hugetlb_3MB_max = 1", "hugetlb_3MB_max: is not a key"),
        ("misc_max = { sev = -1 }", "misc_max.sev: -1 is out of range"),
        ("rdma_max = [{ device = 'a' }]", "rdma_max[0]: limits nothing; write one of hca_handle, hca_object"),
        ("unified = { 'cgroup.procs' = '1' }", "is no cgroup v2 file that can be set"),
        ("unified = { 'memory/max' = '1' }", "is no cgroup v2 file that can be set"),
        ("unified = { 'memory.max' = '1' }", "has a key of its own; write memory_max = … instead"),
        ("unified = { 'cpu.idle' = '1' }", "has a key of its own; write cpu_weight = … instead"),
        ("unified = { 'hugetlb.2MB.max' = '1' }", "has a key of its own; write hugetlb_2MB_max = … instead"),
        ("unified = { 'memory.swap.high' = '' }", "is not what a cgroup file takes"),
        ("unified = { 'memory.swap.high' = 5 }", '5 is not a string; write it in quotes'),
    ],
)  # fmt: skip
def test_what_resources_may_not_be(text: str, message: str) -> None:
    assert any(message in problem for problem in problems(text)), problems(text)


def test_a_size_and_a_percentage_are_compared_on_the_host_only() -> None:
    assert web("memory_high = '90%'\nmemory_max = '1M'").resources.memory_max == 1 << 20


@given(st.decimals("0.001", 100, places=3), st.integers(1, 2**50))
def test_percentages_come_back_from_their_text_and_are_never_more_than_all(number: Decimal, total: int) -> None:
    share = parse_percent(f"{number}%")
    assert share == Percent(number)
    assert parse_percent(format_size(share)) == share
    assert 1 <= share.share_of(total) <= total


@given(st.text(max_size=12))
def test_any_text_is_a_percentage_or_none_or_refused(text: str) -> None:
    for candidate in (text, f"{text}%"):
        message = ""
        try:
            share = parse_percent(candidate)
            assert (share is None) != candidate.endswith("%")
        except ValueError as error:
            message = str(error)
        assert not message or "; write" in message


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
values |= st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=9), values, max_size=2)
keys = st.sampled_from([field.name for field in attrs.fields(Resources)] + ["hugetlb_2MB_max", "nonsense"])


@given(st.dictionaries(keys, values, max_size=4))
def test_any_change_is_taken_or_refused_in_words(change: dict[str, Any]) -> None:
    problems = []
    try:
        changed_limits(Resources(), apply_changes(web(""), Resources(), parse_changes(change)))
    except ConfigError as error:
        problems = error.problems
    assert all("; " in problem.message and problem.line == 0 for problem in problems)


# changes -----------------------------------------------------------------------------------------------------------


def test_a_change_leaves_the_rest_as_it_is() -> None:
    workload = web("memory_max = '1G'\npids_max = 5\nhugetlb_2MB_max = 0\nunified = { 'io.prio.class' = 'idle' }")
    change = {"pids_max": 7, "hugetlb_1GB_max": "max", "unified": {"cpu.uclamp.min": "5"}, "io_weight": 9}
    after = apply_changes(workload, workload.resources, parse_changes(change))
    assert (after.memory_max, after.pids_max) == (1 << 30, 7)
    assert after.hugetlb == {"2MB_max": 0, "1GB_max": None}
    assert after.unified == {"io.prio.class": "idle", "cpu.uclamp.min": "5"}
    was, is_ = changed_limits(workload.resources, after)
    assert (was["pids_max"], is_["pids_max"]) == (5, 7)
    assert set(was) == {"pids_max", "unified", "io_weight"}


def test_a_change_must_fit_with_the_other_limits_and_the_rules() -> None:
    rule = '[[workload.web.policy]]\nwhen = "pids.current >= 90%"\naction = "log"\n'
    workload = web("memory_max = '1M'\npids_max = 5", rule)
    for change, message in (
        ({"memory_low": "2M"}, "memory_low: 2M is above memory_max (1M)"),
        (
            {"pids_max": "max"},
            'workload.web.policy[0].when: "pids.current >= 90%" is in per cent of pids_max, which is',
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            apply_changes(workload, workload.resources, parse_changes(change))
        assert str(caught.value).startswith(message)


def test_what_changed_is_said_as_the_configuration_writes_it() -> None:
    before = Resources(memory_max=5)
    after = Resources(memory_max=percent("25"), cpu_max=(5000, 10000), io_max=(IoMax(device="/", rbps=1),))
    assert changed_limits(before, after) == (
        {"memory_max": 5, "cpu_max": None, "io_max": []},
        {
            "memory_max": "25%",
            "cpu_max": "5000 10000",
            "io_max": [{"device": "/", "rbps": 1, "wbps": None, "riops": None, "wiops": None}],
        },
    )
