"""Other processes: which one is meant, whether it is still that one, how it ended, and which pipes it holds.

A pid alone names nobody for long. A pid with the time at which that process started does, until the next boot.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_EXIT_CODE = 52  # proc_pid_stat(5), fields from 1 on
_START_TIME = 22
_PARENT = 4
_STATE = 3

_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes
_PIDFD_INFO_EXIT = 1 << 3  # Linux 6.15
_INFO = struct.Struct("QQ11Ii")  # mask, cgroup id, eleven ids, the wait status


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, which may contain anything; None where there is no such
    process. The first is field 3."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None where there is no such process."""
    fields = stat(pid)
    return None if fields is None else int(fields[_START_TIME - 3])


def parent(pid: int) -> int | None:
    """The pid of a process' parent; None where there is no such process."""
    fields = stat(pid)
    return None if fields is None else int(fields[_PARENT - 3])


def pin(pid: int, started: int) -> int:
    """A pidfd of the process with this pid that started then; -1 where it is gone, whoever has its pid now.

    Raises OSError (EMFILE).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        return -1
    # The descriptor is held already, so what is read now is about the same process, or about nobody.
    if start_time(pid) == started:
        return pidfd
    os.close(pidfd)
    return -1


def ended(pidfd: int) -> bool:
    """Whether the process has ended; it may be a zombie."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def exit_status(pidfd: int, pid: int) -> int | None:
    """The wait status of a process that has ended and is not our child; None where the kernel does not tell.

    A zombie has it in /proc (to those who may trace it); one that has been reaped in its pidfd, since Linux 6.15.
    """
    status = _told(pidfd)
    if status is None:
        fields = stat(pid)
        if fields is not None and fields[_STATE - 3] in "ZX":
            status = int(fields[_EXIT_CODE - 3])
        again = _told(pidfd)  # reaped meanwhile: that zombie may have been another one
        status = status if again is None else again
    return status


def _told(pidfd: int) -> int | None:
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, *(0,) * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:  # an older kernel; or not reaped yet
        return None
    values = _INFO.unpack(buffer)
    return int(values[-1]) if values[0] & _PIDFD_INFO_EXIT else None


def open_pipe(inode: int, pids: Iterable[int]) -> int:
    """A new read end, non-blocking, of the pipe with this inode that one of the processes has open; -1 where none has.

    Raises OSError (EMFILE, or EACCES where we may not trace them).
    """
    wanted = f"pipe:[{inode}]"
    for path in (path for pid in pids for path in _descriptors(pid)):
        try:
            if os.readlink(path) == wanted:
                return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):  # closed meanwhile
            continue
    return -1


def _descriptors(pid: int) -> list[str]:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError):
        return []
    # Standard output and error first: there it is nearly always.
    return [f"{directory}/{name}" for name in sorted(names, key=lambda name: (name not in ("1", "2"), name))]


def inode(fd: int) -> int:
    """The number by which the kernel knows the pipe behind a descriptor."""
    return os.fstat(fd).st_ino


def name(pid: int) -> str:
    """The command's name, as `ps -o comm` shows it; "" where there is no such process."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().decode(errors="replace").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def read_write_pipe(pid: int, fd: int) -> int:
    """The inode of the pipe that a process has open for reading and writing at this descriptor; 0 where it is anything
    else. The keeper opens log pipes so, and hardly anybody else does."""
    try:
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            flags = next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), 0)
    except OSError:
        return 0
    if flags & os.O_ACCMODE != os.O_RDWR or not target.startswith("pipe:["):
        return 0
    return int(target[6:-1])
