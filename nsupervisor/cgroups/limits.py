"""Set the limits of a cgroup: one resource, or all of a configuration.

Each value is written and read back; an error describes what the kernel did not accept.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from math import inf
from typing import Any

from nsupervisor.cgroups import partition
from nsupervisor.cgroups.cgroup import Cgroup
from nsupervisor.cgroups.errors import CgroupError, HostProblem, UnsupportedValueError
from nsupervisor.cgroups.files import KERNEL_DEFAULTS, PAGE_SIZE, RESOURCE_FILES, V1_EQUIVALENTS, V2_WRITERS, Writes
from nsupervisor.cgroups.parsing import parse_cpu_list, parse_file
from nsupervisor.cgroups.values import RAW_PREFIX, configured_values, display_text, encode_value, file_for_key
from nsupervisor.config.units import Percent

_V1_EFFECTIVE_FILES = {"cpuset.cpus": "cpuset.effective_cpus", "cpuset.mems": "cpuset.effective_mems"}
"""Files that contain lists of numbers, and the v1 names of the files that show which of them are in force."""


def apply_limits(cgroup: Cgroup, resources: Any, is_new: bool = False) -> None:
    """Set all resources. Unless the cgroup is new, resources that are not given return to the kernel's default.

    resources: an object with the fields of RESOURCE_FILES, `required` and `of_profile`. If `required` is false, and for
    keys of `of_profile`, a failure is added to `cgroup.problems` instead of raising CgroupError.
    """
    cgroup.problems.clear()
    values = configured_values(resources)
    keys = [*values]
    if not is_new:
        keys += [key for key, file in RESOURCE_FILES.items() if key not in values and _is_set(cgroup, file)]
    unfit = {problem.key: problem for problem in cgroup.host.check_resources(resources, cgroup.ancestor_limits())}
    for key, value in _plan_steps(cgroup, keys, values):
        try:
            if (problem := unfit.get(key)) is not None:
                raise _refusal(cgroup, problem)
            set_limit(cgroup, key, value)
        except CgroupError as error:
            if resources.required and key not in resources.of_profile:
                raise
            cgroup.problems.append(HostProblem(key, str(error), "the workload runs without it"))


def change_limits(cgroup: Cgroup, before: Any, after: Any) -> None:
    """Change from one set of resources to another while the workload runs: completely or, on a failure, not at all.

    Raises CgroupError with the failure, after the limits that were already set have been restored. A failure to
    restore is in the message as well.
    """
    old, new = configured_values(before), configured_values(after)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    for problem in cgroup.host.check_resources(after, cgroup.ancestor_limits()):
        if problem.key in keys or (problem.key == "memory_swap_max" and "memory_max" in keys):
            raise _refusal(cgroup, problem)
    tried = []
    try:
        for key, value in _plan_steps(cgroup, keys, new):
            tried.append(key)
            set_limit(cgroup, key, value)
    except CgroupError as error:
        failures = [str(error)]
        for key, value in _plan_steps(cgroup, list(dict.fromkeys(tried)), old):
            try:
                set_limit(cgroup, key, value)
            except CgroupError as restore_error:
                failures.append(f"and what was before is not back: {restore_error}")
        raise CgroupError("; ".join(failures)) from error


def find_foreign_changes(cgroup: Cgroup, resources: Any, is_thorough: bool = True) -> dict[str, str]:
    """Return the limits that are not what was written, by key, each with a description of what the kernel has.

    resources: the limits that the cgroup was given. Those that could not be set (`cgroup.problems`) do not count. Raw
    files, and partitions, which the kernel may change itself, are not compared.

    is_thorough: also return limits that were not given, but are set. That reads a file for each key.
    """
    values = configured_values(resources)
    compared = {key: value for key, value in values.items() if not key.startswith(RAW_PREFIX)}
    if is_thorough:
        compared |= {key: None for key in RESOURCE_FILES if key not in values}
    for key in ("cpuset_cpus_partition", *(problem.key for problem in cgroup.problems)):
        compared.pop(key, None)
    changes = {}
    for key, value in compared.items():
        file = file_for_key(key)
        try:
            if value is None:
                mismatch = "it is set" if file not in _V1_EFFECTIVE_FILES and _is_set(cgroup, file) else None
            else:
                text = encode_value(key, cgroup.host.resolve_percentage(key, value, cgroup.ancestor_limits()))
                mismatch = _find_mismatch(cgroup, file, text, cgroup.directory(file))
        except (CgroupError, OSError, UnsupportedValueError):
            continue  # the cgroup has just been removed, or a disk; the next write reports it
        if mismatch is not None:
            changes[key] = mismatch
    return changes


def restore_limits(cgroup: Cgroup, resources: Any, keys: Collection[str]) -> None:
    """Set these limits again, which others have changed. Raises CgroupError."""
    values = configured_values(resources)
    for key, value in _plan_steps(cgroup, list(keys), values):
        set_limit(cgroup, key, value)


def reapply_percentages(cgroup: Cgroup, resources: Any) -> None:
    """Set the percentages again, after the limit of a group around it has changed.

    Raises CgroupError like `set_limit`.
    """
    values = configured_values(resources)
    keys = [key for key, value in values.items() if isinstance(value, Percent)]
    for key, value in _plan_steps(cgroup, keys, values):
        set_limit(cgroup, key, value)


def recreate_cgroup(cgroup: Cgroup, resources: Any) -> None:
    """Make the v2 directory of a cgroup again, with its limits, after a kill or if a program has left something in it.

    `Cgroup.recreate_directory` and `Cgroup.has_leftovers` give the reasons.

    Watchers of the cgroup must be added again as well. Raises CgroupError if the cgroup is populated, or a limit cannot
    be set again.
    """
    cgroup.recreate_directory()
    apply_limits(cgroup, resources, is_new=True)
    cgroup.was_killed = False  # only now: after a failure, the next start must not run without limits


def _refusal(cgroup: Cgroup, problem: HostProblem) -> CgroupError:
    return CgroupError(f"cannot set {file_for_key(problem.key)} of {cgroup.name}: {problem.reason}; {problem.remedy}")


def _plan_steps(cgroup: Cgroup, keys: list[str], values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return (key, value) pairs in the order in which to set them; None lifts a limit.

    The kernel refuses a quota below the burst, and on v1 a limit of memory above that of memory and swap. If the first
    of two such keys changes, the second is lifted before and set again after.
    """
    ordered = [key for key in RESOURCE_FILES if key in keys] + [key for key in keys if key.startswith(RAW_PREFIX)]
    pairs = [(key, values.get(key)) for key in ordered]
    for first, second in (("cpu_max", "cpu_max_burst"), ("memory_max", "memory_swap_max")):
        lift_second = second == "cpu_max_burst" or cgroup.is_v1(RESOURCE_FILES[second])
        if (
            first in keys
            and lift_second
            and (values.get(second) is not None or _is_set(cgroup, RESOURCE_FILES[second]))
        ):
            pairs = [(second, None), *(step for step in pairs if step[0] != second)]
            pairs.insert([key for key, _ in pairs].index(first) + 1, (second, values.get(second)))
    return pairs


# one resource ---------------------------------------------------------------------------------------------------------


def set_limit(cgroup: Cgroup, key: str, value: Any) -> None:
    """Set one resource by its configuration key ("memory_max") to its configured value; None lifts the limit.

    The file is read back: a value that the kernel did not accept, except for rounding to pages, is an error.
    CgroupError names the file, the workload, the value and the kernel's reason.
    """
    file = file_for_key(key)
    value = cgroup.host.resolve_percentage(key, value, cgroup.ancestor_limits())
    name = cgroup.name
    if key.startswith(RAW_PREFIX):
        _set_raw(cgroup, file, value)
        return
    try:
        text = encode_value(key, value)
    except UnsupportedValueError as error:
        raise CgroupError(f"cannot set {file} of {name}: {error}") from error
    directory = cgroup.ensure_controller(file)
    v1 = directory != cgroup.path
    if file in _V1_EFFECTIVE_FILES and v1 and value is None:
        text = _read_text(cgroup, f"{os.path.dirname(directory)}/{file}")  # v1 cannot express "like the parent"
    subject = f"{file} of {name} to {display_text(file, text)}"
    if (
        file == "cpuset.cpus"
        and not v1
        and (owner := partition.find_owner(cgroup.path, text, cgroup.host.files)) is not None
    ):
        raise CgroupError(
            f"cannot set {subject}: {owner[0]} has the CPUs {owner[1]} for itself (cpuset_cpus_partition)"
        )
    if file == "cpuset.cpus.partition":
        cpus = _read_text(cgroup, f"{cgroup.path}/cpuset.cpus") if text != "member" else ""
        partition.claim_cpus(cgroup.path, cpus, cgroup.host.files)
    for target, line in _file_writes(cgroup, file, text, directory):
        _write_file(cgroup, directory, target, line, subject)
    if (actual := _find_mismatch(cgroup, file, text, directory)) is not None:
        raise CgroupError(f"cannot set {subject}: {actual}")


def _file_writes(cgroup: Cgroup, file: str, text: str, directory: str) -> Writes:
    def read_present(name: str) -> str:
        try:
            return _read_text(cgroup, f"{directory}/{name}")
        except FileNotFoundError:
            return ""

    if directory != cgroup.path:
        writer = V1_EQUIVALENTS[file].write
        assert writer is not None
        return writer(text, read_present)
    target = cgroup.host.v2_file_name(file)
    return V2_WRITERS[target](text, read_present) if target in V2_WRITERS else [(target, text)]


def _write_file(cgroup: Cgroup, directory: str, file: str, text: str, subject: str) -> None:
    try:
        cgroup.host.files.write(f"{directory}/{file}", text)
    except FileNotFoundError as error:
        raise CgroupError(f"cannot set {subject}: this kernel has no {file}") from error
    except OSError as error:
        raise CgroupError(f"cannot set {subject}: {_error_reason(file, error)}") from error


def _find_mismatch(cgroup: Cgroup, file: str, text: str, directory: str) -> str | None:
    """Describe the value that the kernel set instead of the requested one; None if it set the requested one."""
    if file in _V1_EFFECTIVE_FILES:
        # v2 accepts CPUs that do not exist, and then silently uses the parent's: only the effective list shows it.
        effective = f"{file}.effective" if directory == cgroup.path else _V1_EFFECTIVE_FILES[file]
        actual = _read_text(cgroup, f"{directory}/{effective}")
        wanted = parse_cpu_list(text)
        return None if not wanted or parse_cpu_list(actual) <= wanted else f'the kernel made it "{actual}"'
    if file == "cpuset.cpus.partition":
        actual = _read_text(cgroup, f"{directory}/{file}")
        return None if actual == text else f'the kernel says "{actual}"'
    if text == "idle":
        return None if _read_text(cgroup, f"{directory}/cpu.idle") == "1" else "the kernel did not make it idle"
    wanted_values, values = parse_file(file, text), cgroup.read_once(file)
    for name in wanted_values | values:
        # A key that is not listed has no limit.
        wanted_value, actual_value = wanted_values.get(name, inf), values.get(name, inf)
        if actual_value == wanted_value:
            continue
        if wanted_value != inf and _is_rounded_to_pages(file) and actual_value == wanted_value // PAGE_SIZE * PAGE_SIZE:
            continue
        if file.startswith("hugetlb.") and wanted_value - 2**30 < actual_value < wanted_value:
            continue  # rounded down to whole huge pages
        suffix = f" ({name})" if name and file != "cpu.max" else ""
        return f"the kernel made it {'no limit' if actual_value == inf else f'{actual_value:.0f}'}{suffix}"
    return None


def _is_rounded_to_pages(file: str) -> bool:
    return file.startswith("memory.") and file != "memory.oom.group"


def _is_set(cgroup: Cgroup, file: str) -> bool:
    """Return whether the file differs from the kernel's default."""
    try:
        directory = cgroup.directory(file)
    except CgroupError:
        return False
    if file in _V1_EFFECTIVE_FILES:
        return directory != cgroup.path or _text_or_empty(cgroup, f"{directory}/{file}") != ""
    if file == "cpuset.cpus.partition":
        return _text_or_empty(cgroup, f"{directory}/{file}") not in ("", "member")
    if not cgroup.supports(file):
        return False
    default = parse_file(file, KERNEL_DEFAULTS[file])
    return any(value != default.get(name, inf) for name, value in cgroup.read_once(file).items())


# raw files -----------------------------------------------------------------------------------------------------------


def _set_raw(cgroup: Cgroup, file: str, value: str | None) -> None:
    """Write a file of cgroup v2 without conversion. None restores the text from before the first write."""
    directory = cgroup.ensure_controller(file)
    path, subject = f"{directory}/{file}", f"{file} of {cgroup.name}"
    if cgroup.is_v1(file):
        raise CgroupError(f"cannot set {subject}: it is a file of cgroup v2, and this host has its controller on v1")
    if value is None:
        value = cgroup.raw_originals.get(file, "")
        if not value or "\n" in value:
            raise CgroupError(
                f"cannot lift {subject}: its text from before cannot be written; set a value that is no limit"
            )
    elif file not in cgroup.raw_originals:
        cgroup.raw_originals[file] = _text_or_empty(cgroup, path)
    for line in value.splitlines():
        _write_file(cgroup, directory, file, line, f"{subject} to {display_text(file, value)}")
    actual = _text_or_empty(cgroup, path)
    # Forms other than one number (devices, several words) may read back differently and mean the same.
    if (
        value.isdecimal()
        and actual.isdecimal()
        and int(actual) not in (int(value), int(value) // PAGE_SIZE * PAGE_SIZE)
    ):
        raise CgroupError(f"cannot set {subject} to {display_text(file, value)}: the kernel made it {actual}")


def _text_or_empty(cgroup: Cgroup, path: str) -> str:
    try:
        return _read_text(cgroup, path)
    except OSError:  # it does not exist, or is write-only
        return ""


def _read_text(cgroup: Cgroup, path: str) -> str:
    """Return the text of an interface file, without whitespace around it."""
    return cgroup.host.files.read_text(path).strip()


def _error_reason(file: str, error: OSError) -> str:
    code = error.errno
    if file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") and code == errno.EBUSY:
        return "more than that is in use and cannot be reclaimed"
    if file == "cpuset.cpus" and code in (errno.EACCES, errno.EINVAL, errno.ERANGE):
        return "not all of these CPUs are there for the cgroup above it"
    if file == "cpuset.mems" and code in (errno.EACCES, errno.EINVAL, errno.ERANGE):
        return "not all of these memory nodes are there for the cgroup above it"
    if file in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us") and code == errno.EINVAL:
        return (
            "out of the kernel's range (a period of 1000 to 1000000 microseconds, a quota from 1000), "
            "or more than the cgroup above it has"
        )
    if file in ("cpu.max.burst", "cpu.cfs_burst_us") and code == errno.EINVAL:
        return "more than the quota of cpu.max"
    if code == errno.ENODEV:
        return "the kernel has no such disk"
    if code == errno.EOPNOTSUPP and "weight" in file:
        return "this disk is not shared by weight; choose the scheduler BFQ for it"
    if file in ("misc.max", "rdma.max") and code == errno.EINVAL:
        return "the kernel has no such resource"
    return error.strerror or str(error)
