"""System calls that filters have refused, as the kernel's log has them: messages of type 1326 (AUDIT_SECCOMP)."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KERNEL_LOG = "/dev/kmsg"
_RECORD_SIZE = 8192  # no record is longer: a shorter buffer would fail with EINVAL
_MAX_RECORDS = 100_000
# Only at the beginning of a record of the kernel itself, whose facility is 0: programs can write records of other
# facilities, and have their text in others, for instance as a mount option that a file system does not know.
_MESSAGE = re.compile(
    r"[0-7],[^;]*;audit: type=1326 audit\((?P<time>\d+)\.\d+:\d+\): .* pid=(?P<pid>\d+) comm=.* sig=(?P<signal>\d+)"
    r" arch=(?P<arch>[0-9a-f]+) syscall=(?P<number>\d+) "
)


def read_kernel_log(path: str = KERNEL_LOG) -> Iterator[str]:
    """Yield the records that the kernel still has, oldest first: dev-kmsg in Documentation/ABI. None without rights."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(_MAX_RECORDS):
            try:
                record = os.read(fd, _RECORD_SIZE)
            except BrokenPipeError:  # it was overwritten meanwhile; the next one follows
                continue
            if not record:
                return
            yield record.decode(errors="replace")
    except OSError:  # EAGAIN at the end
        return
    finally:
        os.close(fd)


def find_refused_call(records: Iterable[str], pid: int, since: float, until: float) -> tuple[int, int] | None:
    """Return architecture (AUDIT_ARCH_*) and number of the call that ended a process by SIGSYS, or None.

    `since`, `until`: when the process ran, in seconds since the epoch; another one may have had the pid before.
    """
    found = None
    for record in records:
        match = _MESSAGE.match(record)
        if match and int(match["pid"]) == pid and match["signal"] == "31" and since - 1 <= int(match["time"]) <= until:
            found = int(match["arch"], 16), int(match["number"])
    return found


def describe_call(architecture: int, number: int) -> str:
    """Return the name of a system call, or its number; and if it is of another architecture than this process."""
    from nsupervisor.linux import libseccomp

    name = "" if libseccomp.missing_reason() else libseccomp.call_name(architecture, number)
    is_foreign = not libseccomp.missing_reason() and architecture != libseccomp.native_architecture()
    return (name or f"call {number}") + (" of another architecture (a 32-bit program)" if is_foreign else "")
