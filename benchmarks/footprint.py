"""Measure idle supervision: memory and CPU time of everything except the programs; starts and stops."""

import time

from benchmarks import processes
from benchmarks.checkout import Checkout
from benchmarks.figures import Result, Target
from benchmarks.peer import Peer, load
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.session import Options, idle, in_pairs, in_turn, running

SETTLE = 3.0
"""Seconds between the last start and the measurement."""


def run(options: Options) -> Result:
    """Measure with idle programs: peers at 100 and 1,000 programs, nsupervisor at more sizes."""
    result = Result("footprint", "everything but the programs, at N idle programs")
    sizes = options.sizes or ([20] if options.quick else [100, 200, 1000, 5000])
    kinds = load(options.peers, "footprint")
    for size in sizes:
        ours = {name: kind for name, kind in kinds.items() if name.startswith("nsupervisor")}
        some = kinds if size in (100, 1000) or options.sizes or options.quick else ours
        rounds = options.number(2 if size <= 100 else 1, 1)  # a round of more takes minutes
        window = 3.0 if options.quick else 20.0

        def measure(kind: type[Peer], number: int, size: int = size, window: float = window) -> None:
            _measure(kind, number, size, window, result)

        in_turn({n: k for n, k in some.items() if n in ours or k.most >= size - 1}, rounds, result, measure)
    result.remarks = list(dict.fromkeys(result.remarks))
    case = "N=200"
    if 200 in sizes:
        result.targets = [
            Target(f"PSS, {case}", result.median("nsupervisor", case, "MiB PSS"), 150, "MiB"),
            Target(f"idle CPU, {case}", result.median("nsupervisor", case, "% of a core"), 1, "%"),
        ]
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Measure the sides one after the other, so that only one runs at a time."""
    result = Result("footprint", "everything but the programs, at N idle programs")
    rounds, window = options.number(7, 1), 3.0 if options.quick else 5.0
    kinds = [taken_from(Nsupervisor, side) for side in sides]
    for size in options.sizes or ([20] if options.quick else [100]):
        print(f"  footprint: N={size}, {rounds} rounds", flush=True)
        for number, order in in_pairs(kinds, rounds):
            for kind in order:
                _measure(kind, number, size, window, result)
    return result


def _measure(kind: type[Peer], number: int, size: int, window: float, result: Result) -> None:
    count = min(size, kind.most)
    case = f"N={size}" if count >= size - 1 else f"N={count}"  # limited by the number of open files of a process
    with running(kind, idle(count)) as session:
        lines = session.up(count)
        result.add(kind.name, case, "s to start all", number, [_seconds(session.started_at, lines)])
        time.sleep(SETTLE)
        pids = session.overhead()
        before, start = processes.cpu_seconds(pids), time.monotonic()
        result.add(kind.name, case, "CPU s to start all", number, [before])
        time.sleep(window)
        used = processes.cpu_seconds(pids) - before
        result.add(kind.name, case, "% of a core", number, [100 * used / (time.monotonic() - start)])
        result.add(kind.name, case, "MiB PSS", number, [processes.pss_mib(pids)])
        result.add(kind.name, case, "MiB page tables", number, [processes.page_tables_mib(pids)])
        result.add(kind.name, case, "processes", number, [len(pids)])
        result.add(kind.name, case, "s to stop all", number, [session.stop()])


def _seconds(start: int, lines: list[list[str]]) -> float:
    return (max(int(line[0]) for line in lines) - start) / 1e9
