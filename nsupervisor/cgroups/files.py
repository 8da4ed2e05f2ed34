"""The one table that maps v2 file names to v1: which files, how they read, how a v2 value is written to them.

Everything above speaks v2's names and units; here alone it is known that a host may have a controller on v1. What has
no honest v1 equivalent is in NOT_ON_V1, with what to do instead. Sources: the kernel's Documentation/admin-guide/
cgroup-v1/{memory,pids,cpusets}.rst and cgroup-v2.rst, Documentation/scheduler/{sched-bwc,sched-design-CFS}.rst.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import inf

import attrs

from nsupervisor.cgroups.readings import number, parse, parse_flat, parse_single

CONTROLLERS = ("memory", "pids", "cpu", "cpuset")
"""The controllers that some key of ours needs, in the order in which they are enabled."""

RESOURCES: Mapping[str, str] = {
    "memory_high": "memory.high",  # before memory.max: a lowered maximum shall find the throttle in place
    "memory_max": "memory.max",
    "memory_oom_group": "memory.oom.group",
    "pids_max": "pids.max",
    "cpu_max": "cpu.max",
    "cpu_weight": "cpu.weight",
    "cpuset_cpus": "cpuset.cpus",
}
"""The keys of a workload's resources and the v2 file each one sets, in the order of writing."""

UNLIMITED: Mapping[str, str] = {
    "memory.high": "max",
    "memory.max": "max",
    "memory.oom.group": "0",
    "pids.max": "max",
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "cpuset.cpus": "",
}
"""What the kernel has in each of these files when nobody set anything, in v2's words."""

PAGE = os.sysconf("SC_PAGE_SIZE")

_NO_LIMIT_V1 = (2**63 - 1) // PAGE * PAGE  # PAGE_COUNTER_MAX in bytes: how v1 says "max"


def encode(key: str, value: object) -> str:
    """The v2 text of a resource's value: 67108864 → "67108864", (50000, 100000) → "50000 100000", None → no limit."""
    file = RESOURCES[key]
    if value is None:
        return UNLIMITED[file]
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple):
        quota, period = value
        return f"{'max' if quota is None else quota} {period}"
    return str(value)


def display(file: str, text: str) -> str:
    """A v2 text as a person would write it: memory sizes with a unit where it is exact, "no limit" for "max"."""
    if text == "max":
        return "no limit"
    if file in ("memory.max", "memory.high"):
        size = int(text)
        for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
            if size and size % (1 << shift) == 0:
                return f"{size >> shift}{unit}"
    return f'"{text}"' if " " in text or not text else text


def shares_of_weight(weight: int) -> int:
    """cpu.weight (1 to 10000, default 100) → cpu.shares (default 1024).

    The kernel's own conversion (sched_weight_from_cgroup in kernel/sched/sched.h: weight * 1024 / 100, rounded), so
    that the scheduler sees the very same number on both kinds of host.
    """
    return (weight * 1024 + 50) // 100


def weight_of_shares(shares: int) -> int:
    """cpu.shares → cpu.weight: sched_weight_to_cgroup in the same place, kept within 1 to 10000."""
    return min(max((shares * 100 + 512) // 1024, 1), 10000)


def _v1_limit(text: str) -> float:
    value = number(text.strip())
    return inf if value >= _NO_LIMIT_V1 else value


def _memory_events(texts: Sequence[str]) -> dict[str, float]:
    # oom_control also says oom_kill_disable and under_oom, which are states, not counters of events
    counts = {"max": number(texts[1].strip())}
    control = parse_flat(texts[0])
    if "oom_kill" in control:  # Linux ≥ 4.13
        counts["oom_kill"] = control["oom_kill"]
    return counts


_MEMORY_STAT = {
    # v2's key: v1's, the "total_" ones, which count the whole subtree as v2 always does
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
    return {key: values[v1] for key, v1 in _MEMORY_STAT.items() if v1 in values}


def _cpu_max(texts: Sequence[str]) -> dict[str, float]:
    quota = int(texts[0])
    return {"quota": inf if quota < 0 else quota, "period": int(texts[1])}


def _write_cpu_max(text: str) -> list[tuple[str, str]]:
    quota, period = text.split()
    # Quota off first: a new period with the old quota could break the rule that a child's share fits in its parent's.
    writes = [("cpu.cfs_quota_us", "-1"), ("cpu.cfs_period_us", period)]
    return writes if quota == "max" else [*writes, ("cpu.cfs_quota_us", quota)]


def _cpu_stat(texts: Sequence[str]) -> dict[str, float]:
    # The v2 core has the usage, also on hybrid hosts (cgroup_base_stat, Linux ≥ 4.15); throttling belongs to the
    # controller. v1 says throttled_time and burst_time in nanoseconds.
    values = parse_flat(texts[0])
    for key, value in parse_flat(texts[1]).items() if len(texts) > 1 else ():
        if key.endswith("_time"):
            values[key.removesuffix("_time") + "_usec"] = value // 1000
        else:
            values[key] = value
    return values


def _same_name(file: str) -> V1File:
    return V1File((file,), lambda texts: parse(file, texts[0]), lambda text: [(file, text)])


@attrs.frozen
class V1File:
    """How a v2 file is had on v1. files: the v1 files to read, whose texts `read` turns into v2's keys and units.
    write: v2's text → (v1 file, text) pairs in order of writing; None for what is only read.
    core: the v2 core's file of the same name is read first (hybrid hosts)."""

    files: tuple[str, ...]
    read: Callable[[Sequence[str]], dict[str, float]]
    write: Callable[[str], list[tuple[str, str]]] | None = None
    core: bool = False


V1: Mapping[str, V1File] = {
    "memory.max": V1File(
        ("memory.limit_in_bytes",),
        lambda texts: {"": _v1_limit(texts[0])},
        lambda text: [("memory.limit_in_bytes", "-1" if text == "max" else text)],
    ),
    "memory.current": V1File(("memory.usage_in_bytes",), lambda texts: parse_single(texts[0])),
    "memory.peak": V1File(("memory.max_usage_in_bytes",), lambda texts: parse_single(texts[0])),
    "memory.events": V1File(("memory.oom_control", "memory.failcnt"), _memory_events),
    "memory.stat": V1File(("memory.stat",), _memory_stat),
    "pids.max": _same_name("pids.max"),
    "pids.current": _same_name("pids.current"),
    "pids.peak": _same_name("pids.peak"),
    "pids.events": _same_name("pids.events"),
    "cpu.max": V1File(("cpu.cfs_quota_us", "cpu.cfs_period_us"), _cpu_max, _write_cpu_max),
    "cpu.weight": V1File(
        ("cpu.shares",),
        lambda texts: {"": weight_of_shares(int(texts[0]))},
        lambda text: [("cpu.shares", str(shares_of_weight(int(text))))],
    ),
    "cpu.stat": V1File(("cpu.stat",), _cpu_stat, core=True),
    "cpuset.cpus": _same_name("cpuset.cpus"),  # that cpuset.mems comes first is Cgroup's business
}

NOT_ON_V1: Mapping[str, str] = {
    "memory.high": "set memory_max, or boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)",
    "memory.oom.group": 'write a policy `when = "memory.events oom_kill"` with `action = "kill"` or `"restart"`, '
    "or boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)",
}
"""v2 files without an honest v1 equivalent → what to do instead. memory.soft_limit_in_bytes is not memory.high: it acts
only when the whole host is short of memory."""
