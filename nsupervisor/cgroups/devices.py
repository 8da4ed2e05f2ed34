"""Resolve a path that a person writes to the disk that the kernel limits: "/srv/data" → "253:0"."""

from __future__ import annotations

import glob
import os
import stat

from nsupervisor.cgroups.errors import UnsupportedValueError


def resolve_disk(path: str, sysfs: str = "/sys") -> str:
    """Return MAJOR:MINOR of the whole disk that `path` is on.

    path: a file, a directory, or a device node, also that of a partition. The kernel limits whole disks (the io
    controller takes no partitions). Raises UnsupportedValueError if the path is not on exactly one disk.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnsupportedValueError(f"cannot look at {path}: {error.strerror}", "write a path that is there") from error
    if stat.S_ISCHR(status.st_mode):
        raise UnsupportedValueError(
            f"{path} is a character device, not a disk", "write a file or directory on the disk"
        )
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    device_directory = os.path.realpath(f"{sysfs}/dev/block/{device}")
    if not os.path.isdir(device_directory):
        # Major 0 belongs to no device: file systems that are not on exactly one disk use it (stat(2)).
        kind = _filesystem(path)
        raise UnsupportedValueError(
            f"{path} is on {kind}, which has no one disk behind it",
            "write the disk's device node, for example /dev/sda",
        )
    if os.path.exists(f"{device_directory}/partition"):
        with open(f"{os.path.dirname(device_directory)}/dev") as file:
            return file.read().strip()
    return device


def _filesystem(path: str) -> str:
    """Describe the file system of `path` ("a tmpfs"), found by the mount of the open file (proc_pid_mountinfo(5))."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount_id = next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            if line.split(" ", 1)[0] == mount_id:
                return f"the file system {line.partition(' - ')[2].split(' ')[0]}"
    return "a file system"


def read_weight_mechanisms(root: str, sysfs: str = "/sys") -> tuple[bool | None, bool]:
    """Return which mechanisms share disks by weight: (whether io.cost is on for some disk, whether BFQ is used by one).

    The first is None if it cannot be seen. root: the directory of the root cgroup, which alone has io.cost.qos
    (cgroup-v2.rst, "IO Interface Files").
    """
    try:
        with open(f"{root}/io.cost.qos") as file:
            cost_enabled: bool | None = "enable=1" in file.read()
    except OSError:
        cost_enabled = None
    for scheduler in glob.glob(f"{sysfs}/block/*/queue/scheduler"):
        try:
            with open(scheduler) as file:
                if "[bfq]" in file.read():
                    return cost_enabled, True
        except OSError:  # the disk has just been taken away
            pass
    return cost_enabled, False
