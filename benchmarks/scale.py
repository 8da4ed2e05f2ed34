"""Compare the cost of one event, and of watching one workload, with few and with many programs."""

import os
import signal
import time
from pathlib import Path

from benchmarks import processes
from benchmarks.checkout import Checkout
from benchmarks.figures import Result, Target
from benchmarks.peer import Service
from benchmarks.peers.nsupervisor import Nsupervisor, five_rules, taken_from
from benchmarks.products import program
from benchmarks.reports import Reports
from benchmarks.session import Make, Options, RunError, Session, in_pairs, running

CROWD = 1000
START, RESTART, LATENCY = "CPU ms a start", "CPU ms a restart", "ms to restart"
IDLE, RULES = "% of a core, idle", "CPU us/s for a workload's rules"
RULED = ", 5 rules each"


class Scaled(Nsupervisor, listed=False):
    """nsupervisor, with more files for each program."""

    most = (Nsupervisor.files - 250) // 4
    """With rules the supervisor has one more open file per program: on v1 an eventfd reports OOM kills."""


def run(options: Options) -> Result:
    """Measure each size twice: without rules, and with five rules for each program."""
    result = Result("scale", "what one event costs the supervisor and the keeper, with N programs")
    sizes = options.sizes or ([10, 50] if options.quick else [10, 100, CROWD, 5000])
    sizes = list(dict.fromkeys(min(size, Scaled.most) for size in sizes))
    window, kills = (3.0, 5) if options.quick else (10.0, 20)
    for number in range(options.number(2, 1)):
        for size in sizes:
            if number and size >= CROWD:
                continue  # takes minutes, and the result is already a mean over many programs
            try:
                for ruled in (False, True):
                    print(f"  scale: N={size}{RULED * ruled}, round {number + 1}", flush=True)
                    _measure(Scaled, size, ruled, window, kills, number, result)
            except (RunError, OSError) as error:
                result.remarks.append(f"N={size}: failed: {error}")
    for unit, case in ((RESTART, "N={}"), (START, "N={}"), (RULES, "N={}" + RULED)):
        least, most = (result.median("nsupervisor", case.format(size), unit) for size in (sizes[0], sizes[-1]))
        value = most / least if least and most else None
        text = f"{unit} at N={sizes[-1]}, in that at N={sizes[0]} (flat)"
        result.targets.append(Target(text, value, 2, "times"))
    size = max((size for size in sizes if size <= CROWD), default=sizes[0])
    idle = result.median("nsupervisor", f"N={size}{RULED}", IDLE)
    result.targets.append(Target(f"idle CPU, N={size}{RULED}", idle, 2, "%"))
    if sizes[-1] == Scaled.most:
        result.remarks.append(
            f"a process may have {Scaled.files:,} files open here, and ours has 4 for each program with rules"
        )
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Measure the sides one after the other, so that only one runs at a time."""
    result = Result("scale", "what one event costs the supervisor and the keeper, with N programs")
    sizes = options.sizes or ([10] if options.quick else [10, 300])
    window, kills = (3.0, 5) if options.quick else (4.0, 10)
    rounds = options.number(6, 1)
    kinds = [taken_from(Scaled, side) for side in sides]
    for size in sizes:
        print(f"  scale: N={size}, {rounds} rounds", flush=True)
        for number, order in in_pairs(kinds, rounds):
            for kind in order:
                for ruled in (False, True):
                    _measure(kind, size, ruled, window, kills, number, result)
    return result


def _measure(
    kind: type[Nsupervisor], size: int, ruled: bool, window: float, kills: int, number: int, result: Result
) -> None:
    """Measure the CPU time of starts, of idling, of some restarts and of the stop."""
    case = f"N={size}{RULED * ruled}"

    def add(unit: str, value: float) -> None:
        result.add(kind.name, case, unit, number, [value])

    with running(kind, _services(size, ruled)) as session:
        session.up(size)
        time.sleep(3)
        ours = [session.peer.pid, *_keeper(session)]
        begin = processes.cpu_seconds(ours)
        add(START, begin / size * 1e3)
        start = time.monotonic()
        time.sleep(window)
        idle = (processes.cpu_seconds(ours) - begin) / (time.monotonic() - start)
        add(IDLE, idle * 100)
        if ruled:
            without = result.median(kind.name, f"N={size}", IDLE) or 0
            add(RULES, (idle - without / 100) / size * 1e6)
        pids = session.pids()
        for name in list(pids)[:: max(1, size // kills)][:kills]:
            before, start_ns = processes.cpu_seconds(ours), time.monotonic_ns()
            os.kill(pids[name], signal.SIGKILL)
            lines = session.reports.take(1, 20)
            if not lines:
                raise RunError(f"no restart within 20 s{session.said()}")
            time.sleep(0.2)  # for work after the start
            took = (time.monotonic_ns() - start_ns) / 1e9
            cost = processes.cpu_seconds(ours) - before - idle * took
            add(LATENCY, (int(lines[0][0]) - start_ns) / 1e6)
            add(RESTART, cost * 1e3)


def _services(size: int, ruled: bool) -> Make:
    def make(_: Path, reports: Reports) -> list[Service]:
        names = [f"w{i}" for i in range(size)]
        commands = {name: (program("pause"), reports.path, name) for name in names}
        return [Service(name, commands[name], extra=five_rules(name) if ruled else "") for name in names]

    return make


def _keeper(session: Session) -> list[int]:
    """Return the pid of the keeper, the only child of the supervisor."""
    children = Path(f"/proc/{session.peer.pid}/task/{session.peer.pid}/children")
    return [int(pid) for pid in children.read_text().split()]
