"""Processes as /proc shows them: their ancestry, memory and CPU time; and a reliable way to end them."""

import ctypes
import os
import select
import signal
import time
from collections.abc import Iterable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Make daemonised processes stay descendants of this one (prctl(2)), so that they can be counted and ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Return the living descendants of `root`, without `root` itself."""
    children: dict[int, list[int]] = {}
    dead = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            # The name may hold spaces and parentheses; what follows its last ")" does not (proc(5)).
            state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(entry))
        if state == "Z":
            dead.add(int(entry))
    found, todo = [], [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            todo.append(child)
            if child not in dead:
                found.append(child)
    return found


def commands(pids: Iterable[int]) -> dict[int, list[str]]:
    """Return the command line of each process that still runs."""
    found = {}
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        found[pid] = [os.fsdecode(word) for word in words]
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time so far, including ended threads, in nanoseconds, from the process's clock.

    The clock's number is computed from the pid as in clock_getcpuclockid(3), with CPUCLOCK_SCHED.
    """
    total = 0
    for pid in pids:
        try:
            total += time.clock_gettime_ns((~pid << 3) | 2)
        except OSError:
            continue
    return total / 1e9


def pss_mib(pids: Iterable[int]) -> float:
    """Return the proportional set size in MiB: a page shared by n processes counts 1/n for each."""
    return sum(_kib(f"/proc/{pid}/smaps_rollup", "Pss") for pid in pids) / 1024


def page_tables_mib(pids: Iterable[int]) -> float:
    """Return the size of page tables, which PSS excludes, in MiB."""
    return sum(_kib(f"/proc/{pid}/status", "VmPTE") for pid in pids) / 1024


def _kib(path: str, key: str) -> int:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def reap() -> None:
    """Reap all ended children, including adopted orphans."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def wait_gone(pids: Iterable[int], timeout: float) -> list[int]:
    """Wait until all have exited; return those that have not in time. Pidfds avoid confusion by reused pids."""
    poll, left = select.poll(), {}
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        left[fd] = pid
        poll.register(fd, select.POLLIN)
    fds, end = list(left), time.monotonic() + timeout
    try:
        while left and time.monotonic() < end:
            for fd, _ in poll.poll(max(1, (end - time.monotonic()) * 1000)):
                poll.unregister(fd)
                del left[fd]
            reap()
        return list(left.values())
    finally:
        for fd in fds:
            os.close(fd)


def kill_descendants(keep: Iterable[int] = ()) -> None:
    """Send SIGKILL to all descendants except `keep`, repeatedly until none is left, because they may fork meanwhile."""
    for _ in range(50):
        pids = set(descendants(os.getpid())) - set(keep)
        if not pids:
            break
        for pid in pids:  # a child of a descendant is reaped by it or us, so its number is not free before
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_gone(pids, 1)
    reap()
