"""Open the namespaces of others, to enter them with setns(2).

A descriptor of a namespace keeps it, and is always the same one, whatever happens to the process or the name by which
it was found. Both functions refuse what is not a namespace of the wanted kind (NS_GET_NSTYPE, ioctl_nsfs(2)), and this
process' own one: who asks for another namespace must not be given that of the host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re

from nsupervisor.linux import processes
from nsupervisor.linux.namespaces import NAMESPACES
from nsupervisor.linux.trusted_paths import UntrustedPathError, open_for_reading, trusted_users

_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), linux/nsfs.h


def open_of_process(pidfd: int, kind: str) -> int:
    """Open the namespace of a process; return its descriptor, close-on-exec.

    Raises OSError: ESRCH if the process has ended, EPERM for this process' own namespace.
    """
    pid = processes.pid_of(pidfd)
    if pid is None:
        raise OSError(errno.ESRCH, "the program that has it has ended")
    try:
        fd = os.open(f"/proc/{pid}/ns/{NAMESPACES[kind].file}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.ESRCH, "the program that has it has ended") from None
    try:
        # Its pid is another process' only after it was reaped: then it has ended, which is seen here.
        if processes.has_ended(pidfd):
            raise OSError(errno.ESRCH, "the program that has it has ended")
        _check(fd, kind)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_file(path: str, kind: str) -> int:
    """Open the namespace behind a file, such as /run/netns/NAME of ip-netns(8); return its descriptor, close-on-exec.

    A file in /proc/PID/ns is that of a process, which must be of a trusted user. Raises OSError: UntrustedPathError if
    other users control the path, EINVAL if the file is no such namespace, EPERM for this process' own one.
    """
    fd = _open_magic_link(path) if _MAGIC_LINK.fullmatch(path) else open_for_reading(path, _FLAGS)
    try:
        _check(fd, kind)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, error.strerror, path) from None
    return fd


_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAGIC_LINK = re.compile(r"(/proc/(?:self|[0-9]+))/ns/[a-z]+")
"""Its text is the name of no file, proc_pid_ns(5)."""


def _open_magic_link(path: str) -> int:
    process = os.open(path.partition("/ns/")[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(process).st_uid not in trusted_users():
            raise UntrustedPathError("the process is of another user, who can change it; name one of root")
        return os.open(f"ns/{os.path.basename(path)}", _FLAGS, dir_fd=process)
    finally:
        os.close(process)


def _check(fd: int, kind: str) -> None:
    try:
        type_ = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        raise OSError(errno.EINVAL, "it is not a namespace") from None
    if type_ != NAMESPACES[kind].flag:
        found = next((name for name, namespace in NAMESPACES.items() if namespace.flag == type_), "unknown")
        raise OSError(errno.EINVAL, f"it is a {found} namespace, not a {kind} namespace")
    if is_own(fd, kind):
        raise OSError(errno.EPERM, f"it is the supervisor's own {kind} namespace; write {kind} = false for that")


def is_own(fd: int, kind: str) -> bool:
    """Return whether a descriptor is of the namespace that this process is in."""
    own, other = os.stat(f"/proc/self/ns/{NAMESPACES[kind].file}"), os.fstat(fd)
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)
