"""The cgroup filesystem as this package uses it: an interface, and the kernel's own implementation of it.

`Host.files` holds the implementation, and everything in this package reaches cgroups through it. So a test can run the
whole package, and all that is built on it, on cgroups that no kernel has.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nsupervisor.cgroups.device_filter import DeviceRule

    DeviceRules = tuple[DeviceRule, ...]

_READ_SIZE = 8192
_LINKS_WITHOUT_DIRECTORIES = 2  # its name, and "." in it


class CgroupFiles(Protocol):
    """Operations on cgroup directories and their interface files. All raise OSError with the kernel's errno."""

    def open(self, path: str) -> int:
        """Open an interface file for reading; return a descriptor."""

    def read(self, fd: int) -> bytes:
        """Return the present content of an open interface file."""

    def close(self, fd: int) -> None:
        """Close a descriptor that `open`, `lock` or `open_pidfd` returned."""

    def read_text(self, path: str) -> str:
        """Return the content of an interface file."""

    def write(self, path: str, text: str) -> None:
        """Write `text` and a newline to an interface file, in one write(2)."""

    def exists(self, path: str) -> bool:
        """Return whether there is a file or directory at `path`."""

    def make_directory(self, path: str) -> None:
        """Make one cgroup. Raises FileExistsError if there is one."""

    def make_directories(self, path: str) -> None:
        """Make a cgroup and those above it; one that exists is no error."""

    def remove_directory(self, path: str) -> None:
        """Remove one cgroup, which must be empty (EBUSY)."""

    def list_directories(self, path: str) -> list[str]:
        """Return the names of the cgroups directly below `path`."""

    def has_directories(self, path: str) -> bool:
        """Return whether there are cgroups directly below `path`."""

    def lock(self, path: str) -> int:
        """Lock a cgroup's directory; return a descriptor that holds the lock. Raises BlockingIOError if it is held."""

    def open_pidfd(self, pid: int) -> int:
        """Return a descriptor of a process, pidfd_open(2)."""

    def send_signal(self, pidfd: int, signum: int) -> None:
        """Send a signal to a process, pidfd_send_signal(2)."""

    def sleep(self, seconds: float) -> None:
        """Wait for the kernel, which is about to release a cgroup."""

    def restrict_devices(self, path: str, rules: DeviceRules | None) -> None:
        """Allow the processes of a cgroup these devices only; None: all. The cgroup has no processes."""

    def track(self, path: str, pid: int) -> None:
        """Note the first process of a program that the keeper starts in a cgroup. The kernel's cgroups need no note."""

    def search(self) -> None:
        """Find first processes that nothing has reported. The kernel's cgroups have them in any case."""


class KernelCgroupFiles:
    """The cgroup filesystem of this host."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, fd: int) -> bytes:
        data = os.pread(fd, _READ_SIZE, 0)
        if len(data) == _READ_SIZE:  # longer files are rare, so only they cost a second read
            data = os.pread(fd, 1 << 20, 0)
        return data

    def close(self, fd: int) -> None:
        os.close(fd)

    def read_text(self, path: str) -> str:
        # Not open(), which makes three more system calls and two objects: each restart reads such files.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            chunks = []
            while chunk := os.read(fd, _READ_SIZE):
                chunks.append(chunk)
        finally:
            os.close(fd)
        return b"".join(chunks).decode()

    def write(self, path: str, text: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, (text + "\n").encode())
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def make_directory(self, path: str) -> None:
        os.mkdir(path)

    def make_directories(self, path: str) -> None:
        try:
            os.mkdir(path)  # almost always there is what it goes into, so that no directory above needs to be looked at
        except (FileExistsError, FileNotFoundError):
            os.makedirs(path, exist_ok=True)

    def remove_directory(self, path: str) -> None:
        os.rmdir(path)

    def list_directories(self, path: str) -> list[str]:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def has_directories(self, path: str) -> bool:
        # Each restart asks, and a cgroup has some forty files. The number of links counts the directories below
        # (kernfs_refresh_inode in fs/kernfs/inode.c), and each file system that does not count them says 1.
        return os.stat(path).st_nlink != _LINKS_WITHOUT_DIRECTORIES and bool(self.list_directories(path))

    def lock(self, path: str) -> int:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(directory)
            raise
        return directory

    def open_pidfd(self, pid: int) -> int:
        return os.pidfd_open(pid)

    def send_signal(self, pidfd: int, signum: int) -> None:
        signal.pidfd_send_signal(pidfd, signum)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def restrict_devices(self, path: str, rules: DeviceRules | None) -> None:
        from nsupervisor.cgroups.device_filter import restrict  # imported late: it needs ctypes, `check` does not

        restrict(path, rules)

    def track(self, path: str, pid: int) -> None:
        pass

    def search(self) -> None:
        pass


KERNEL_FILES: CgroupFiles = KernelCgroupFiles()
"""The cgroup filesystem of this host."""
