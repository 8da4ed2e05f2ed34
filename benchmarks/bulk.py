"""Start a thousand programs at once, and stop them: seconds, and processor time of all processes with the programs.

Other work on the machine changes processor time far less than seconds. Each process counts, also one that has ended:
a process has the time of the children that it has reaped, and this process reaps all others.
"""

import resource
import time
from pathlib import Path

from benchmarks import processes
from benchmarks.checkout import Checkout
from benchmarks.figures import Result, Target
from benchmarks.peer import Peer, load
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.session import Options, idle, in_pairs, in_turn, running

SETTLE_S = 2.0
"""After the last start: the supervisor's records of it are written."""
START_S, START_CPU = "s to start all", "CPU s to start all"
STOP_S, STOP_CPU = "s to stop all", "CPU s to stop all"
FEW, MANY = 1000, 5000
YARDSTICK = "systemd"
MOST_STOP_S = 6.0
"""The target for the stop of `MANY`, in seconds."""


def run(options: Options) -> Result:
    """Measure all products with a thousand programs, and nsupervisor with five thousand."""
    result = Result("bulk", "many programs started at once, and stopped, with all processes")
    sizes = options.sizes or ([20] if options.quick else [FEW, MANY])
    kinds = load(options.peers, "footprint")
    for size in sizes:
        some = {n: k for n, k in kinds.items() if n.startswith("nsupervisor") or (size < MANY and k.most >= size - 1)}

        def measure(kind: type[Peer], number: int, size: int = size) -> None:
            _measure(kind, size, number, result)

        in_turn(some, options.number(3 if size < MANY else 1, 1), result, measure)
    result.remarks = list(dict.fromkeys(result.remarks))
    _set_targets(result)
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Measure the sides one after the other, so that only one runs at a time."""
    result = Result("bulk", "many programs started at once, and stopped, with all processes")
    kinds = [taken_from(Nsupervisor, side) for side in sides]
    for size in options.sizes or ([20] if options.quick else [300]):
        rounds = options.number(6, 1)
        print(f"  bulk: N={size}, {rounds} rounds", flush=True)
        for number, order in in_pairs(kinds, rounds):
            for kind in order:
                _measure(kind, size, number, result)
    return result


def _measure(kind: type[Peer], size: int, number: int, result: Result) -> None:
    case, before = f"N={size}", _reaped_seconds()
    with running(kind, idle(min(size, kind.most))) as session:
        lines = session.up(min(size, kind.most))
        started_at = max(int(line[0]) for line in lines)
        time.sleep(SETTLE_S)
        members = [session.peer.pid, *session.members()]
        used = processes.cpu_seconds(dict.fromkeys(members)) + sum(map(_seconds_of_children, dict.fromkeys(members)))
        took = session.stop()
    total = _reaped_seconds() - before
    result.add(kind.name, case, START_S, number, [(started_at - session.started_at) / 1e9])
    result.add(kind.name, case, START_CPU, number, [used])
    result.add(kind.name, case, STOP_S, number, [took])
    result.add(kind.name, case, STOP_CPU, number, [total - used])


def _set_targets(result: Result) -> None:
    few, many, ours = f"N={FEW}", f"N={MANY}", "nsupervisor"
    for unit in (START_S, START_CPU, STOP_S, STOP_CPU):
        limit = result.median(YARDSTICK, few, unit)
        if limit is not None:
            text = f"{unit}, {few}, compared with {YARDSTICK}, which isolates nothing"
            result.targets.append(Target(text, result.median(ours, few, unit), limit, unit.partition(" to")[0]))
    start = result.median(ours, few, START_S)
    if start is not None and result.find(ours, many, START_S) is not None:
        times = MANY / FEW * start
        result.targets.append(Target(f"{START_S}, {many}", result.median(ours, many, START_S), times, "s"))
        result.targets.append(Target(f"{STOP_S}, {many}", result.median(ours, many, STOP_S), MOST_STOP_S, "s"))


def _reaped_seconds() -> float:
    """Return the processor time of all processes that this one, or one of them, has reaped."""
    processes.reap()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _seconds_of_children(pid: int) -> float:
    """Return the processor time of the children that a process has reaped, proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[13:15])) / 100  # cutime and cstime in ticks, of which a second has 100 for user space
