"""System calls that Python 3.11 does not wrap: clone3, unshare, setns, prctl, signalfd, and the loopback interface.

Each raises OSError with the kernel's errno, its text in `strerror`, and the attempted operation in `filename`. The
library is opened as `PyDLL`, so calls keep the interpreter's lock: they are short, their callers have one thread, and
clone3 must keep it, because the child must start with the lock held that its only thread needs.

System call numbers from 424 on are the same on every architecture, so they are constants here. An earlier one has a
number for each.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys

TYPE_CHECKING = False  # `import typing` costs milliseconds, and every recovery waits for the keeper's start
if TYPE_CHECKING:
    from collections.abc import Iterable

libc = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

SYS_CLONE3 = 435
SYS_PIDFD_GETFD = 438  # Linux 5.6
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, -1)  # -1: ENOSYS
KEYCTL_JOIN_SESSION_KEYRING = 1

CLONE_PIDFD = 0x0000_1000
CLONE_INTO_CGROUP = 0x2_0000_0000  # Linux 5.7

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine, -1)
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}.get(os.uname().machine, -1)
_SYS_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, -1)
_KCMP_FILE = 0
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4  # without the mitigations of speculation that older kernels add

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_TIMERSLACK = 29
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2

IOPRIO_WHO_PROCESS = 1

SIGNALFD_SIGINFO_SIZE = 128  # bytes of one record, signalfd(2)
_SFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_SIGSET_SIZE = 128  # glibc's sigset_t; musl's is as large

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40

_python = ctypes.pythonapi
for _hook in (_python.PyOS_BeforeFork, _python.PyOS_AfterFork_Parent, _python.PyOS_AfterFork_Child):
    _hook.restype = None


def last_error(operation: str) -> OSError:
    """Return the OSError for the errno of the last call through `libc`."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), operation)


def clone3(flags: int, cgroup: int = -1) -> tuple[int, int]:
    """Fork into new namespaces and, with a descriptor of a cgroup v2 directory, directly into that cgroup.

    Returns (pid, pidfd) in the parent and (0, -1) in the child. The process must have one thread.

    Raises:
        OSError: see clone(2); for instance EAGAIN at a limit on processes, EPERM without the privilege for a namespace,
            ENOSPC at a limit on namespaces, EBUSY or EOPNOTSUPP for a cgroup that can't hold processes.
    """
    pidfd = ctypes.c_int(-1)
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, and after five more the cgroup
    args = (ctypes.c_uint64 * 11)(flags | CLONE_PIDFD, ctypes.addressof(pidfd), 0, 0, signal.SIGCHLD.value)
    if cgroup >= 0:
        args[0] |= CLONE_INTO_CGROUP
        args[10] = cgroup
    # A raw clone3 does not pass through fork(3), so the interpreter's own fork hooks are called explicitly.
    _python.PyOS_BeforeFork()
    pid = libc.syscall(SYS_CLONE3, args, ctypes.sizeof(args))
    if pid == 0:
        _python.PyOS_AfterFork_Child()
        return 0, -1
    number = ctypes.get_errno()
    _python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, os.strerror(number), "clone3")
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """Leave shared namespaces for new ones, unshare(2)."""
    if libc.unshare(ctypes.c_int(flags)) != 0:
        raise last_error("unshare")


def setns(fd: int, flag: int = 0) -> None:
    """Enter the namespace behind `fd`; `flag` is its clone flag, or 0 for any, setns(2)."""
    if libc.setns(fd, ctypes.c_int(flag)) != 0:
        raise last_error("setns")


def kcmp_file(one: int, other: int) -> bool:
    """Return whether two descriptors of this process are duplicates of each other, kcmp(2). Raises OSError."""
    pid = os.getpid()
    result: int = libc.syscall(_SYS_KCMP, pid, pid, _KCMP_FILE, one, other)
    if result < 0:
        raise last_error("kcmp")
    return result == 0


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a duplicate of a descriptor of another process, close-on-exec: pidfd_getfd(2). Raises OSError."""
    duplicate: int = libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0)
    if duplicate < 0:
        raise last_error("pidfd_getfd")
    return duplicate


def prctl(option: int, value: int | bytes, operation: str) -> None:
    """Call prctl(2) with one argument, a number or a string; `operation` describes the operation in errors."""
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, argument, zero, zero, zero) != 0:
        raise last_error(operation)


def call_prctl(*arguments: int) -> None:
    """Call prctl(2) with five numbers. Raises OSError."""
    if libc.prctl(ctypes.c_int(arguments[0]), *map(ctypes.c_ulong, arguments[1:])) != 0:
        raise last_error("prctl")


_CAPABILITY_VERSION_3 = 0x2008_0522
CAPABILITY_HEADER = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
"""`cap_user_header_t` for the calling process, capset(2)."""
_CAPABILITY_DATA = struct.Struct("6I")


def permitted_capabilities() -> int:
    """Return the permitted capabilities of this process as a bit mask, capget(2). Raises OSError."""
    data = ctypes.create_string_buffer(_CAPABILITY_DATA.size)
    if libc.capget(CAPABILITY_HEADER, data) != 0:
        raise last_error("capget")
    numbers = _CAPABILITY_DATA.unpack(data.raw)
    return int(numbers[1] | numbers[4] << 32)


def pack_capabilities(effective: int, permitted: int, inheritable: int) -> bytes:
    """Pack the sets for `capset`, `cap_user_data_t` twice: the low and the high 32 bits."""
    sets = (effective, permitted, inheritable)
    return _CAPABILITY_DATA.pack(*(mask >> shift & 0xFFFF_FFFF for shift in (0, 32) for mask in sets))


def capset(header: bytes, data: bytes) -> None:
    """Set the capabilities of this process, capset(2). Raises OSError."""
    if libc.capset(header, data) != 0:
        raise last_error("capset")


def set_seccomp_filter(program: bytes) -> None:
    """Install a seccomp filter, `struct sock_filter` after another, seccomp(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and the address of the first
    fields = struct.pack("@HP", len(program) // SECCOMP_INSTRUCTION_SIZE, ctypes.addressof(buffer))
    number, flags = ctypes.c_long(SECCOMP_SET_MODE_FILTER), ctypes.c_long(SECCOMP_FILTER_FLAG_SPEC_ALLOW)
    if libc.syscall(ctypes.c_long(_SYS_SECCOMP), number, flags, fields) != 0:
        raise last_error("seccomp")


_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH, LANDLOCK_RULE_NET_PORT = 1, 2


def landlock_abi() -> int:
    """Return the version of the kernel's Landlock ABI, landlock_create_ruleset(2). Raises OSError: there is none.

    ENOSYS: this kernel, or a filter of system calls, has no Landlock. EOPNOTSUPP: it was not activated at boot.
    """
    return _landlock(_SYS_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)


def landlock_create_ruleset(attributes: bytes) -> int:
    """Return the descriptor of a new ruleset; `attributes`: a `struct landlock_ruleset_attr`. Raises OSError."""
    return _landlock(_SYS_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)


def landlock_add_rule(ruleset: int, kind: int, attributes: bytes) -> None:
    """Add a rule of a `LANDLOCK_RULE_` kind, landlock_add_rule(2). Raises OSError."""
    _landlock(_SYS_LANDLOCK_ADD_RULE, ruleset, kind, attributes, 0)


def landlock_restrict_self(ruleset: int) -> None:
    """Restrict this process and its children to come, landlock_restrict_self(2). Raises OSError."""
    _landlock(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)


def _landlock(number: int, *arguments: int | bytes | None) -> int:
    values = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = int(libc.syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise last_error("landlock")
    return result


SECCOMP_INSTRUCTION_SIZE = 8
"""Bytes of a `struct sock_filter`, linux/filter.h."""


def set_io_priority(priority: int) -> None:
    """Set class and level of this process, ioprio_set(2). Raises OSError."""
    arguments = map(ctypes.c_long, (_SYS_IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, priority))
    if libc.syscall(*arguments) != 0:
        raise last_error("ioprio_set")


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, PR_SET_CHILD_SUBREAPER(2const)."""
    prctl(PR_SET_CHILD_SUBREAPER, 1, "become a subreaper")


def set_no_new_privileges() -> None:
    """Ensure that no exec gives this process more privileges than it has, PR_SET_NO_NEW_PRIVS(2const)."""
    prctl(PR_SET_NO_NEW_PRIVS, 1, "set no_new_privs")


def set_file_system_ids(uid: int, gid: int) -> None:
    """Access and make files as these until the next change of ids, setfsuid(2), setfsgid(2). They report no error."""
    libc.setfsgid(gid)
    libc.setfsuid(uid)


KEYRING_ERRORS = errno.ENOSYS, errno.EPERM, errno.EDQUOT
"""Errors with which a process keeps its session keyring; `join_new_session_keyring` says why."""


def join_new_session_keyring() -> None:
    """Replace this process' session keyring by a new, empty one, keyctl_join_session_keyring(3).

    If there are no keyrings for this process at all (a kernel without them, the filter of a container engine), there is
    nothing to leave. If the user has no quota for another keyring (/proc/key-users), the process keeps the present one:
    then the keeper's own, which all programs of this user share.

    Raises OSError.
    """
    if libc.syscall(_SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        error = last_error("make a session keyring")
        if error.errno not in KEYRING_ERRORS:
            raise error


def set_dumpable() -> None:
    """Own the files in /proc/self again, which a change of credentials has given to root, PR_SET_DUMPABLE(2const)."""
    prctl(PR_SET_DUMPABLE, 1, "set dumpable")


def set_process_name(name: str) -> None:
    """Set the name that `ps -o comm` shows; 15 bytes at most, PR_SET_NAME(2const)."""
    prctl(PR_SET_NAME, name.encode(), "set the process name")


def set_process_title(title: str) -> None:
    """Set what `ps` shows as the command line of this process; nothing if it cannot be set.

    The kernel reads the command line from where the arguments were at execve(2). If their last byte is not 0, it takes
    the first string there for a title (`get_mm_cmdline` in fs/proc/base.c). The title is cut to their length.
    """
    if not _argument_area:
        try:
            with open("/proc/self/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return
        start, end = (int(fields[number - _FIRST_FIELD]) for number in _ARGUMENT_FIELDS)
        _argument_area.extend((start, end - start))
    start, size = _argument_area
    if start and size > 1:
        ctypes.memmove(start, title.encode()[: size - 2].ljust(size - 1, b"\0") + b".", size)


_FIRST_FIELD = 3
"""The number, in proc_pid_stat(5), of the first field after the name in parentheses."""
_ARGUMENT_FIELDS = (48, 49)
"""The numbers of `arg_start` and `arg_end`."""
_argument_area: list[int] = []
"""The address and the size of the arguments of this process; those of a fork are the same."""


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace, sethostname(2)."""
    encoded = name.encode()
    if libc.sethostname(encoded, ctypes.c_size_t(len(encoded))) != 0:
        raise last_error("sethostname")


def signalfd(signals: Iterable[int]) -> int:
    """Return a non-blocking descriptor that gives one record of `SIGNALFD_SIGINFO_SIZE` bytes per signal, signalfd(2).

    The signals must be blocked. The record's first four bytes are the signal's number.
    """
    mask = 0
    for signum in signals:
        mask |= 1 << (signum - 1)
    # sigset_t is an array of longs, the lowest signals in the first: the same bytes as one number of 64 bits, where a
    # long has 64 bits, and on little-endian machines where it has 32.
    fd: int = libc.signalfd(-1, mask.to_bytes(8, sys.byteorder).ljust(_SIGSET_SIZE, b"\0"), _SFD_FLAGS)
    if fd < 0:
        raise last_error("signalfd")
    return fd


def bring_up_loopback() -> None:
    """Bring up the interface `lo` of this network namespace, which is down in a new one, netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))
