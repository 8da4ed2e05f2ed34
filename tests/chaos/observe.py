"""What the kernel shows of a service under test. Everything of it is found by a mark in its environment."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.chaos.invariants import Process
from tests.needs import cgroup_directories

MARK = "NSUPERVISOR_CHAOS"


def processes(mark: str, parents: Iterable[int] = ()) -> list[Process]:
    """All processes with the mark; of the dead, which have no environment, children of ``parents`` and those in one of
    the cgroups."""
    ours = set(parents)
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [process for pid in pids if (process := look(pid, mark, ours))]


def look(pid: int, mark: str, parents: Iterable[int] = ()) -> Process | None:
    """One process; None when it is gone or not ours."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        cgroups = Path(f"/proc/{pid}/cgroup").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    title, _, rest = stat.partition("(")[2].rpartition(")")
    state, parent, _, session, *others = rest.split()
    cgroup = next((line[3:] for line in cgroups.splitlines() if line.startswith("0::")), "").removesuffix(" (deleted)")
    marked = f"{MARK}={mark}".encode() in environment
    if not marked and not (state in "ZX" and (int(parent) in parents or f"/chaos-{mark}/" in cgroup)):
        return None
    own = b"NSUPERVISOR_WORKLOAD="
    workload = next((entry.removeprefix(own).decode() for entry in environment if entry.startswith(own)), "")
    return Process(
        pid, int(others[15]), int(parent), int(session), state, workload, cgroup.rstrip("/"), command[:100] or title
    )


def name(pid: int) -> str:
    """As its process calls itself; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def cgroups(name: str) -> list[str]:
    """All cgroups of the tree ``name``, in each hierarchy."""
    found = set()
    for own in set(cgroup_directories().values()):
        for path, _, _ in os.walk(own / name):
            found.add(path)
    return sorted(found)


def tree(name: str) -> str:
    """The version 2 path of the tree ``name``, as /proc/PID/cgroup shows it."""
    line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    return f"{line[3:].rstrip('/')}/{name}"


def members(name: str) -> list[int]:
    """The processes in the version 2 tree ``name``."""
    found = []
    for path, _, _ in os.walk(cgroup_directories()[""] / name):
        try:
            found += [int(line) for line in Path(path, "cgroup.procs").read_text().split()]
        except OSError:  # just removed
            pass
    return found


def mounts(below: Path) -> list[str]:
    """Mount points at or below a directory, in this mount namespace."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point == str(below) or point.startswith(f"{below}/")]


def descriptors(pid: int) -> dict[str, int]:
    """How many files of each kind a process has open. Kept-open files of cgroups are left out: they come when they are
    first read, and their number is bounded by that of the workloads."""
    kinds: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except OSError:  # the directory's own
            continue
        if "/sys/fs/cgroup/" not in target and not target.startswith("/sys/fs/"):
            kinds[re.sub(r":\[\d+\]$|-\d+$|(?<=^/proc/)\d+", "", target)] += 1
    return dict(kinds)
