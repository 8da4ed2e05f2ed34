"""Cgroup directories: make, list what is below, remove from the bottom up."""

from __future__ import annotations

import errno
import os
import time

from nsupervisor.cgroups.errors import CgroupError

_RETRIES_MS = (1, 2, 4, 8, 16)


def write(path: str, text: str) -> None:
    """Write to an interface file in one write(2). OSError as the kernel gave it; FileNotFoundError: no such file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, (text + "\n").encode())
    finally:
        os.close(fd)


def subtree(directory: str) -> list[str]:
    """The directory and every cgroup below it, children before their parents. Empty when it does not exist."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found += subtree(entry.path)
    except FileNotFoundError:
        return []  # never was, or was removed by the workload meanwhile
    return [*found, directory]


def remove(directory: str) -> None:
    """rmdir the cgroup and all below it, which workloads with a cgroup namespace make for themselves.

    EBUSY although `populated` is 0 happens when a nested cgroup was made between listing and removing, and while the
    kernel is still taking an exited process apart. So the whole round is repeated after 1, 2, 4, 8 and 16 ms, then
    CgroupError is raised.
    """
    for pause in (*_RETRIES_MS, None):
        try:
            for path in subtree(directory):
                try:
                    os.rmdir(path)
                except FileNotFoundError:
                    pass
            return
        except OSError as error:
            if error.errno != errno.EBUSY or pause is None:
                raise CgroupError(f"cannot remove the cgroup {directory}: {_why(error, directory)}") from error
        time.sleep(pause / 1000)


def _why(error: OSError, directory: str) -> str:
    pids = processes(directory) if error.errno == errno.EBUSY else []
    if pids:
        return f"it still holds the processes {', '.join(map(str, pids[:5]))}; kill them first"
    return os.strerror(error.errno or 0)


def members(directory: str) -> list[int]:
    """The processes in the cgroup itself, without those below it; 0 for one of another pid namespace."""
    try:
        with open(f"{directory}/cgroup.procs") as file:
            return [int(line) for line in file]
    except FileNotFoundError:
        return []
    except OSError as error:
        # A threaded cgroup says EOPNOTSUPP: its processes are listed by the domain above. ENODEV: just removed.
        if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
            return []
        raise


def processes(directory: str) -> list[int]:
    """The processes in the cgroup and all cgroups below it, in no order. A process moving meanwhile may be missed or
    listed twice; one of another pid namespace, which has no number here, is left out."""
    return [pid for path in subtree(directory) for pid in members(path) if pid]
