"""What a test run must not leave behind: processes, cgroups, mounts. `snapshot` before, `left_over` after.

Processes are found as children of this one, and by a mark in their environment (children of a dead child went to
init). Workloads that get a fresh environment are seen through the cgroup they keep alive.
"""

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.needs import cgroup_directories
from tests.timing import deadline

MARK = "NSUPERVISOR_TEST_RUN"
LOCK = Path(os.environ.get("TMPDIR", "/tmp")) / f"nsupervisor-tests-{os.getuid()}.lock"


@dataclass(frozen=True)
class Snapshot:
    """What is there now: {key: words to show} each."""

    processes: dict[str, str]
    cgroups: dict[str, str]
    mounts: dict[str, str]


class Alone:
    """Shared lock of all test runs of this user; cgroups and mounts are only compared when no other run is going on."""

    def __init__(self) -> None:
        self._file = os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def check(self) -> bool:
        """Whether this run is the only one at this moment."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)
        return True

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._file)


def _processes() -> dict[str, str]:
    me, mark = os.getpid(), f"{MARK}={os.environ.get(MARK)}".encode()
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == me:
            continue
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            ours = int(fields[1]) == me or mark in (directory / "environ").read_bytes().split(b"\0")
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has gone meanwhile, or is another user's
            continue
        if ours and not _is_ancestor(int(directory.name)):
            # The start time (field 22) tells a process from a later one with the same pid.
            found[f"{directory.name}:{fields[19]}"] = f"process {directory.name} ({fields[0]}): {command[:200]}"
    return found


def _is_ancestor(pid: int) -> bool:
    """Whether `pid` is above this process (pytest run by pytest hands its mark down)."""
    current = os.getpid()
    while current > 1:
        current = int(Path(f"/proc/{current}/stat").read_text().rpartition(")")[2].split()[1])
        if current == pid:
            return True
    return False


def _cgroups() -> dict[str, str]:
    found = {}
    for own in set(cgroup_directories().values()):
        for path, _, _ in os.walk(own):
            found[path] = f"cgroup {path}"
    return found


def _mounts() -> dict[str, str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[0]: f"mount {line.split()[4]} ({line.partition(' - ')[2]})" for line in lines}


def snapshot() -> Snapshot:
    """See what is there now."""
    return Snapshot(_processes(), _cgroups(), _mounts())


def _compare(before: Snapshot, alone: bool) -> list[str]:
    now = snapshot()
    pairs = [(before.processes, now.processes)]
    if alone:
        pairs += [(before.cgroups, now.cgroups), (before.mounts, now.mounts)]
    new = [(key, words) for then, today in pairs for key, words in sorted(today.items()) if key not in then]
    keys = {key for key, _ in new}
    # Of a tree of cgroups, the top is enough.
    return [words for key, words in new if str(Path(key).parent) not in keys]


def left_over(before: Snapshot, alone: bool, patience: float = 2.0) -> list[str]:
    """What has come since `before` and does not go away within `patience` seconds (the kernel reaps late)."""
    end = time.monotonic() + deadline(patience)
    while (found := _compare(before, alone)) and time.monotonic() < end:
        time.sleep(0.05)
    return found
