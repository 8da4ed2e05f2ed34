"""Limits of a cgroup as configuration keys, named as cgroup v2's files.

A part of `nsupervisor.config.model`, in a module of its own because workloads and groups share it.
"""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from nsupervisor.config import kinds
from nsupervisor.config import limit_kinds as limits
from nsupervisor.config.kinds import Choice, MapOf, PrefixedKeys, TablesOf, key
from nsupervisor.config.table import Table
from nsupervisor.config.units import Percent
from nsupervisor.wire_names import wire


@frozen(kw_only=True, repr=False)
class IoMax(Table):
    """[[workload.NAME.resources.io_max]]: limits for one disk. None: no limit."""

    device: str = field(metadata=key(kinds.PATH, "a file or directory on the disk, or its device node"))
    rbps: int | None = field(default=None, metadata=key(kinds.LIMIT, "bytes read a second"))
    wbps: int | None = field(default=None, metadata=key(kinds.LIMIT, "bytes written a second"))
    riops: int | None = field(default=None, metadata=key(limits.RATE_LIMIT, "reads a second"))
    wiops: int | None = field(default=None, metadata=key(limits.RATE_LIMIT, "writes a second"))


@frozen(kw_only=True, repr=False)
class IoLatency(Table):
    """[[workload.NAME.resources.io_latency]]: a latency target; other cgroups are throttled when it is missed."""

    device: str = field(metadata=key(kinds.PATH, "a file or directory on the disk, or its device node"))
    target: int = field(metadata=key(limits.LATENCY, 'how long a request may take: "20ms", or microseconds'))


@frozen(kw_only=True, repr=False)
class RdmaMax(Table):
    """[[workload.NAME.resources.rdma_max]]: limits for one RDMA device. None: no limit."""

    device: str = field(metadata=key(kinds.WORD, 'as rdma.max calls it: "mlx4_0"'))
    hca_handle: int | None = field(default=None, metadata=key(limits.NUMBER_LIMIT, "handles"))
    hca_object: int | None = field(default=None, metadata=key(limits.NUMBER_LIMIT, "objects"))


@frozen(repr=False)
class Resources(Table):
    """[workload.NAME.resources], and the keys of [group.NAME]: cgroup v2 files by their own names.

    None, or an empty table or list, means not set.
    """

    required: bool = field(
        default=True,
        metadata=key(kinds.BOOLEAN, "refuse to start where the host cannot enforce these; false: warn and go on"),
    )
    memory_min: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_PROTECTION, "below it, nothing is ever taken away from it")
    )
    memory_low: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_PROTECTION, "below it, others give memory back first")
    )
    memory_high: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT, "above it, allocations slow down")
    )
    memory_max: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT, "above it, the OOM killer acts")
    )
    memory_swap_max: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT_0, "what it may have in swap, in addition to memory_max")
    )
    memory_zswap_max: int | Percent | None = field(
        default=None, metadata=key(limits.MEMORY_LIMIT_0, "what it may have compressed in memory")
    )
    memory_oom_group: bool | None = field(
        default=None, metadata=key(kinds.BOOLEAN, "the OOM killer ends the whole workload")
    )
    pids_max: int | Percent | None = field(default=None, metadata=key(limits.COUNT_LIMIT, "processes and threads"))
    cpu_max: tuple[int | None, int] | None = field(
        default=None,
        metadata=key(limits.CPU_MAX, 'share of CPU time: "150%", "QUOTA PERIOD" in microseconds, "max"'),
    )
    cpu_max_burst: int | None = field(
        default=None, metadata=key(limits.MICROSECONDS, 'unused time it may catch up on: "20ms", or microseconds')
    )
    cpu_weight: int | Literal["idle"] | None = field(
        default=None,
        metadata=key(
            limits.CPU_WEIGHT, 'share of busy CPUs against its siblings; the kernel\'s is 100; "idle": only else'
        ),
    )
    cpuset_cpus: str | None = field(default=None, metadata=key(limits.CPU_LIST, 'the CPUs it may run on: "0-1,4"'))
    cpuset_mems: str | None = field(default=None, metadata=key(limits.NODE_LIST, 'its memory nodes: "0"'))
    cpuset_cpus_partition: Literal["member", "root", "isolated"] | None = field(
        default=None,
        metadata=key(Choice("member", "root", "isolated"), "whether its CPUs are taken away from all others"),
    )
    io_max: tuple[IoMax, ...] = field(default=(), metadata=key(TablesOf(IoMax), "how fast disks may be used"))
    io_weight: dict[str, int] | None = field(
        default=None,
        metadata=key(limits.IO_WEIGHT, "share of busy disks against its siblings; the kernel's is 100"),
    )
    io_latency: tuple[IoLatency, ...] = field(
        default=(), metadata=key(TablesOf(IoLatency), "how long requests to disks may take")
    )
    hugetlb: dict[str, int | None] = field(
        factory=dict,
        metadata=key(PrefixedKeys("hugetlb_", limits.HUGE_PAGES), "bytes in huge pages of this size") | wire("hugetlb"),
    )
    """Limits by page size: {"2MB_max": bytes, or None for no limit}."""
    misc_max: dict[str, int | None] = field(
        factory=dict,
        metadata=key(MapOf(limits.NUMBER_LIMIT, key=kinds.WORD), "other resources, as misc.capacity has"),
    )
    rdma_max: tuple[RdmaMax, ...] = field(
        default=(), metadata=key(TablesOf(RdmaMax), "what may be had of RDMA devices")
    )
    unified: dict[str, str] = field(
        factory=dict,
        metadata=key(MapOf(limits.RAW_VALUE, key=limits.RAW_FILE), "other cgroup v2 files, as they are"),
    )
