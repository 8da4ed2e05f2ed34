"""From the moment at which the kernel acts to the record of what our policy does about it.

A small C program (c/watch.c) reads the kernel's own count some thousand times a second and notes the last moment
at which it had not moved: the kernel acted after that, so what is given here is the most that it can have been. The
other end is the moment at which the record of the action has come out of the supervisor's standard output. Both are
CLOCK_MONOTONIC.
"""

import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson

from benchmarks import hierarchy
from benchmarks.figures import Result, Target
from benchmarks.peer import Service
from benchmarks.peers.nsupervisor import Nsupervisor
from benchmarks.products import program
from benchmarks.reports import Reports
from benchmarks.session import Make, Options, RunError, Session, running


@attrs.frozen
class Case:
    """What is provoked: what the program takes too much of, what the kernel counts, and the rule on it."""

    name: str
    file: str
    eat: tuple[str, str]
    limit: str
    when: str
    threshold: int = 0
    """Of a level; 0 for a counter."""


CASES = (
    Case("OOM kill", "memory.events", ("memory", "64"), 'memory_max = "16M"', "memory.events oom_kill"),
    Case("fork refused at pids.max", "pids.events", ("processes", "20"), "pids_max = 8", "pids.events max"),
    Case("level crossed (sampled)", "pids.current", ("processes", "6"), "pids_max = 20", "pids.current >= 5", 5),
)
UNIT = "ms"
AGAIN = "ms to the next first instruction"
UNSURE = "ms in which the kernel acted"


class Reacting(Nsupervisor):
    """Records come by a pipe; the time at which each was read is kept with it."""

    name = "nsupervisor-reacting"
    benchmarks = ()
    workload = 'restart = "no"\n'

    def start(self) -> None:
        """As ever, but for the pipe."""
        with open(self.directory / "said", "wb") as errors:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        self.actions: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                at = time.monotonic_ns()
                if b'"when"' in line:  # an action of a rule, not of a person
                    self.actions.put((at, orjson.loads(line)))


def run(options: Options) -> Result:
    """One program at a time that misbehaves, is restarted by its rule, and misbehaves again."""
    result = Result("react", "the kernel acts, to our record of the action")
    count = 5 if options.quick else 20
    for number in range(options.number(5, 1)):
        for case in CASES[number % 3 :] + CASES[: number % 3]:
            print(f"  react: {case.name}, round {number + 1}", flush=True)
            try:
                with running(Reacting, _make(case)) as session:
                    _measure(session, case, number, count, result)
            except (RunError, OSError) as error:
                result.remarks.append(f"{case.name}: failed: {error}")
    limit = Target("OOM kill to action record", result.median("nsupervisor", CASES[0].name, UNIT), 5, "ms")
    result.targets.append(limit)
    result.remarks.append("levels are sampled every 250 ms, because the kernel does not tell of them")
    result.remarks.append("no product here reacts to what a cgroup counts, so there is nobody to compare with")
    return result


def _make(case: Case) -> Make:
    rule = f'resources = {{ {case.limit} }}\n[[workload.w0.policy]]\nwhen = "{case.when}"\naction = "restart"\n'

    def make(_: Path, reports: Reports) -> list[Service]:
        return [Service("w0", (program("eater"), reports.path, "w0", *case.eat), extra=rule)]

    return make


def _measure(session: Session, case: Case, number: int, count: int, result: Result) -> None:
    session.up(1, 30)
    path, key = hierarchy.counter(session.pids()["w0"], case.file)
    out = session.peer.directory / "watched"
    actions: list[tuple[int, dict[str, Any]]] = []
    starts = []
    with (
        open(out, "wb") as stream,
        subprocess.Popen([program("watch"), path, *filter(None, [key])], stdout=stream) as watch,
    ):
        try:
            assert isinstance(session.peer, Reacting)
            while len(actions) < count + 1:
                actions.append(session.peer.actions.get(timeout=20))
                lines = session.reports.take(1, 20)
                if not lines:
                    raise RunError(f"no restart within 20 s{session.said()}")
                starts.append(int(lines[0][0]))
        except queue.Empty:
            raise RunError(f"no action within 20 s{session.said()}") from None
        finally:
            watch.kill()
    changes = list(_changes(out, case.threshold))
    for (at, _), again in list(zip(actions, starts, strict=True))[1:]:  # the first may have been before the watch
        before, after = max((change for change in changes if change[0] < at), default=(0, 0))
        if not before:
            raise RunError("an action before anything had changed")
        result.add("nsupervisor", case.name, UNIT, number, [(at - before) / 1e6])
        result.add("nsupervisor", case.name, UNSURE, number, [(after - before) / 1e6])
        result.add("nsupervisor", case.name, AGAIN, number, [(again - before) / 1e6])


def _changes(path: Path, threshold: int) -> Iterator[tuple[int, int]]:
    """Between which moments it was: a counter's every step, a level's first value from the threshold on."""
    last = 0
    for line in path.read_text().splitlines()[1:]:
        before, after, value = map(int, line.split())
        if last < threshold <= value or not threshold:
            yield before, after
        last = value
