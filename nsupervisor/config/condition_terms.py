"""Vocabulary of rule conditions: the files, their keys, and the units of their values.

Files and keys are the kernel's (Documentation/admin-guide/cgroup-v2.rst, Documentation/accounting/psi.rst). Three are
the supervisor's own knowledge of a program: `exit` (how it ended), `uptime`, and `probe` (the results of its probes).
"""

from __future__ import annotations

MEMORY_EVENTS = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
IO_STAT = ("rbytes", "wbytes", "rios", "wios", "dbytes", "dios")
"""Keys of io.stat, which has them for each device; a condition means the sum over all devices."""
MEMORY_STAT_COUNTERS = (
    "pgfault pgmajfault pgscan pgsteal pgscan_kswapd pgscan_direct pgsteal_kswapd pgsteal_direct pgrefill pgactivate "
    "pgdeactivate pglazyfree pglazyfreed swpin_zero swpout_zero thp_fault_alloc thp_collapse_alloc zswpin zswpout "
    "zswpwb workingset_refault_anon workingset_refault_file workingset_activate_anon workingset_activate_file "
    "workingset_restore_anon workingset_restore_file workingset_nodereclaim"
)
COUNTERS = {
    "memory.events": MEMORY_EVENTS,
    "memory.events.local": MEMORY_EVENTS,
    "pids.events": ("max",),
    "pids.events.local": ("max",),
    "cpu.stat": (
        *("nr_throttled", "throttled_usec", "nr_periods", "nr_bursts", "burst_usec"),
        *("usage_usec", "user_usec", "system_usec"),
    ),
    "io.stat": IO_STAT,
    "memory.stat": tuple(MEMORY_STAT_COUNTERS.split()),
}
"""Values that only ever increase."""
_MEMORY_STAT = (
    "anon file kernel kernel_stack pagetables sec_pagetables percpu sock vmalloc shmem zswap zswapped file_mapped "
    "file_dirty file_writeback swapcached anon_thp file_thp shmem_thp inactive_anon active_anon inactive_file "
    "active_file unevictable slab_reclaimable slab_unreclaimable slab"
)
_PRESSURE = tuple(f"{kind} avg{window}" for kind in ("some", "full") for window in (10, 60, 300))
HOST_PREFIX = "host."
"""Prefix of readings of the whole host: "host.memory.pressure" is /proc/pressure/memory."""
HOST_MEMORY_TOTALS = {"MemAvailable": "MemTotal", "MemFree": "MemTotal", "SwapFree": "SwapTotal"}
"""Keys of host.meminfo (/proc/meminfo), each with the key that is the base of its percentages."""
SIZE_FILES: dict[str, tuple[str, ...]] = {
    "memory.current": (),
    "memory.stat": tuple(_MEMORY_STAT.split()),
    "host.meminfo": tuple(HOST_MEMORY_TOTALS),
}
NUMBER_FILES: dict[str, tuple[str, ...]] = {"pids.current": ()}
PRESSURE_FILES = {
    f"{place}{kind}.pressure": _PRESSURE for place in ("", HOST_PREFIX) for kind in ("cpu", "io", "memory")
}
UPTIME = "uptime"
DURATION_FILES: dict[str, tuple[str, ...]] = {UPTIME: ()}
LEVELS = SIZE_FILES | NUMBER_FILES | PRESSURE_FILES | DURATION_FILES
"""Values that rise and fall, and have to be sampled."""
LIMIT_KEYS = {"pids.current": "pids_max", "memory.current": "memory_max"}
"""Files whose value can be a percentage, and the configuration key of its base."""
EXIT = "exit"
EXIT_KEYS = ("code", "signal", "oom_killed", "core_dumped")
"""Values of an exit that a condition can test."""
PROBE = "probe"
PROBE_KINDS = ("readiness", "liveness")
"""Probes whose results a condition can test. A failure of `startup` ends the program in any case."""
TOOK = "took avg"
"""Key of the average time of a probe's latest results, behind the probe's own."""
NOT_FILES = (EXIT, UPTIME, PROBE)

MICROSECOND_KEYS = frozenset({"throttled_usec", "burst_usec", "usage_usec", "user_usec", "system_usec"})
"""Counters of time, whose rate may be written as a time, or as a share of one CPU."""
BYTE_KEYS = frozenset({"rbytes", "wbytes", "dbytes"})

MIN_WINDOW_S, MAX_WINDOW_S = 0.5, 10.0
"""Window of a pressure trigger, in seconds (WINDOW_MIN_US, WINDOW_MAX_US of kernel/sched/psi.c)."""


def has_notification(file: str) -> bool:
    """Check whether the kernel notifies of changes of the file; others have to be sampled."""
    return file.removesuffix(".local").endswith(".events")


def needs_sampling(file: str) -> bool:
    """Check whether the file has to be sampled, because no notification reports its changes."""
    return file != EXIT and not has_notification(file)
