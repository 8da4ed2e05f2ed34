"""Measure what each item of the default security profile costs: at a restart, and in a program that makes system calls.

A service for each variant runs at the same time. In each round one program of each is killed, in random order: so other
work on the machine affects all alike, and each round gives one difference for each item.
"""

import random
import statistics
import time
import types
from collections.abc import Callable
from pathlib import Path

from benchmarks.checkout import HERE, Checkout
from benchmarks.figures import Result, Target
from benchmarks.peer import Service
from benchmarks.peers.nsupervisor import Nsupervisor
from benchmarks.products import program
from benchmarks.reports import Reports
from benchmarks.restart import kill
from benchmarks.session import Options, Session, idle, in_pairs, together

NONE, DEFAULT = 'profile = "none"', "default"
VARIANTS = {
    NONE: 'security = { profile = "none" }',
    DEFAULT: "",
    'seccomp = "off"': 'security = { seccomp = "off" }',
    "protect_system = false": "security = { protect_system = false }",
    "protect_kernel_tunables = false": "security = { protect_kernel_tunables = false }",
    "protect_control_groups = true": "security = { protect_control_groups = true }",
    "private_devices = false": "security = { private_devices = false }",
    'device_policy = "auto"': 'security = { device_policy = "auto" }',
    "all capabilities": 'security = { capability_bounding_set = ["ALL"] }',
    'pids_max = "max"': 'resources = { pids_max = "max" }',
}
"""By name, the lines for the table of a workload. Each but the first two is the default profile without one item."""
CASE, ITEM_CASE, CALLS_CASE = "kill -9 to the first instruction", "cost of the item at a start", "read(2) of a byte"
LIMIT = 1.15
"""The most that a restart with the default profile may take, relative to one without a profile."""
PROGRAMS = 4
AGE_S = 2.0
PAUSE_S = (0.03, 0.06)
"""The pause before a kill, in which the service that was measured before prepares its next standby."""
CALLS = 200_000


def run(options: Options) -> Result:
    """Measure the variants of this checkout."""
    result = Result("security", "the items of the default security profile")
    rounds = options.number(120, 3)
    kinds = [_variant(name, lines, HERE) for name, lines in VARIANTS.items()]
    taken: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with together(kinds, idle(PROGRAMS)) as sessions:
        _restart_in_turn(sessions, rounds, lambda session, number, value: _add(result, taken, session, number, value))
    for name in VARIANTS:
        if name not in (NONE, DEFAULT):
            without = zip(taken[DEFAULT], taken[name], strict=True)
            result.add(name, ITEM_CASE, "us", 0, [statistics.median((one - other) * 1000 for one, other in without)])
    pairs = [one / other for one, other in zip(taken[DEFAULT], taken[NONE], strict=True)]
    text = "restart with the default profile, relative to none (median of the rounds)"
    result.targets.append(Target(text, statistics.median(pairs), LIMIT, ""))
    with together(kinds, _calling) as sessions:
        for session in sessions:
            session.up(1)
        for number in range(options.number(20, 2)):
            for session in random.sample(sessions, len(sessions)):
                spent = kill(session, "calls", reads_clock=False)
                result.add(session.peer.name, CALLS_CASE, "ns", number, [spent / CALLS])
    return result


def _add(result: Result, taken: dict[str, list[float]], session: Session, number: int, value: float) -> None:
    result.add(session.peer.name, CASE, "ms", number, [value])
    taken[session.peer.name].append(value)


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Measure a restart with and without the default profile on both sides, which run at the same time."""
    result = Result("security", "restarts with and without the default security profile")
    for name in (DEFAULT, NONE):
        with together([_variant(side.label, VARIANTS[name], side) for side in sides], idle(PROGRAMS)) as sessions:
            for session in sessions:
                session.up(PROGRAMS)
            for number, order in in_pairs(sessions, options.number(100, 8)):
                if number % PROGRAMS == 0:
                    time.sleep(AGE_S)
                for session in order:
                    time.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - no secret
                    result.add(session.peer.name, name, "ms", number, [kill(session, f"w{number % PROGRAMS}")])
    return result


def _restart_in_turn(sessions: list[Session], rounds: int, add: Callable[[Session, int, float], None]) -> None:
    for session in sessions:
        session.up(PROGRAMS)
    for number in range(rounds):
        print(f"  security: round {number + 1} of {rounds}", flush=True)
        if number % PROGRAMS == 0:
            time.sleep(AGE_S)
        for session in random.sample(sessions, len(sessions)):
            time.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - no secret
            add(session, number, kill(session, f"w{number % PROGRAMS}"))


def _variant(name: str, lines: str, checkout: Checkout) -> type[Nsupervisor]:
    body = {"name": name, "checkout": checkout, "workload": f"{Nsupervisor.workload}{lines}\n"}
    return types.new_class("Variant", (Nsupervisor,), {"listed": False}, lambda names: names.update(body))


def _calling(_: Path, reports: Reports) -> list[Service]:
    return [Service("calls", (program("calls"), reports.path, "calls", str(CALLS)))]
