"""Describe the machine of a measurement, without which the figures have no meaning."""

import os
import platform
from pathlib import Path


def describe() -> dict[str, str | int | float]:
    """Return processor, cores, memory, kernel, cgroup hierarchies, Python and load (of other work)."""
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "cgroups": _hierarchies(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0"


def _hierarchies() -> str:
    kinds = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {(True, True): "hybrid", (True, False): "v2", (False, True): "v1"}["cgroup2" in kinds, "cgroup" in kinds]
