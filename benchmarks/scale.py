"""Whether one event, and one sample of a level, cost the same with few programs and with many."""

import os
import signal
import time
from pathlib import Path

from benchmarks import processes
from benchmarks.figures import Result, Target
from benchmarks.peer import Service
from benchmarks.peers.nsupervisor import Nsupervisor
from benchmarks.products import program
from benchmarks.reports import Reports
from benchmarks.session import Make, Options, RunError, Session, running

INTERVAL = 0.25
"""Seconds between two samples of a level."""
RESTART, LATENCY, SAMPLE = "CPU ms a restart", "ms to restart", "CPU us a sample"


class Scaled(Nsupervisor):
    """Ours, by another name in no list."""

    name = "nsupervisor-scaled"
    benchmarks = ()


def run(options: Options) -> Result:
    """Each size twice: without rules, and with a rule on a level for each program."""
    result = Result("scale", "what one event costs the supervisor and the keeper, with N programs")
    sizes = options.sizes or ([10, 50] if options.quick else [10, 100, 1000, 5000])
    window, kills = (3.0, 5) if options.quick else (10.0, 20)
    for number in range(options.number(3, 1)):
        for size in sizes:
            print(f"  scale: N={size}, round {number + 1}", flush=True)
            try:
                idle = _idle(size, window, "", kills, number, result)
                rule = '[[workload.{}.policy]]\nwhen = "pids.current > 1000"\naction = "log"\n'
                watched = _idle(size, window, rule, 0, number, result)
            except (RunError, OSError) as error:
                result.remarks.append(f"N={size}: failed: {error}")
                continue
            result.add("nsupervisor", f"N={size}", SAMPLE, number, [(watched - idle) * INTERVAL / size * 1e6])
    for unit in (RESTART, SAMPLE):
        least, most = (result.median("nsupervisor", f"N={size}", unit) for size in (sizes[0], sizes[-1]))
        value = most / least if least and most else None
        text = f"{unit} at N={sizes[-1]}, in that at N={sizes[0]} (flat)"
        result.targets.append(Target(text, value, 2, "times"))
    return result


def _services(size: int, rule: str) -> Make:
    def make(_: Path, reports: Reports) -> list[Service]:
        names = [f"w{i}" for i in range(size)]
        return [Service(name, (program("pause"), reports.path, name), extra=rule.format(name)) for name in names]

    return make


def _idle(size: int, window: float, rule: str, kills: int, number: int, result: Result) -> float:
    """CPU seconds a second while nothing happens; and then some restarts, whose cost goes into the result."""
    with running(Scaled, _services(size, rule)) as session:
        session.up(size)
        time.sleep(3)
        ours = [session.peer.pid, *_keeper(session)]
        before, start = processes.cpu_seconds(ours), time.monotonic()
        time.sleep(window)
        used = (processes.cpu_seconds(ours) - before) / (time.monotonic() - start)
        pids = session.pids()
        for name in list(pids)[:: max(1, size // kills)][:kills] if kills else ():
            before, start = processes.cpu_seconds(ours), time.monotonic_ns()
            os.kill(pids[name], signal.SIGKILL)
            lines = session.reports.take(1, 20)
            if not lines:
                raise RunError(f"no restart within 20 s{session.said()}")
            time.sleep(0.2)  # for what comes after the start
            took = (time.monotonic_ns() - start) / 1e9
            cost = processes.cpu_seconds(ours) - before - used * took
            result.add("nsupervisor", f"N={size}", LATENCY, number, [(int(lines[0][0]) - start) / 1e6])
            result.add("nsupervisor", f"N={size}", RESTART, number, [cost * 1e3])
        return used


def _keeper(session: Session) -> list[int]:
    """The keeper: the one child of the supervisor."""
    children = Path(f"/proc/{session.peer.pid}/task/{session.peer.pid}/children")
    return [int(pid) for pid in children.read_text().split()]
