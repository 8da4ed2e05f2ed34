"""From a path that a person writes to the disk that the kernel limits: "/srv/data" → "253:0"."""

from __future__ import annotations

import glob
import os
import stat

from nsupervisor.cgroups.errors import UnfitError


def disk(path: str, sys: str = "/sys") -> str:
    """MAJOR:MINOR of the whole disk that `path` is on: a file, a directory, or a device node, of a partition too.

    The kernel limits whole disks (the io controller takes no partitions). UnfitError where no one disk is behind it.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise UnfitError(f"cannot look at {path}: {error.strerror}", "write a path that is there") from error
    if stat.S_ISCHR(found.st_mode):
        raise UnfitError(f"{path} is a character device, not a disk", "write a file or directory on the disk")
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    place = os.path.realpath(f"{sys}/dev/block/{name}")
    if not os.path.isdir(place):
        # Major 0: numbers of no device, which file systems without one disk of their own use (stat(2)).
        kind = _filesystem(path)
        raise UnfitError(
            f"{path} is on {kind}, which has no one disk behind it",
            "write the disk's device node, for example /dev/sda",
        )
    if os.path.exists(f"{place}/partition"):
        with open(f"{os.path.dirname(place)}/dev") as file:
            return file.read().strip()
    return name


def _filesystem(path: str) -> str:
    """The kind of file system in words: "a tmpfs"; by the mount that the open file is on (proc_pid_mountinfo(5))."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as file:
            mount = next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.split(" ", 1)[0] == mount:
                return f"the file system {line.partition(' - ')[2].split(' ')[0]}"
    return "a file system"


def weighing(root: str, sys: str = "/sys") -> tuple[bool | None, bool]:
    """Who shares disks by weight here: (io.cost is on for some disk; None: cannot be seen, some disk's scheduler is
    BFQ). root: the directory of the root cgroup, which alone has io.cost.qos (cgroup-v2.rst, "IO Interface Files")."""
    try:
        with open(f"{root}/io.cost.qos") as file:
            cost: bool | None = "enable=1" in file.read()
    except OSError:
        cost = None
    for scheduler in glob.glob(f"{sys}/block/*/queue/scheduler"):
        try:
            with open(scheduler) as file:
                if "[bfq]" in file.read():
                    return cost, True
        except OSError:  # the disk has just been taken away
            pass
    return cost, False
