"""Setting one resource of one cgroup: write, read back, and say in words what the kernel did not take."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from nsupervisor.cgroups import directories, partition
from nsupervisor.cgroups.errors import CgroupError, Problem, UnfitError
from nsupervisor.cgroups.files import PAGE, RESOURCES, UNLIMITED, V1, V2_WRITE, Writes
from nsupervisor.cgroups.parsing import parse, parse_cpu_list
from nsupervisor.cgroups.values import RAW, display, encode, file_of

if TYPE_CHECKING:
    from nsupervisor.cgroups.cgroup import Cgroup

_LISTS = {"cpuset.cpus": "cpuset.effective_cpus", "cpuset.mems": "cpuset.effective_mems"}
"""Files that are lists of numbers, and v1's names of those that say which of them are in force."""


def steps(cgroup: Cgroup, keys: list[str], values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What to set, in which order, to give these keys these values; None lifts a limit.

    The kernel refuses a quota below the burst, and on v1 a limit of memory above that of memory and swap: where one of
    the two is to change, the second is taken off first and set anew after.
    """
    ordered = [key for key in RESOURCES if key in keys] + [key for key in keys if key.startswith(RAW)]
    found = [(key, values.get(key)) for key in ordered]
    for first, second in (("cpu_max", "cpu_max_burst"), ("memory_max", "memory_swap_max")):
        relaxing = second == "cpu_max_burst" or cgroup.is_v1(RESOURCES[second])
        if first in keys and relaxing and (values.get(second) is not None or is_set(cgroup, RESOURCES[second])):
            found = [(second, None), *(step for step in found if step[0] != second)]
            found.insert([key for key, _ in found].index(first) + 1, (second, values.get(second)))
    return found


def put(cgroup: Cgroup, key: str, value: Any) -> None:
    """Set one resource and read it back; see `Cgroup.set`."""
    file = file_of(key)
    value = cgroup.host.resolve(key, value, cgroup.around())
    name = cgroup.name
    if key.startswith(RAW):
        _put_raw(cgroup, file, value)
        return
    try:
        text = encode(key, value)
    except UnfitError as error:
        raise CgroupError(f"cannot set {file} of {name}: {error}") from error
    directory = cgroup.provided(file)
    v1 = directory != cgroup.path
    if file in _LISTS and v1 and value is None:
        text = read_text(f"{os.path.dirname(directory)}/{file}")  # v1 knows no "as the parent"
    shown = f"{file} of {name} to {display(file, text)}"
    if file == "cpuset.cpus" and not v1 and (owner := partition.owner(cgroup.path, text)) is not None:
        raise CgroupError(f"cannot set {shown}: {owner[0]} has the CPUs {owner[1]} for itself (cpuset_cpus_partition)")
    if file == "cpuset.cpus.partition":
        partition.claim(cgroup.path, read_text(f"{cgroup.path}/cpuset.cpus") if text != "member" else "")
    for target, words in _writes(cgroup, file, text, directory):
        _write(directory, target, words, shown)
    if (actual := _disagrees(cgroup, file, text, directory)) is not None:
        raise CgroupError(f"cannot set {shown}: {actual}")


def _writes(cgroup: Cgroup, file: str, text: str, directory: str) -> Writes:
    def now(name: str) -> str:
        try:
            return read_text(f"{directory}/{name}")
        except FileNotFoundError:
            return ""

    if directory != cgroup.path:
        writer = V1[file].write
        assert writer is not None
        return writer(text, now)
    target = v2_name(cgroup, file)
    return V2_WRITE[target](text, now) if target in V2_WRITE else [(target, text)]


def v2_name(cgroup: Cgroup, file: str) -> str:
    """The file itself, but for io.weight, which BFQ has under a name of its own."""
    if file == "io.weight":
        place = cgroup.host.place(file)
        found = place if isinstance(place, Problem) else cgroup.host.weight_file(place)
        return file if isinstance(found, Problem) else found
    return file


def _write(directory: str, file: str, text: str, shown: str) -> None:
    try:
        directories.write(f"{directory}/{file}", text)
    except FileNotFoundError as error:
        raise CgroupError(f"cannot set {shown}: this kernel has no {file}") from error
    except OSError as error:
        raise CgroupError(f"cannot set {shown}: {_reason(file, error)}") from error


def _disagrees(cgroup: Cgroup, file: str, text: str, directory: str) -> str | None:
    """What the kernel made of it where that is not what was asked for; None where it is."""
    if file in _LISTS:
        # v2 takes CPUs that do not exist, and then quietly uses the parent's: only the effective ones tell.
        effective = f"{file}.effective" if directory == cgroup.path else _LISTS[file]
        actual = read_text(f"{directory}/{effective}")
        wanted = parse_cpu_list(text)
        return None if not wanted or parse_cpu_list(actual) <= wanted else f'the kernel made it "{actual}"'
    if file == "cpuset.cpus.partition":
        actual = read_text(f"{directory}/{file}")
        return None if actual == text else f'the kernel says "{actual}"'
    if text == "idle":
        return None if read_text(f"{directory}/cpu.idle") == "1" else "the kernel did not make it idle"
    wanted_values, values = parse(file, text), cgroup.look(file)
    for name in wanted_values | values:
        wanted_value, got = wanted_values.get(name, inf), values.get(name, inf)  # what is not listed has no limit
        if got == wanted_value:
            continue
        if wanted_value != inf and _rounds(file) and got == wanted_value // PAGE * PAGE:
            continue
        if file.startswith("hugetlb.") and wanted_value - 2**30 < got < wanted_value:
            continue  # rounded down to whole huge pages
        which = f" ({name})" if name and file != "cpu.max" else ""
        return f"the kernel made it {'no limit' if got == inf else f'{got:.0f}'}{which}"
    return None


def _rounds(file: str) -> bool:
    return file.startswith("memory.") and file != "memory.oom.group"


def is_set(cgroup: Cgroup, file: str) -> bool:
    """Whether the file says anything but what the kernel has there when nobody set anything."""
    try:
        directory = cgroup.directory(file)
    except CgroupError:
        return False
    if file in _LISTS:
        return directory != cgroup.path or _text_or_empty(f"{directory}/{file}") != ""
    if file == "cpuset.cpus.partition":
        return _text_or_empty(f"{directory}/{file}") not in ("", "member")
    if not cgroup.offers(file):
        return False
    usual = parse(file, UNLIMITED[file])
    return any(value != usual.get(name, inf) for name, value in cgroup.look(file).items())


# raw files -----------------------------------------------------------------------------------------------------------


def _put_raw(cgroup: Cgroup, file: str, value: str | None) -> None:
    """Write a file of cgroup v2 as it is. None: what it had said before the first time."""
    directory = cgroup.provided(file)
    path, shown = f"{directory}/{file}", f"{file} of {cgroup.name}"
    if cgroup.is_v1(file):
        raise CgroupError(f"cannot set {shown}: it is a file of cgroup v2, and this host has its controller on v1")
    if value is None:
        value = cgroup.raw_before.get(file, "")
        if not value or "\n" in value:
            raise CgroupError(f"cannot lift {shown}: what it said before cannot be written; set what is no limit")
    elif file not in cgroup.raw_before:
        cgroup.raw_before[file] = _text_or_empty(path)
    for line in value.splitlines():
        _write(directory, file, line, f"{shown} to {display(file, value)}")
    actual = _text_or_empty(path)
    # Other forms than one number (devices, several words) may read back otherwise and mean the same.
    if value.isdecimal() and actual.isdecimal() and int(actual) not in (int(value), int(value) // PAGE * PAGE):
        raise CgroupError(f"cannot set {shown} to {display(file, value)}: the kernel made it {actual}")


def _text_or_empty(path: str) -> str:
    try:
        return read_text(path)
    except OSError:  # not there, or only to be written
        return ""


def read_text(path: str) -> str:
    """A file's text, without blanks around it."""
    with open(path) as file:
        return file.read().strip()


def _reason(file: str, error: OSError) -> str:
    number = error.errno
    if file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") and number == errno.EBUSY:
        return "more than that is in use and cannot be reclaimed"
    if file == "cpuset.cpus" and number in (errno.EACCES, errno.EINVAL, errno.ERANGE):
        return "not all of these CPUs are there for the cgroup above it"
    if file == "cpuset.mems" and number in (errno.EACCES, errno.EINVAL, errno.ERANGE):
        return "not all of these memory nodes are there for the cgroup above it"
    if file in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us") and number == errno.EINVAL:
        return (
            "out of the kernel's range (a period of 1000 to 1000000 microseconds, a quota from 1000), "
            "or more than the cgroup above it has"
        )
    if file in ("cpu.max.burst", "cpu.cfs_burst_us") and number == errno.EINVAL:
        return "more than the quota of cpu.max"
    if number == errno.ENODEV:
        return "the kernel has no such disk"
    if number == errno.EOPNOTSUPP and "weight" in file:
        return "this disk is not shared by weight; choose the scheduler BFQ for it"
    if file in ("misc.max", "rdma.max") and number == errno.EINVAL:
        return "the kernel has no such resource"
    return error.strerror or str(error)
