"""Measure the time from kill -9 of a supervised program to the first instruction of the next one."""

import os
import random
import signal
import time

from benchmarks.checkout import Checkout
from benchmarks.figures import Result, Target
from benchmarks.peer import Peer, load
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.session import Options, RunError, Session, idle, in_pairs, in_turn, running, together

CASES = {"lived 2 s": 2.0, "lived 0.2 s": 0.2}
"""The ages at which programs are killed, in seconds: several products wait a second if a program was younger."""

LIMIT = 5.0


def run(options: Options) -> Result:
    """Run four services; in each round each is killed once at each age."""
    result = Result("restart", "kill -9 to the first instruction of the replacement")
    kills = 3 if options.quick else 4

    def measure(kind: type[Peer], number: int) -> None:
        with running(kind, idle(kills)) as session:
            session.up(kills)
            for case, age in CASES.items():
                result.add(kind.name, case, "ms", number, _kills(session, kind, age))

    in_turn(load(options.peers, "restart"), options.number(3, 1), result, measure)
    for case in CASES:
        result.targets.append(Target(f"restart, {case}", result.median("nsupervisor", case, "ms"), LIMIT, "ms"))
    return result


COMPARED = 25
"""The number of services on each side of a comparison."""
PAUSE_S = (0.02, 0.05)
"""The pause before a kill, in which the other side prepares its next standby."""


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Both run at the same time; one service of each side is killed in each round, at each age."""
    result = Result("restart", "kill -9 to the first instruction of the replacement")
    rounds = options.number(100, 8)
    with together([taken_from(Nsupervisor, side) for side in sides], idle(COMPARED)) as sessions:
        for session in sessions:
            session.up(COMPARED)
        for case, age in CASES.items():
            print(f"  restart: {case}, {rounds} rounds", flush=True)
            for number, order in in_pairs(sessions, rounds):
                name = f"w{number % COMPARED}"
                if age < 1:
                    for session in order:  # restarted first to be young, as in `_kills`
                        kill(session, name)
                if age < 1 or number % COMPARED == 0:  # the others have been left alone since then
                    time.sleep(age)
                for session in order:
                    time.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - no secret
                    result.add(session.peer.name, case, "ms", number, [kill(session, name)])
    return result


def _kills(session: Session, kind: type[Peer], age: float) -> list[float]:
    """Kill each service once at an age of `age` seconds or a little more; return milliseconds."""
    taken = []
    old = age >= 1  # then all age together, and are killed one after the other
    if old:
        time.sleep(age)
    for name in session.pids():
        if not old:
            # Restart it first, so that it is young.
            kill(session, name)
            time.sleep(age)
        time.sleep(random.uniform(0, kind.poll) if old else 0)  # noqa: S311 - no secret
        taken.append(kill(session, name))
    return taken


def kill(session: Session, name: str, reads_clock: bool = True) -> float:
    """Return the milliseconds until the next process of that name reports. Raises RunError.

    Without `reads_clock`, the report is no time of the clock, and is returned as it is.
    """
    pid = session.pids()[name]
    start = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    lines = session.reports.take(1, 20)
    if not lines:
        raise RunError(f"no restart within 20 s{session.said()}")
    if lines[0][1] != name or len(lines) > 1:
        raise RunError(f"expected one restart of {name}, got {lines}")
    return (int(lines[0][0]) - start) / 1e6 if reads_clock else float(lines[0][0])
