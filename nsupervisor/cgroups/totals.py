"""The base of percentages: the memory and the number of processes that this host can give to workloads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf

from nsupervisor.cgroups.files import V1_EQUIVALENTS
from nsupervisor.cgroups.filesystem import KERNEL_FILES, CgroupFiles
from nsupervisor.cgroups.mounts import Hierarchy
from nsupervisor.cgroups.parsing import parse_single


def total_memory(limits: Iterator[float], meminfo: str = "/proc/meminfo") -> int:
    """Return bytes: MemTotal, or the smallest memory.max of the cgroups around us if less, as in a container."""
    with open(meminfo) as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal:"))
    return int(min((total, *limits)))


def max_processes(limits: Iterator[float], sysctl: str = "/proc/sys/kernel") -> int:
    """Return a number of processes and threads: the smallest of kernel.pid_max, kernel.threads-max and the limits."""
    numbers = []
    for name in ("pid_max", "threads-max"):
        with open(f"{sysctl}/{name}") as file:
            numbers.append(int(file.read()))
    return int(min((*numbers, *limits)))


def ancestor_limits(hierarchy: Hierarchy, base: str, file: str, files: CgroupFiles = KERNEL_FILES) -> Iterator[float]:
    """Yield the v2 file's values in `base` and the cgroups above it, as far as they are visible."""
    directory = base
    while directory.startswith(hierarchy.mount_point):
        try:
            if hierarchy.version == 2:
                yield parse_single(files.read_text(f"{directory}/{file}"))[""]
            else:
                texts = [files.read_text(f"{directory}/{name}") for name in V1_EQUIVALENTS[file].files]
                yield V1_EQUIVALENTS[file].read(texts)[""]
        except FileNotFoundError:  # the real root has no limits
            yield inf
        if directory == hierarchy.mount_point:
            return
        directory = os.path.dirname(directory)
