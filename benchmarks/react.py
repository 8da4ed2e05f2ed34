"""From the moment at which the kernel acts to the record of what our policy does about it.

A small C program (c/watch.c) reads the kernel's own count some thousand times a second and notes the last moment
at which it had not moved: the kernel acted after that, so what is given here is the most that it can have been. The
other end is the moment at which the record of the action has come out of the supervisor's standard output. Both are
CLOCK_MONOTONIC.

The others have no rules on what a cgroup counts, but some look at the size of processes: of them and us it is taken how
long a program that grows past a level lives on. It says itself when it has passed it, and when the next one has begun.
"""

import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import orjson

from benchmarks import control, hierarchy
from benchmarks.checkout import Checkout
from benchmarks.figures import Result, Target
from benchmarks.peer import Peer, Service, load
from benchmarks.peers.nsupervisor import Nsupervisor, five_rules, taken_from
from benchmarks.products import program
from benchmarks.reports import Reports
from benchmarks.session import Make, Options, RunError, Session, in_pairs, in_turn, running, together


@attrs.frozen
class Case:
    """One provoked event: the resource that the program exhausts, the kernel's counter, and the rule on it."""

    name: str
    file: str
    eat: tuple[str, str]
    limit: str
    when: str
    threshold: int = 0
    """The threshold of a level; 0 for a counter."""
    trigger: str = ""
    """The kernel's trigger of a stall, as written to the pressure file."""
    neighbours: int = 0
    """The number of other, idle programs, each with five rules."""

    def rule(self, name: str) -> str:
        """Return the lines for the table of the workload `name`: its limit and its rule."""
        head = f"resources = {{ {self.limit} }}\n[[workload.{name}.policy]]\n"
        return f'{head}when = "{self.when}"\naction = "restart"\n'


@attrs.frozen
class Sample:
    """One reaction, in nanoseconds from the last reading before the kernel acted."""

    peer: str
    record: int
    acted: int
    """The first reading after the kernel acted."""
    again: int
    """The first instruction of the replacement."""

    def add_to(self, result: Result, case: str, round_: int) -> None:
        """In milliseconds."""
        result.add(self.peer, case, UNIT, round_, [self.record / 1e6])
        result.add(self.peer, case, UNSURE, round_, [self.acted / 1e6])
        result.add(self.peer, case, AGAIN, round_, [self.again / 1e6])


NEAR, STALL = "level crossed, from near it (sampled)", "stalled for too long (the kernel's trigger)"
CASES = (
    Case("OOM kill", "memory.events", ("memory", "64"), 'memory_max = "16M"', "memory.events oom_kill"),
    Case("fork refused at pids.max", "pids.events", ("processes", "20"), "pids_max = 8", "pids.events max"),
    Case("level crossed (sampled)", "pids.current", ("processes", "6"), "pids_max = 20", "pids.current >= 5", 5),
    Case(NEAR, "pids.current", ("processes", "1"), "pids_max = 20", "pids.current >= 2", 2),
    # A window that the kernel also accepts without CAP_SYS_RESOURCE.
    Case(STALL, "cpu.pressure", ("turns", "2"), "", "cpu.pressure some stall > 400ms/2s", 0, "some 400000 2000000"),
)
CROWD = 1000
LEVEL, LEVEL_MIB = "memory past a level, to the next first instruction", 8
UNIT = "ms"
AGAIN = "ms to the next first instruction"
GROWING = "growing"
UNSURE = "ms in which the kernel acted"


class Reacting(Nsupervisor, listed=False):
    """A service whose records come through a pipe, each with the time at which it was read."""

    workload = 'restart = "no"\n'

    def start(self) -> None:
        """As ever, but for the pipe."""
        with open(self.directory / "said", "wb") as errors:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self.environment(),
                start_new_session=True,
            )
        self.actions: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                at = time.monotonic_ns()
                if b'"when"' in line:  # an action of a rule, not of an operator
                    self.actions.put((at, orjson.loads(line)))


def run(options: Options) -> Result:
    """Run one misbehaving program at a time; its rule restarts it, and it misbehaves again."""
    result = Result("react", "the kernel acts, to our record of the action; a level is passed, to the next program")
    count = 5 if options.quick else 20
    crowd = (options.sizes or [20 if options.quick else CROWD])[-1]
    crowded = attrs.evolve(CASES[0], name=f"{CASES[0].name}, with {crowd:,} others", neighbours=crowd)
    rounds = options.number(3, 1)
    if not options.peers or "nsupervisor" in options.peers:
        for number in range(rounds):
            for case in CASES[number % len(CASES) :] + CASES[: number % len(CASES)]:
                _round(case, number, count, result)
        _round(crowded, 0, count * 5, result)  # only one start of that many; enough reactions for the 99th percentile
    in_turn(load(options.peers, "react"), rounds, result, partial(_levels, count=2 if options.quick else 5, to=result))
    for name in (CASES[0].name, crowded.name, STALL):
        for value, limit, which in zip(_told(result, name), (3, 20), ("median", "99 %"), strict=True):
            result.targets.append(Target(f"{name}, to the action's record, {which}", value, limit, "ms"))
    # Between two samples are 100 ms there; the rest is the way from a sample to the record.
    result.targets.append(Target(f"{NEAR}, to the action's record, 99 %", _told(result, NEAR)[1], 100, "ms"))
    return result


def _told(result: Result, name: str) -> tuple[float | None, float | None]:
    """Return the targets of a case: its median and its 99th percentile."""
    found = result.find("nsupervisor", name, UNIT)
    return (found.median, found.quantile(0.99)) if found and found.samples else (None, None)


def _round(case: Case, number: int, count: int, result: Result) -> None:
    print(f"  react: {case.name}, round {number + 1}", flush=True)
    try:
        with running(Reacting, _make(case)) as session:
            peer = session.peer
            assert isinstance(peer, Reacting)
            if case.neighbours:
                session.up(case.neighbours)
                time.sleep(3)
                control.command(peer.socket, "start", "w0")
            for sample in _samples(session, peer, "w0", case, count):
                sample.add_to(result, case.name, number)
    except (RunError, OSError) as error:
        result.remarks.append(f"{case.name}: failed: {error}")


def _make(case: Case) -> Make:
    def make(_: Path, reports: Reports) -> list[Service]:
        late = "autostart = false\n" if case.neighbours else ""
        others = [f"w{i}" for i in range(1, case.neighbours + 1)]
        return [
            Service("w0", (program("eater"), reports.path, "w0", *case.eat), extra=late + case.rule("w0")),
            *(Service(name, (program("pause"), reports.path, name), extra=five_rules(name)) for name in others),
        ]

    return make


def _levels(kind: type[Peer], number: int, count: int, to: Result) -> None:
    """Measure the time from a program's growth past a level until its replacement runs."""

    def make(_: Path, reports: Reports) -> list[Service]:
        command = (program("eater"), reports.path, "w0", "growing", str(2 * LEVEL_MIB))
        return [Service("w0", command, restart_above=LEVEL_MIB << 20)]

    with running(kind, make) as session:
        for taken in _past_level(session, count):
            to.add(kind.name, LEVEL, UNIT, number, [taken])


def _past_level(session: Session, count: int) -> list[float]:
    """Return the times from each report of a passed level to the next first instruction, in milliseconds."""
    session.up(1, 30)
    taken: list[float] = []
    lines: list[list[str]] = []
    while len(taken) < count:
        while len(lines) < 2:
            if not (more := session.reports.take(1, 30)):
                raise RunError(f"not restarted within 30 s{session.said()}")
            lines += more
        (crossed, *words), (again, *_) = lines[:2]
        if words[1:] != ["crossed"]:
            raise RunError(f"restarted before it had passed the level{session.said()}")
        taken.append((int(again) - int(crossed)) / 1e6)
        lines = lines[2:]
    return taken


COMPARED = 3
"""The number of reactions of each side per case and round of a comparison."""


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Both run at the same time, each with a program for each case, of which one runs. Each reaction is a pair with the
    other side's reaction of the same number. With --sizes N there are N other programs, each with five rules."""
    result = Result("react", "the kernel acts, to our record of the action; a level is passed, to the next program")
    rounds, count = options.number(7, 1), 2 if options.quick else COMPARED
    crowd = options.sizes[-1] if options.sizes else 0
    cases = {f"e{i}": case for i, case in enumerate(CASES)}

    def make(_: Path, reports: Reports) -> list[Service]:
        late, eater = "autostart = false\n", program("eater")
        eaters = [
            Service(name, (eater, reports.path, name, *case.eat), extra=late + case.rule(name))
            for name, case in cases.items()
        ]
        growing = (eater, reports.path, GROWING, "growing", str(2 * LEVEL_MIB))
        others = [f"w{i}" for i in range(crowd)]
        return [
            *eaters,
            Service(GROWING, growing, restart_above=LEVEL_MIB << 20, extra=late),
            *(Service(name, (program("pause"), reports.path, name), extra=five_rules(name)) for name in others),
        ]

    with together([taken_from(Reacting, side) for side in sides], make) as sessions:
        for session in sessions:
            control.wait_answer(session)
            session.up(crowd)
        time.sleep(3 if crowd else 0)
        for number, order in in_pairs(sessions, rounds):
            print(f"  react: round {number + 1} of {rounds}", flush=True)
            for name in (*cases, GROWING):
                for session in order:
                    peer = session.peer
                    assert isinstance(peer, Reacting)
                    control.command(peer.socket, "start", name)
                    if name == GROWING:
                        for i, taken in enumerate(_past_level(session, count)):
                            result.add(peer.name, LEVEL, UNIT, number * count + i, [taken])
                    else:
                        case = cases[name]
                        for i, sample in enumerate(_samples(session, peer, name, case, count)):
                            sample.add_to(
                                result, f"{case.name}{f', with {crowd:,} others' if crowd else ''}", number * count + i
                            )
                    control.command(peer.socket, "stop", name)
                    _forget(session, peer)
    return result


def _forget(session: Session, peer: Reacting) -> None:
    """Discard reports since the last sample; the program is stopped, so no more follow."""
    while session.reports.some(0.05):
        pass
    while not peer.actions.empty():
        peer.actions.get()


def _samples(session: Session, peer: Reacting, name: str, case: Case, count: int) -> list[Sample]:
    """Return the next reactions to the program `name`. Raises RunError."""
    session.up(1, 30)
    path, key = _counter(session, name, case)
    key = case.trigger or key
    out = session.peer.directory / "watched"
    actions: list[tuple[int, dict[str, Any]]] = []
    starts: list[int] = []
    with (
        open(out, "wb") as stream,
        subprocess.Popen([program("watch"), path, *filter(None, [key])], stdout=stream) as watch,
    ):
        try:
            begin = time.monotonic_ns() + 50_000_000  # until the watch watches
            while len(actions) < count + 1 or starts[-1] < actions[-1][0]:
                if len(actions) < count + 1:
                    actions.append(peer.actions.get(timeout=20))
                    if actions[-1][0] < begin:  # it has gone on while its cgroup was looked for
                        actions.pop()
                        continue
                lines = session.reports.take(1, 20)
                if not lines:
                    raise RunError(f"no restart within 20 s{session.said()}")
                starts += [int(line[0]) for line in lines]
        except queue.Empty:
            raise RunError(f"no action within 20 s{session.said()}") from None
        finally:
            watch.kill()
    changes = list(_changes(out, case.threshold))
    samples = []
    for at, _ in actions[1:]:  # what the first one is about may have been before the watch
        again = min(start for start in starts if start > at)
        before, after = max((change for change in changes if change[0] < at), default=(0, 0))
        if not before:
            raise RunError("an action before anything had changed")
        samples.append(Sample(peer.name, at - before, after - before, again - before))
    return samples


def _counter(session: Session, name: str, case: Case) -> tuple[Path, str]:
    """Return the kernel's file and its key. A neighbour's pid locates the cgroup, as the watched program restarts."""
    steady = "w1" if case.neighbours else name
    for _ in range(20):
        try:
            path, key = hierarchy.counter(session.pids()[steady], case.file)
            return path.parent.with_name(name) / path.name, key
        except (LookupError, OSError):
            time.sleep(0.05)
    raise RunError(f"{steady} has no process{session.said()}")


def _changes(path: Path, threshold: int) -> Iterator[tuple[int, int]]:
    """Return the interval of each event: every step of a counter, or the first value of a level at the threshold."""
    last = 0
    for line in path.read_text().splitlines()[1:]:
        before, after, value = map(int, line.split())
        if last < threshold <= value or not threshold:
            yield before, after
        last = value
