"""Measure the CPU time of a start and of a stop by part: supervisor, keeper, zygote, inits with standbys, programs.

Processor time, not seconds: other work on the machine changes it far less. The supervisor runs in a cgroup of its own,
whose cpu.stat also has the time of processes that have ended. The cost of a small number of programs is subtracted, and
with it that of the start of the service itself. All programs are stopped with one command before the service ends, as
the time of the supervisor and its keeper cannot be read afterwards. The rest of a stop is that of inits and programs.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import control, hierarchy, processes
from benchmarks.checkout import Checkout
from benchmarks.figures import Result
from benchmarks.peers.nsupervisor import Nsupervisor, Plain, taken_from
from benchmarks.session import Options, idle, in_pairs, running

FEW = 10
SETTLE_S = 2.0
"""After the last start: records are written, and the next standby is made."""
START, STOP = "CPU us a start", "CPU us a stop"
STOP_PREFIX = "stop, "
PARTS = ("supervisor", "keeper", "zygote", "inits and standbys", "programs")


def run(options: Options) -> Result:
    """Measure with default isolation and without it."""
    result = Result("budget", "processor time of one start and one stop, by part")
    size = (options.sizes or [100 if options.quick else 1000])[-1]
    for number in range(options.number(3, 1)):
        for kind in (Nsupervisor, Plain):
            print(f"  budget: {kind.name}, N={size}, round {number + 1}", flush=True)
            _measure(kind, kind.name, size, number, result)
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Measure the sides one after the other, so that only one runs at a time."""
    result = Result("budget", "processor time of one start and one stop, by part")
    size = (options.sizes or [50 if options.quick else 300])[-1]
    rounds = options.number(6, 1)
    print(f"  budget: N={size}, {rounds} rounds", flush=True)
    for number, order in in_pairs(sides, rounds):
        for side in order:
            _measure(taken_from(Nsupervisor, side), side.label, size, number, result)
    return result


def _measure(kind: type[Nsupervisor], label: str, size: int, number: int, result: Result) -> None:
    few, many = _cpu_seconds(kind, FEW), _cpu_seconds(kind, size)
    for case in many:
        unit = STOP if case.startswith(STOP_PREFIX) else START
        result.add(label, case, unit, number, [(many[case] - few[case]) / (size - FEW) * 1e6])


def _cpu_seconds(kind: type[Nsupervisor], size: int) -> dict[str, float]:
    """Return the seconds of the start by part, and their sum; with a prefix those of the stop."""
    with _cgroup() as directory, running(_in_cgroup(kind, directory), idle(size)) as session:
        session.up(size)
        time.sleep(SETTLE_S)
        supervisor = session.peer.pid
        (keeper,) = _children(supervisor)
        zygotes = [pid for pid in _children(keeper) if _name(pid) == "nsupervisor-zyg"]
        pids = ([supervisor], [keeper], zygotes)
        total, programs = _used(directory), _used(directory / session.peer.cgroup)
        by_part = dict(zip(PARTS, map(processes.cpu_seconds, pids), strict=False))
        by_part[PARTS[-1]] = programs
        by_part[PARTS[-2]] = total - sum(by_part.values())
        by_part["all"] = total
        before = {part: by_part[part] for part in PARTS[:3]}
        control.command(session.peer.socket, "stop", "*")
        time.sleep(SETTLE_S)
        for part, members in zip(before, pids, strict=True):
            by_part[STOP_PREFIX + part] = processes.cpu_seconds(members) - before[part]
        rest = _used(directory) - total - sum(by_part[STOP_PREFIX + part] for part in before)
        by_part[STOP_PREFIX + "inits and programs"] = rest
        session.stop()
        by_part[STOP_PREFIX + "all, with the end of the service"] = _used(directory) - total
        return by_part


@contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a cgroup of the version 2 hierarchy; its cpu.stat counts without a controller."""
    core = next(found for found in hierarchy.hierarchies() if not found.controllers)
    name = f"nsupervisor-benchmark-budget-{os.getpid()}"
    directory = core.directory("self") / name
    directory.mkdir()
    try:
        yield directory
    finally:
        hierarchy.remove(name)


def _in_cgroup(kind: type[Nsupervisor], directory: Path) -> type[Nsupervisor]:
    """Derive a product that joins the cgroup before its first instruction."""

    class Accounted(kind, listed=False):  # type: ignore[valid-type, misc]
        def command(self) -> list[str]:
            script = f'echo $$ >"{directory}/cgroup.procs" && exec "$@"'
            return ["/bin/sh", "-c", script, "sh", *super().command()]

    return Accounted


def _used(directory: Path) -> float:
    key, microseconds = (directory / "cpu.stat").read_text().split()[:2]
    assert key == "usage_usec"
    return int(microseconds) / 1e6


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()
