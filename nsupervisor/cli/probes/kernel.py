"""Probes of the kernel: its version, and the system calls that depend on it alone."""

from __future__ import annotations

import fcntl
import os
import struct
from functools import partial

from nsupervisor.cli.probes import LIMITED, MISSING, OK, Finding, ForkedCall, in_child, read_file
from nsupervisor.linux import libseccomp, syscalls
from nsupervisor.linux.inotify import IN_MODIFY, Inotify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_KERNEL = (5, 7)  # CLONE_INTO_CGROUP

# struct pidfd_info of linux/pidfd.h, first size: mask, cgroup id; pid, tgid, ppid; 8 user and group ids; exit code
_PIDFD_INFO = struct.Struct("=QQ3I8Ii")
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, struct pidfd_info)
_PIDFD_INFO_EXIT = 1 << 3

_LANDLOCK_ABI = 6
"""The first version of the ABI with all that nsupervisor.core.landlock uses."""

SHORT_TRIGGER, LONG_TRIGGER = "some 100000 500000", "some 100000 2000000"  # PSI triggers: stall and window in µs

UPGRADE_REMEDY = "boot a newer kernel"


def findings() -> Iterator[Finding]:
    """Return one finding per kernel feature."""
    return _findings(ForkedCall(_watch), ForkedCall(partial(_wait_for_pressure, SHORT_TRIGGER)))


def _findings(watching: ForkedCall, waiting: ForkedCall) -> Iterator[Finding]:
    yield _version()
    yield _clone3()
    yield _pidfd()
    yield _pidfd_exit()
    yield _inotify(watching.error())
    yield _pressure(waiting.error())
    yield _seccomp()
    yield _landlock()


def _version() -> Finding:
    release = os.uname().release
    numbers = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in release.split("-")[0].split(".")[:2])
    if numbers < MIN_KERNEL:
        return Finding(
            "version", MISSING, f"Linux {release} is too old; 5.7 is the oldest supported version", UPGRADE_REMEDY, True
        )
    return Finding("version", OK, f"Linux {release}")


def _clone3() -> Finding:
    try:
        pid, pidfd = syscalls.clone3(0)
    except OSError as error:
        return Finding(
            "clone3",
            MISSING,
            f"programs cannot be started: {error.strerror}",
            f"{UPGRADE_REMEDY} (5.3 has it), or let your container's seccomp filter pass it",
            True,
        )
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(pidfd)
    return Finding("clone3", OK, "a program starts in all its namespaces at once, with a descriptor that names it")


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return Finding(
            "pidfd",
            MISSING,
            f"processes cannot be named safely: {error.strerror}",
            f"{UPGRADE_REMEDY} (5.3 has it)",
            True,
        )
    return Finding("pidfd", OK, "a signal cannot reach another process that got a dead process' pid")


def _pidfd_exit() -> Finding:
    pid = os.fork()
    if pid == 0:
        os._exit(42)
    info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        pidfd = os.pidfd_open(pid)
        try:
            os.waitpid(pid, 0)
            pid = 0
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
        finally:
            os.close(pidfd)
    except OSError:
        pass
    finally:
        if pid:
            os.waitpid(pid, 0)
    mask, *_, code = _PIDFD_INFO.unpack(info)
    if mask & _PIDFD_INFO_EXIT and os.waitstatus_to_exitcode(code) == 42:
        return Finding("pidfd exit info", OK, "exit statuses can be had from processes that others have reaped")
    return Finding(
        "pidfd exit info",
        LIMITED,
        "exit statuses of processes that others have reaped are lost; that matters after a crash of the keeper only",
        f"{UPGRADE_REMEDY} (6.15 has it)",
    )


def _watch() -> None:
    """Watch a file. Ending the watch takes some 15 ms: the kernel waits until it has no reader any more."""
    Inotify().add("/proc/self/cgroup", IN_MODIFY)


def _inotify(error: OSError | None) -> Finding:
    if error is not None:
        return Finding(
            "inotify",
            MISSING,
            f"cgroups cannot report events: {error.strerror}",
            "raise the numbers in /proc/sys/fs/inotify, "
            f"where max_user_instances is {read_file('/proc/sys/fs/inotify/max_user_instances') or 'unknown'}",
            True,
        )
    number = read_file("/proc/sys/fs/inotify/max_user_watches")
    return Finding("inotify", OK, f"cgroups report events at once; {number} files can be watched")


def _wait_for_pressure(trigger: str) -> None:
    """Set a pressure trigger (PSI documentation). Ending it takes some 10 ms."""
    file = os.open("/proc/pressure/memory", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    os.write(file, trigger.encode() + b"\0")


def _pressure(error: OSError | None) -> Finding:
    if not os.path.exists("/proc/pressure"):
        return Finding("pressure (PSI)", MISSING, "rules about pressure cannot be used", "boot with psi=1")
    if error is None:
        return Finding("pressure (PSI)", OK, "the kernel reports pressure within half a second")
    if (error := in_child(partial(_wait_for_pressure, LONG_TRIGGER))) is None:
        text = "the kernel reports pressure, but only over windows of 2 s or a multiple"
        return Finding("pressure (PSI)", LIMITED, text, "for shorter ones give the supervisor CAP_SYS_RESOURCE")
    text = f"pressure can be read, but not waited for: {error.strerror}"
    return Finding("pressure (PSI)", LIMITED, text, "nothing: it is then sampled")


def _seccomp() -> Finding:
    actions = read_file("/proc/sys/kernel/seccomp/actions_avail")
    if not actions:
        return Finding(
            "seccomp",
            MISSING,
            "system calls cannot be filtered: workloads run without a filter, and a key that asks for one is refused",
            UPGRADE_REMEDY,
        )
    if "\nSeccomp:\t2" in read_file("/proc/self/status"):
        return Finding(
            "seccomp",
            LIMITED,
            "this process is itself under a filter, most likely its container's, which workloads inherit",
            "where something below is refused, loosen it (docker or podman: --security-opt seccomp=unconfined)",
        )
    if reason := libseccomp.missing_reason():
        text = f"{reason}: workloads run without a filter of system calls, and a key that asks for one is refused"
        return Finding("seccomp", LIMITED, text, "install libseccomp2 (Debian: apt install libseccomp2)")
    return Finding("seccomp", OK, "system calls can be filtered, as the default profile does")


def _landlock() -> Finding:
    try:
        abi = syscalls.landlock_abi()
    except OSError as error:
        text = f"security.landlock cannot be used: {error.strerror}"
        return Finding("Landlock", MISSING, text, 'if wanted, boot with "landlock" in lsm=')
    if abi < _LANDLOCK_ABI:
        text = f"version {abi} of its ABI: some keys of security.landlock need version {_LANDLOCK_ABI}, and are refused"
        return Finding("Landlock", LIMITED, text, f"if wanted, {UPGRADE_REMEDY} (6.12 has it)")
    return Finding("Landlock", OK, f"files and TCP ports can be restricted per program (version {abi} of its ABI)")
