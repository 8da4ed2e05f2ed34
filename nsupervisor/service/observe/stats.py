"""The resource use of a cgroup in plain counters: the difference between two readings gives a rate."""

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import trio

from nsupervisor.cgroups import Cgroup, CgroupError

_STATUS_KEYS = ("name", "state", "generation", "memory_current", "memory_max", "pids_current", "pids_max")


def usage_sample(status: Mapping[str, Any], cgroup: Cgroup, own_network: bool = False) -> dict[str, Any]:
    """Return the object `Stats` of the API.

    `status` is the object `Status` of the same instance, made just now. `own_network`: it has a network namespace of
    its own, whose devices are then read.

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
        **traffic(status["pid"] if own_network else None),
        **{f"{kind}_stalled_usec": _whole(read(f"{kind}.pressure").get("some total")) for kind in _PRESSURES},
    }


_PRESSURES = ("cpu", "memory", "io")


def traffic(pid: int | None) -> dict[str, int | None]:
    """Return the bytes over the network devices that a process sees (proc_pid_net(5), dev); None for both without one.

    The loopback counts only if it is the only device: what leaves the namespace is what others notice.
    """
    received = sent = None
    try:
        text = Path(f"/proc/{pid}/net/dev").read_text() if pid is not None else ""
    except OSError:  # the process has ended just now
        text = ""
    devices = {
        name.strip(): numbers.split() for name, _, numbers in (line.partition(":") for line in text.splitlines()[2:])
    }
    counted = [numbers for name, numbers in devices.items() if name != "lo"] or list(devices.values())
    if counted:
        received, sent = (sum(int(numbers[column]) for numbers in counted) for column in (0, 8))
    return {"network_receive_bytes": received, "network_transmit_bytes": sent}


def _over_devices(cgroup: Cgroup, io: Mapping[str, float], counter: str) -> int | None:
    """Sum "8:0 rbytes", "8:16 rbytes", …: 0 for a workload without I/O so far, whose file is empty."""
    if not io and not cgroup.supports("io.stat"):
        return None
    return int(sum(value for key, value in io.items() if key.endswith(f" {counter}")))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
