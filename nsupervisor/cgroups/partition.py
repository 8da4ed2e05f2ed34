"""Partitions of CPUs: the cgroups above a partition must have set its CPUs aside.

A partition below a cgroup that is not a partition ("remote partition", Linux ≥ 6.7) needs its CPUs in
cpuset.cpus.exclusive of every cgroup from the root down to it (cgroup-v2.rst, "Cpuset Interface Files").
"""

from __future__ import annotations

import os

from nsupervisor.cgroups.filesystem import KERNEL_FILES, CgroupFiles
from nsupervisor.cgroups.parsing import parse_cpu_list

_EXCLUSIVE_FILE = "cpuset.cpus.exclusive"


def claim_cpus(path: str, cpus: str, files: CgroupFiles = KERNEL_FILES) -> None:
    """Set `cpus` ("0-1"; "" for none) aside for the cgroup at `path`, in it and in the cgroups above it.

    A refusal by the kernel or by the owner of a cgroup above shows afterwards, in cpuset.cpus.partition and in the
    kernel's words. Older kernels have no such file: there the cgroup above would have to be a partition itself.
    """
    chain = []
    directory = os.path.dirname(path)
    while files.exists(f"{directory}/{_EXCLUSIVE_FILE}"):
        chain.append(directory)
        directory = os.path.dirname(directory)
    if not cpus:  # from the bottom up: a cgroup cannot give back what one below it still has
        _write_claim(path, "", files)
    for directory in reversed(chain) if cpus else chain:
        _write_claim(directory, _claims_with(directory, cpus, files), files)
    if cpus:
        _write_claim(path, cpus, files)


def find_owner(path: str, cpus: str, files: CgroupFiles = KERNEL_FILES) -> tuple[str, str] | None:
    """Return (name, CPUs) of a sibling of `path` whose partition has some of these CPUs; None if none has.

    Giving them to another cgroup, too, would not fail: it would silently make the partition invalid.
    """
    wanted_cpus = parse_cpu_list(cpus)
    above, own_name = os.path.split(path)
    for name in files.list_directories(above):
        if name == own_name:
            continue
        try:
            partition = files.read_text(f"{above}/{name}/cpuset.cpus.partition").split()
        except OSError:
            continue  # no such file, or just removed
        shared = wanted_cpus & _read_claim(f"{above}/{name}", files)
        if partition and partition[0] != "member" and shared:
            return name, ",".join(map(str, sorted(shared)))
    return None


def _claims_with(directory: str, cpus: str, files: CgroupFiles) -> str:
    """Return the CPUs that the cgroups below `directory` have claimed, together with `cpus`."""
    claimed = set(parse_cpu_list(cpus))
    for name in files.list_directories(directory):
        claimed |= _read_claim(f"{directory}/{name}", files)
    return ",".join(map(str, sorted(claimed)))


def _read_claim(path: str, files: CgroupFiles) -> frozenset[int]:
    try:
        return parse_cpu_list(files.read_text(f"{path}/{_EXCLUSIVE_FILE}"))
    except OSError:
        return frozenset()


def _write_claim(path: str, cpus: str, files: CgroupFiles) -> None:
    try:
        files.write(f"{path}/{_EXCLUSIVE_FILE}", cpus)
    except OSError:
        pass  # cpuset.cpus.partition shows the result
