"""Operations on cgroup directories: write a file, list cgroups and processes, remove from the bottom up."""

from __future__ import annotations

import errno
import os

from nsupervisor.cgroups.errors import CgroupError
from nsupervisor.cgroups.filesystem import KERNEL_FILES, CgroupFiles

_RETRY_DELAYS_MS = (1, 2, 4, 8, 16)


def write_file(path: str, text: str, files: CgroupFiles = KERNEL_FILES) -> None:
    """Write to an interface file in one write(2).

    Raises OSError with the kernel's errno; FileNotFoundError if there is no such file.
    """
    files.write(path, text)


def list_subtree(directory: str, files: CgroupFiles = KERNEL_FILES) -> list[str]:
    """Return the directory and every cgroup below it, children before their parents. Empty if it does not exist."""
    cgroups = []
    try:
        for name in files.list_directories(directory):
            cgroups += list_subtree(f"{directory}/{name}", files)
    except FileNotFoundError:
        return []  # it never existed, or the workload has removed it meanwhile
    return [*cgroups, directory]


def remove(directory: str, files: CgroupFiles = KERNEL_FILES) -> None:
    """Remove the cgroup and all cgroups below it, which workloads with a cgroup namespace make for themselves.

    rmdir(2) fails with EBUSY although `populated` is 0 if a nested cgroup was made between listing and removing, and
    while the kernel still releases an exited process. So the whole round is repeated after 1, 2, 4, 8 and 16 ms; then
    CgroupError is raised.
    """
    try:
        files.remove_directory(directory)  # almost always there are none below it
    except FileNotFoundError:
        return
    except OSError:  # the round below finds the cause
        pass
    else:
        return
    for pause in (*_RETRY_DELAYS_MS, None):
        try:
            for path in list_subtree(directory, files):
                try:
                    files.remove_directory(path)
                except FileNotFoundError:
                    pass
            return
        except OSError as error:
            if error.errno != errno.EBUSY or pause is None:
                raise CgroupError(
                    f"cannot remove the cgroup {directory}: {_describe_cause(error, directory, files)}"
                ) from error
        files.sleep(pause / 1000)


def _describe_cause(error: OSError, directory: str, files: CgroupFiles) -> str:
    pids = list_processes(directory, files) if error.errno == errno.EBUSY else []
    if pids:
        return f"it still holds the processes {', '.join(map(str, pids[:5]))}; kill them first"
    return os.strerror(error.errno or 0)


def list_own_processes(directory: str, files: CgroupFiles = KERNEL_FILES) -> list[int]:
    """Return the pids in the cgroup itself, without the cgroups below it; 0 for a process of another pid namespace."""
    try:
        return [int(line) for line in files.read_text(f"{directory}/cgroup.procs").splitlines()]
    except FileNotFoundError:
        return []
    except OSError as error:
        # EOPNOTSUPP: a threaded cgroup, whose processes the domain cgroup above lists. ENODEV: just removed.
        if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
            return []
        raise


def list_processes(directory: str, files: CgroupFiles = KERNEL_FILES) -> list[int]:
    """Return the pids in the cgroup and all cgroups below it, in no order.

    A process that moves meanwhile may be missed or listed twice. A process of another pid namespace has no number here
    and is left out.
    """
    return [pid for path in list_subtree(directory, files) for pid in list_own_processes(path, files) if pid]
