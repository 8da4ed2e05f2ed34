"""What a test run must not leave behind: processes, cgroups, mounts, changed attributes of its own process.

`snapshot` before, `left_over` after.

Only what descends from the run counts: processes in the run's cgroups, its children, and processes with its mark in
their environment; cgroups below its own; mounts in its mount namespace. See isolation.py.
"""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from tests import isolation
from tests.isolation import Isolation
from tests.timing import deadline

MARK = "NSUPERVISOR_TEST_RUN"
"""An environment variable; its value must be unique for the run. Without own cgroups only this shows orphans."""


@dataclass(frozen=True)
class Snapshot:
    """What is there now: {key: words to show} each. parents: {key of a process: key of its parent, if that is here}."""

    processes: dict[str, str]
    cgroups: dict[str, str]
    mounts: dict[str, str]
    parents: dict[str, str]
    attributes: dict[str, str]
    """Attributes of this process, which each test and each process that it starts inherits. The key has the value."""


def _processes(run: Isolation) -> tuple[dict[str, str], dict[str, str]]:
    me, mark = os.getpid(), f"{MARK}={os.environ.get(MARK)}".encode()
    members = isolation.processes(run)
    found, parents, keys = {}, {}, {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == me:
            continue
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
            is_ours = int(directory.name) in members or int(fields[1]) == me or _has(directory / "environ", mark)
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # it has ended meanwhile
            continue
        if is_ours:
            # The start time (field 22) tells a process from a later one with the same pid.
            key = keys[directory.name] = f"{directory.name}:{fields[19]}"
            found[key] = f"process {directory.name} ({fields[0]}): {command[:200]}"
            parents[key] = fields[1]
    return found, {key: keys[parent] for key, parent in parents.items() if parent in keys}


def _has(environ: Path, entry: bytes) -> bool:
    try:
        return entry in environ.read_bytes().split(b"\0")
    except PermissionError:  # another user's
        return False


def _cgroups(run: Isolation) -> dict[str, str]:
    return {path: f"cgroup {path}" for own in run.cgroups for path, _, _ in os.walk(own)}


def _mounts(run: Isolation) -> dict[str, str]:
    if not run.has_own_mounts:
        return {}
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[0]: f"mount {line.split()[4]} ({line.partition(' - ')[2]})" for line in lines}


def _attributes() -> dict[str, str]:
    names = {name for name in dir(resource) if name.startswith("RLIMIT_")} - {"RLIMIT_OFILE"}  # is RLIMIT_NOFILE
    values: dict[str, object] = {name: resource.getrlimit(getattr(resource, name)) for name in names}
    status = Path("/proc/self/status").read_text().splitlines()
    values |= {
        line.split(":")[0]: line.split()[1] for line in status if line.startswith(("Umask:", "SigBlk:", "SigIgn:"))
    }
    values |= {"niceness": os.getpriority(os.PRIO_PROCESS, 0), "directory": os.getcwd()}
    return {f"{name}={value}": f"this process has {name} {value} now" for name, value in values.items()}


def snapshot(run: Isolation) -> Snapshot:
    """See what is there now."""
    found, parents = _processes(run)
    return Snapshot(found, _cgroups(run), _mounts(run), parents, _attributes())


def _is_below(key: str, before: Snapshot, now: Snapshot) -> bool:
    """Return whether a process descends from one that was there before: a service that outlives the test may fork."""
    while key := now.parents.get(key, ""):
        if key in before.processes:
            return True
    return False


def _compare(before: Snapshot, now: Snapshot) -> list[str]:
    processes = {key: words for key, words in now.processes.items() if not _is_below(key, before, now)}
    pairs = (
        *((before.processes, processes), (before.cgroups, now.cgroups), (before.mounts, now.mounts)),
        (before.attributes, now.attributes),
    )
    new = [(key, words) for then, today in pairs for key, words in sorted(today.items()) if key not in then]
    keys = {key for key, _ in new}
    # Of a tree of cgroups, the top is enough.
    return [words for key, words in new if str(Path(key).parent) not in keys]


def left_over(run: Isolation, before: Snapshot, patience: float = 2.0) -> list[str]:
    """Return what has come since `before` and does not go away within `patience` seconds (the kernel reaps late)."""
    end = time.monotonic() + deadline(patience)
    while (found := _compare(before, snapshot(run))) and time.monotonic() < end:
        time.sleep(0.05)
    return found
