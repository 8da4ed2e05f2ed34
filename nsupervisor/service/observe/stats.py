"""The resource use of a cgroup in plain counters: the difference between two readings gives a rate."""

from collections.abc import Mapping
from math import inf
from typing import Any

import trio

from nsupervisor.cgroups import Cgroup, CgroupError
from nsupervisor.service.platform.traffic import KEYS as TRAFFIC_KEYS

_STATUS_KEYS = ("name", "state", "generation", "memory_current", "memory_max", "pids_current", "pids_max")


def usage_sample(status: Mapping[str, Any], cgroup: Cgroup) -> dict[str, Any]:
    """Return the object `Stats` of the API.

    `status` is the object `Status` of the same instance, made just now.

    A value is None if this host does not count it (on a hybrid host, the form of io.stat is not kept here). Sources:
    cpu.stat, io.stat and the .pressure files of Documentation/admin-guide/cgroup-v2.rst.
    """

    def read(file: str) -> Mapping[str, float]:
        try:
            return cgroup.read_once(file)  # not kept open: that would be a dozen descriptors for each workload
        except CgroupError:
            return {}

    cpu, io, limit = read("cpu.stat"), read("io.stat"), read("cpu.max")
    quota, period = limit.get("quota", inf), limit.get("period", inf)
    return {
        "at": trio.current_time(),
        **{key: status[key] for key in _STATUS_KEYS},
        "cpu_usage_usec": _whole(cpu.get("usage_usec")),
        "cpu_max_percent": None if quota == inf else quota / period * 100,
        "periods": _whole(cpu.get("nr_periods")),
        "throttled_periods": _whole(cpu.get("nr_throttled")),
        "throttled_usec": _whole(cpu.get("throttled_usec")),
        "io_read_bytes": _over_devices(cgroup, io, "rbytes"),
        "io_write_bytes": _over_devices(cgroup, io, "wbytes"),
        **{key: status[key] for key in TRAFFIC_KEYS},
        **{f"{kind}_stalled_usec": _whole(read(f"{kind}.pressure").get("some total")) for kind in _PRESSURES},
    }


_PRESSURES = ("cpu", "memory", "io")


def _over_devices(cgroup: Cgroup, io: Mapping[str, float], counter: str) -> int | None:
    """Sum "8:0 rbytes", "8:16 rbytes", …: 0 for a workload without I/O so far, whose file is empty."""
    if not io and not cgroup.supports("io.stat"):
        return None
    return int(sum(value for key, value in io.items() if key.endswith(f" {counter}")))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
