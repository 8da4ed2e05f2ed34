"""The table that maps v2 file names to v1: which files, how they are read, how a v2 value is written to them.

All other modules use v2's names and units; only this one knows that a controller may be on v1. V1_REMEDIES lists files
without an equivalent on v1, with what to do instead. Sources: the kernel's Documentation/admin-guide/
cgroup-v1/{memory,pids,cpusets,blkio-controller,hugetlb}.rst and cgroup-v2.rst, Documentation/block/bfq-iosched.rst,
Documentation/scheduler/{sched-bwc,sched-design-CFS}.rst.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from nsupervisor.cgroups.parsing import parse_file, parse_flat, parse_number, parse_single

CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io", "hugetlb", "misc", "rdma", "dmem")
"""The controllers that a configuration key or a raw file may need, in the order in which they are enabled."""

ON_DEMAND_CONTROLLERS = ("hugetlb", "misc", "rdma", "dmem")
"""Controllers that are enabled only when a workload has a limit in them."""

V1_CONTROLLER_NAMES: Mapping[str, str] = {"io": "blkio"}
"""The v1 names of controllers that have another name on v2."""

HUGE_PAGE_SIZES = ("64KB", "2MB", "32MB", "1GB")

RESOURCE_FILES: Mapping[str, str] = {
    "memory_min": "memory.min",
    "memory_low": "memory.low",
    "memory_high": "memory.high",  # before memory.max: the throttle must be in place when the maximum is lowered
    "memory_max": "memory.max",
    "memory_swap_max": "memory.swap.max",
    "memory_zswap_max": "memory.zswap.max",
    "memory_oom_group": "memory.oom.group",
    "pids_max": "pids.max",
    "cpu_max": "cpu.max",
    "cpu_max_burst": "cpu.max.burst",
    "cpu_weight": "cpu.weight",
    "cpuset_cpus": "cpuset.cpus",
    "cpuset_mems": "cpuset.mems",
    "cpuset_cpus_partition": "cpuset.cpus.partition",
    "io_max": "io.max",
    "io_weight": "io.weight",
    "io_latency": "io.latency",
    **{f"hugetlb_{size}_max": f"hugetlb.{size}.max" for size in HUGE_PAGE_SIZES},
    "misc_max": "misc.max",
    "rdma_max": "rdma.max",
}
"""The resource keys of a workload and the v2 file that each one sets, in the order of writing."""

KERNEL_DEFAULTS: Mapping[str, str] = {
    "memory.min": "0",
    "memory.low": "0",
    "memory.high": "max",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.zswap.max": "max",
    "memory.oom.group": "0",
    "pids.max": "max",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpu.weight": "100",
    "cpuset.cpus": "",
    "cpuset.mems": "",
    "cpuset.cpus.partition": "member",
    "io.max": "",
    "io.weight": "default 100",
    "io.latency": "",
    **{f"hugetlb.{size}.max": "max" for size in HUGE_PAGE_SIZES},
    "misc.max": "",
    "rdma.max": "",
}
"""The default that the kernel has in each of these files, as v2 text."""

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")

_V1_NO_LIMIT = (2**63 - 1) // PAGE_SIZE * PAGE_SIZE  # PAGE_COUNTER_MAX in bytes: v1's equivalent of "max"


def weight_to_shares(weight: int) -> int:
    """Convert cpu.weight (1 to 10000, default 100) to cpu.shares (default 1024).

    This is the kernel's own conversion (sched_weight_from_cgroup in kernel/sched/sched.h: weight * 1024 / 100,
    rounded), so that the scheduler gets the same number on both kinds of host.
    """
    return (weight * 1024 + 50) // 100


def shares_to_weight(shares: int) -> int:
    """Convert cpu.shares to cpu.weight like sched_weight_to_cgroup in kernel/sched/sched.h, clamped to 1 to 10000."""
    return min(max((shares * 100 + 512) // 1024, 1), 10000)


ReadText = Callable[[str], str]
"""Reads the present text of a file in the directory that is written to; "" if there is no such file."""

Writes = list[tuple[str, str]]
"""Pairs of file and text, in the order of writing."""


def _write_cpu_weight(file: str, weight: str, read_present: ReadText) -> Writes:
    # cpu.idle exists since Linux 5.15, in both versions. While it is 1, no weight can be set.
    if weight == "idle":
        return [("cpu.idle", "1")]
    resets: Writes = [("cpu.idle", "0")] if read_present("cpu.idle") == "1" else []
    return [*resets, (file, weight)]


def _write_lines(file: str, text: str, read_present: ReadText, reset: str) -> Writes:
    """Return one write for each line of `text`, because the kernel takes one device at a time.

    Writes that reset the other devices come first: the device's name followed by `reset`.
    """
    wanted = text.splitlines()
    names = {line.split()[0] for line in wanted} | {"default"}
    present_names = [line.split()[0] for line in read_present(file).splitlines() if line.strip()]
    lines = [f"{present_name} {reset}" for present_name in present_names if present_name not in names] + wanted
    return [(file, line) for line in lines]


V2_WRITERS: Mapping[str, Callable[[str, ReadText], Writes]] = {
    "cpu.weight": lambda text, now: _write_cpu_weight("cpu.weight", text, now),
    "io.max": lambda text, now: _write_lines("io.max", text, now, "rbps=max wbps=max riops=max wiops=max"),
    "io.weight": lambda text, now: _write_lines("io.weight", text, now, "default"),
    "io.bfq.weight": lambda text, now: _write_lines("io.bfq.weight", text, now, "default"),
    "io.latency": lambda text, now: _write_lines("io.latency", text, now, "target=0"),
    "misc.max": lambda text, now: _write_lines("misc.max", text, now, "max"),
    "rdma.max": lambda text, now: _write_lines("rdma.max", text, now, "hca_handle=max hca_object=max"),
}
"""v2 files that need more than one write of their text."""


def _v1_limit(text: str) -> float:
    value = parse_number(text.strip())
    return inf if value >= _V1_NO_LIMIT else value


def _memory_events(texts: Sequence[str]) -> dict[str, float]:
    # oom_control also has oom_kill_disable and under_oom, which are states, not counters of events
    counts = {"max": parse_number(texts[1].strip())}
    control = parse_flat(texts[0])
    if "oom_kill" in control:  # Linux ≥ 4.13
        counts["oom_kill"] = control["oom_kill"]
    return counts


_V1_MEMORY_STAT_KEYS = {
    # v2's key: v1's key. The "total_" keys count the whole subtree, as v2 always does
    "anon": "total_rss",
    "file": "total_cache",
    "shmem": "total_shmem",
    "file_mapped": "total_mapped_file",
    "file_dirty": "total_dirty",
    "file_writeback": "total_writeback",
    "inactive_anon": "total_inactive_anon",
    "active_anon": "total_active_anon",
    "inactive_file": "total_inactive_file",
    "active_file": "total_active_file",
    "unevictable": "total_unevictable",
    "pgfault": "total_pgfault",
    "pgmajfault": "total_pgmajfault",
}


def _memory_stat(texts: Sequence[str]) -> dict[str, float]:
    values = parse_flat(texts[0])
    return {key: values[v1] for key, v1 in _V1_MEMORY_STAT_KEYS.items() if v1 in values}


def _cpu_max(texts: Sequence[str]) -> dict[str, float]:
    quota = int(texts[0])
    return {"quota": inf if quota < 0 else quota, "period": int(texts[1])}


def _write_cpu_max(text: str, read_present: ReadText) -> Writes:
    quota, period = text.split()
    # First lift the quota: a new period with the old quota could break the rule that a child's share fits its parent's.
    writes: Writes = [("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", period)]
    return writes if quota == "max" else [*writes, ("cpu.cfs_quota_us", quota)]


def _cpu_stat(texts: Sequence[str]) -> dict[str, float]:
    # The v2 core has the usage, also on hybrid hosts (cgroup_base_stat, Linux ≥ 4.15); throttling belongs to the
    # controller. v1 has throttled_time and burst_time in nanoseconds.
    values = parse_flat(texts[0])
    for key, value in parse_flat(texts[1]).items() if len(texts) > 1 else ():
        if key.endswith("_time"):
            values[key.removesuffix("_time") + "_usec"] = value // 1000
        else:
            values[key] = value
    return values


def _swap_max(texts: Sequence[str]) -> dict[str, float]:
    total, memory = (_v1_limit(text) for text in texts)
    return {"": inf if total == inf else total - memory}


def _write_swap_max(text: str, read_present: ReadText) -> Writes:
    # v1 limits memory and swap together. The sum is the same limit; it needs memory.max (Host.check_resources).
    total = (
        "-1" if text == "max" else str(int(read_present("memory.limit_in_bytes")) + int(text) // PAGE_SIZE * PAGE_SIZE)
    )
    return [("memory.memsw.limit_in_bytes", total)]


_THROTTLE_FILES = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}


def _io_max(texts: Sequence[str]) -> dict[str, float]:
    limits = [parse_flat(text) for text in texts]
    devices = dict.fromkeys(device for values in limits for device in values)
    return {
        f"{device} {name}": values.get(device, inf)
        for device in devices
        for name, values in zip(_THROTTLE_FILES, limits, strict=True)
    }


def _write_io_max(text: str, read_present: ReadText) -> Writes:
    writes: Writes = []
    for name, file in _THROTTLE_FILES.items():
        limits = {line.split()[0]: "0" for line in read_present(file).splitlines()}  # 0 lifts a limit
        for line in text.splitlines():
            device, *pairs = line.split()
            limit = dict(pair.split("=") for pair in pairs)[name]
            if limit != "max":
                limits[device] = limit
        writes += [(file, f"{device} {limit}") for device, limit in limits.items()]
    return writes


def _write_io_weight(text: str, read_present: ReadText) -> Writes:
    lines = _write_lines("blkio.bfq.weight_device", text, read_present, "default")
    return [
        ("blkio.bfq.weight", line.split()[1]) if line.startswith("default ") else (file, line) for file, line in lines
    ]


def _same_on_v1(file: str) -> V1Equivalent:
    write = V2_WRITERS.get(file, lambda text, now: [(file, text)])
    return V1Equivalent((file,), lambda texts: parse_file(file, texts[0]), write)


def _hugetlb_limit(page_size: str) -> V1Equivalent:
    name = f"hugetlb.{page_size}.limit_in_bytes"
    return V1Equivalent(
        (name,), lambda texts: {"": _v1_limit(texts[0])}, lambda text, now: [(name, "-1" if text == "max" else text)]
    )


class V1Equivalent(NamedTuple):
    """How v1 files replace a v2 file.

    files: the v1 files to read, whose texts `read` turns into v2's keys and units. write: v2's text → the writes; None
    for files that are only read. core: the v2 core's file of the same name is read first (hybrid hosts).
    """

    files: tuple[str, ...]
    read: Callable[[Sequence[str]], dict[str, float]]
    write: Callable[[str, ReadText], Writes] | None = None
    reads_core_first: bool = False


V1_EQUIVALENTS: Mapping[str, V1Equivalent] = {
    "memory.max": V1Equivalent(
        ("memory.limit_in_bytes",),
        lambda texts: {"": _v1_limit(texts[0])},
        lambda text, now: [("memory.limit_in_bytes", "-1" if text == "max" else text)],
    ),
    "memory.swap.max": V1Equivalent(
        ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes"), _swap_max, _write_swap_max
    ),
    "memory.current": V1Equivalent(("memory.usage_in_bytes",), lambda texts: parse_single(texts[0])),
    "memory.peak": V1Equivalent(("memory.max_usage_in_bytes",), lambda texts: parse_single(texts[0])),
    "memory.events": V1Equivalent(("memory.oom_control", "memory.failcnt"), _memory_events),
    "memory.stat": V1Equivalent(("memory.stat",), _memory_stat),
    "pids.max": _same_on_v1("pids.max"),
    "pids.current": _same_on_v1("pids.current"),
    "pids.peak": _same_on_v1("pids.peak"),
    "pids.events": _same_on_v1("pids.events"),
    "cpu.max": V1Equivalent(("cpu.cfs_quota_us", "cpu.cfs_period_us"), _cpu_max, _write_cpu_max),
    "cpu.weight": V1Equivalent(
        ("cpu.shares",),
        lambda texts: {"": shares_to_weight(int(texts[0]))},
        lambda text, now: _write_cpu_weight(
            "cpu.shares", text if text == "idle" else str(weight_to_shares(int(text))), now
        ),
    ),
    "cpu.max.burst": V1Equivalent(
        ("cpu.cfs_burst_us",), lambda texts: parse_single(texts[0]), lambda text, now: [("cpu.cfs_burst_us", text)]
    ),
    "cpu.stat": V1Equivalent(("cpu.stat",), _cpu_stat, reads_core_first=True),
    "cpuset.cpus": _same_on_v1("cpuset.cpus"),  # Tree sets both before a process joins
    "cpuset.mems": _same_on_v1("cpuset.mems"),
    "io.max": V1Equivalent(tuple(_THROTTLE_FILES.values()), _io_max, _write_io_max),
    "io.weight": V1Equivalent(("blkio.bfq.weight_device",), lambda texts: parse_flat(texts[0]), _write_io_weight),
    **{f"hugetlb.{size}.max": _hugetlb_limit(size) for size in HUGE_PAGE_SIZES},
    "misc.max": _same_on_v1("misc.max"),
    "rdma.max": _same_on_v1("rdma.max"),
}

BOOT_V2_ONLY = "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)"

V1_REMEDIES: Mapping[str, str] = {
    "memory.min": f"limit the others with memory_max, or {BOOT_V2_ONLY}",
    "memory.low": f"limit the others with memory_max, or {BOOT_V2_ONLY}",
    "memory.high": f"set memory_max, or {BOOT_V2_ONLY}",
    "memory.zswap.max": f"set memory_swap_max, or {BOOT_V2_ONLY}",
    "memory.oom.group": 'write a policy `when = "memory.events oom_kill"` with `action = "kill"` or `"restart"`, '
    f"or {BOOT_V2_ONLY}",
    "cpuset.cpus.partition": f"give the other workloads other cpuset_cpus, or {BOOT_V2_ONLY}",
    "io.latency": f"limit the others with io_max, or {BOOT_V2_ONLY}",
}
"""v2 files without an equivalent on v1 → what to do instead.

memory.soft_limit_in_bytes is neither memory.high nor memory.low: it acts only when the whole host is short of memory,
and takes from the cgroups above their limit, which protects no other cgroup. cpuset.cpu_exclusive keeps siblings off
the CPUs but not the cgroups above, so it is not a partition.
"""
