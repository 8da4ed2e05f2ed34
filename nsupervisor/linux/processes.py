"""Facts about other processes: identity, whether they run, exit status, and which pipes they hold.

The kernel reuses pids, so a pid alone identifies a process only while it runs. A pid together with the start time of
its process identifies it until the next boot.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_EXIT_CODE_FIELD = 52  # proc_pid_stat(5), fields from 1 on
_START_TIME_FIELD = 22
_PARENT_PID_FIELD = 4
_STATE_FIELD = 3
_MAX_STAT = 4096  # bytes: more than 52 numbers of 64 bits and a name

_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes
_PIDFD_INFO_EXIT = 1 << 3  # Linux 6.15
_PIDFD_INFO = struct.Struct("QQ11Ii")  # mask, cgroup id, eleven ids, the wait status


def read_stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the command's name, which may contain any character.

    The first one is field 3. None if there is no such process.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # half the cost of open(); a start reads two
        try:
            text = os.read(fd, _MAX_STAT)
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(b")")[2].decode().split()


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is no such process."""
    fields = read_stat(pid)
    return None if fields is None else int(fields[_START_TIME_FIELD - 3])


def parent_pid(pid: int) -> int | None:
    """Return the pid of a process' parent; None if there is no such process."""
    fields = read_stat(pid)
    return None if fields is None else int(fields[_PARENT_PID_FIELD - 3])


class ProcessEntry:
    """A process in `process_table`: its parent's pid, and whether it has ended and is not reaped."""

    __slots__ = ("is_zombie", "parent")

    def __init__(self, parent: int, is_zombie: bool = False) -> None:
        self.parent = parent
        self.is_zombie = is_zombie


def pid_of(pidfd: int) -> int | None:
    """Return the pid of the process behind a pidfd; None if it has been reaped, or is not visible here."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = next((int(line.split()[1]) for line in file if line.startswith("Pid:")), -1)
    return pid if pid > 0 else None


def process_table() -> dict[int, ProcessEntry]:
    """Return the processes that /proc shows. Those that start or end meanwhile may be missing."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (fields := read_stat(int(name))) is not None:
            is_zombie = fields[_STATE_FIELD - 3] in "ZX"
            table[int(name)] = ProcessEntry(int(fields[_PARENT_PID_FIELD - 3]), is_zombie)
    return table


def title(pid: int) -> str:
    """Return the first argument of a process, which is its title if it has set one; "" if there is no such process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read().split(b"\0")[0])
    except (FileNotFoundError, ProcessLookupError):
        return ""


def real_uid(pid: int) -> int | None:
    """Return the real user id of a process; None if there is no such process.

    The owner of /proc/PID is root for a process that is not dumpable, proc(5).
    """
    numbers = _status_numbers(pid, b"Uid:")
    return int(numbers[0]) if numbers else None


def pid_in_namespace(pid: int) -> int | None:
    """Return the pid of a process in its own PID namespace; None if there is no such process."""
    numbers = _status_numbers(pid, b"NSpid:")
    return int(numbers[-1]) if numbers else None


def is_namespace_init(pid: int) -> bool:
    """Return whether a process is the first one of a PID namespace below this one; False if there is no such process.

    Its status shows its pid in each PID namespace that it is in, from that of /proc to its own: proc_pid_status(5).
    """
    numbers = _status_numbers(pid, b"NSpid:")
    return len(numbers) > 1 and numbers[-1] == b"1"


def namespace_pids(pid: int) -> tuple[int, ...]:
    """Return the pid of a process in each PID namespace that it is in, from that of /proc to its own.

    NSpid of proc_pid_status(5). Empty if there is no such process.
    """
    return tuple(map(int, _status_numbers(pid, b"NSpid:")))


def find_numbered(number: int, sender: int, pids: Iterable[int], is_namespaced: bool) -> int | None:
    """Return which of these processes a sender means by a number, which its own PID namespace has given; None: none.

    `is_namespaced`: if the sender has ended, whether its namespace is one below that of this process.
    """
    depth = len(namespace_pids(sender)) or len(namespace_pids(os.getpid())) + is_namespaced
    deeper = None
    for pid in pids:
        numbers = namespace_pids(pid)
        if len(numbers) == depth and numbers[-1] == number:
            return pid
        if len(numbers) > depth and numbers[depth - 1] == number:
            deeper = pid  # a process in a namespace below that of the sender
    return deeper


def _status_numbers(pid: int, key: bytes) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/status", "rb") as lines:
            return next((line.split()[1:] for line in lines if line.startswith(key)), [])
    except (FileNotFoundError, ProcessLookupError):
        return []


def send_signal(pidfd: int, signum: int) -> None:
    """Send a signal to a process, pidfd_send_signal(2). Raises OSError."""
    signal.pidfd_send_signal(pidfd, signum)


def pin(pid: int) -> int:
    """Return a pidfd of a process, pidfd_open(2). Raises OSError (ESRCH, EMFILE)."""
    return os.pidfd_open(pid)


def duplicate(fd: int) -> int:
    """Return a duplicate of a descriptor. Raises OSError (EMFILE)."""
    return os.dup(fd)


def close(fd: int) -> None:
    """Close a descriptor of this process."""
    os.close(fd)


def open_pidfd(pid: int, start_ticks: int) -> int:
    """Return a pidfd of the process with this pid and start time; -1 if it has ended, even if its pid is reused.

    Raises OSError (EMFILE).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        return -1
    # The descriptor is already held, so /proc now describes the same process, or none.
    if start_time(pid) == start_ticks:
        return pidfd
    os.close(pidfd)
    return -1


def has_ended(pidfd: int) -> bool:
    """Return whether the process has ended; it may be a zombie."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def exit_status(pidfd: int, pid: int) -> int | None:
    """Return the wait status of an ended process that is not our child; None if the kernel does not provide it.

    /proc has the status of a zombie (for those who may trace it); the pidfd has that of a reaped process, since Linux
    6.15.
    """
    status = _exit_info(pidfd)
    if status is None:
        fields = read_stat(pid)
        if fields is not None and fields[_STATE_FIELD - 3] in "ZX":
            status = int(fields[_EXIT_CODE_FIELD - 3])
        late_status = _exit_info(pidfd)  # if it was reaped meanwhile, the zombie may have been another process
        status = status if late_status is None else late_status
    return status


def _exit_info(pidfd: int) -> int | None:
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, *(0,) * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:  # an older kernel; or not reaped yet
        return None
    values = _PIDFD_INFO.unpack(buffer)
    return int(values[-1]) if values[0] & _PIDFD_INFO_EXIT else None


def open_pipe(inode: int, pids: Iterable[int]) -> int:
    """Open a new non-blocking read end of the pipe with this inode, if one of the processes has it open; else -1.

    Raises OSError (EMFILE, or EACCES if we may not trace them).
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
    # Standard output and error first, because the pipe is nearly always one of them.
    return [f"{directory}/{name}" for name in sorted(names, key=lambda name: (name not in ("1", "2"), name))]


def open_ended_pipe() -> int:
    """Return the reading end of a pipe that has no writer, in place of one that a program has closed."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(write)
    return read


def pipe_inode(fd: int) -> int:
    """Return the inode number of the pipe behind a descriptor."""
    return os.fstat(fd).st_ino


def command_name(pid: int) -> str:
    """Return the command's name, as `ps -o comm` shows it; "" if there is no such process."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().decode(errors="replace").rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def read_write_pipe_inode(pid: int, fd: int) -> int:
    """Return the inode of the pipe that a process has open read-write at this descriptor; 0 for anything else.

    The keeper opens log pipes this way; hardly any other program does.
    """
    try:
        target = os.readlink(f"/proc/{pid}/fd/{fd}")
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            flags = next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), 0)
    except OSError:
        return 0
    if flags & os.O_ACCMODE != os.O_RDWR or not target.startswith("pipe:["):
        return 0
    return int(target[6:-1])
