"""Run one product with its services for the duration of a `with` block, and end all of its processes afterwards."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs

from benchmarks import processes
from benchmarks.figures import Result
from benchmarks.peer import Peer, Service
from benchmarks.products import missing, program, version
from benchmarks.reports import Reports

STOP_TIMEOUT = 120.0
"""The time limit of an orderly stop, in seconds."""


class RunError(Exception):
    """The product failed; the text includes its output."""


@attrs.frozen
class Options:
    """The options of the command line. `rounds` None: the default of each benchmark."""

    rounds: int | None = None
    quick: bool = False
    peers: list[str] | None = None
    sizes: list[int] | None = None

    def number(self, usual: int, quick: int) -> int:
        """Return the number of rounds."""
        return self.rounds or (quick if self.quick else usual)


@attrs.define
class Session:
    """A running product with its services."""

    peer: Peer
    reports: Reports
    started_at: int
    """The time just before its start, in ns of CLOCK_MONOTONIC."""
    stopped: bool = False
    alone: bool = True
    """No other product runs meanwhile, so each process below this one belongs to it, whatever its parent is."""

    def up(self, count: int, timeout: float = 150) -> list[list[str]]:
        """Wait for the first report of `count` services. Raises RunError."""
        lines: list[list[str]] = []
        end = time.monotonic() + timeout
        while len(lines) < count and time.monotonic() < end:
            lines += self.reports.take(count - len(lines), min(1.0, end - time.monotonic()))
            if self.peer.process is not None and self.peer.process.poll():
                raise RunError(f"it ended with exit status {self.peer.process.returncode}{self.said()}")
        if len(lines) < count:
            raise RunError(f"only {len(lines)} of {count} services started within {timeout:g} s{self.said()}")
        return lines

    def said(self) -> str:
        """Return the last output of the product, for an error message."""
        path = self.peer.directory / "said"
        text = path.read_text(errors="replace")[-600:].strip() if path.exists() else ""
        return f"; it said: {text}" if text else ""

    def pids(self) -> dict[str, int]:
        """Return the pids of the services by name, as seen on the host; inside a PID namespace they are unknown."""
        found = processes.commands(processes.descendants(self.peer.pid))
        marks = {service.command: service.name for service in self.peer.services}
        return {marks[tuple(words)]: pid for pid, words in found.items() if tuple(words) in marks}

    def members(self) -> list[int]:
        """Return all processes of the product, including its services."""
        return processes.descendants(os.getpid() if self.alone else self.peer.pid)

    def overhead(self) -> list[int]:
        """Return all processes except the services."""
        return sorted({self.peer.pid, *self.members()} - set(self.pids().values()))

    def stop(self) -> float:
        """Stop the product in order; return the seconds until the last process was gone. Raises RunError."""
        self.stopped = True
        pids = {self.peer.pid, *self.members()}
        start = time.monotonic()
        self.peer.stop()
        left = processes.wait_gone(pids, STOP_TIMEOUT)
        took = time.monotonic() - start
        if left:
            raise RunError(f"{len(left)} processes were left after {STOP_TIMEOUT:g} s{self.said()}")
        return took


Make = Callable[[Path, Reports], Sequence[Service]]
"""A function from the run's directory and reports to the services."""


@contextmanager
def running(kind: type[Peer], make: Make) -> Iterator[Session]:
    """Write the configuration and start the product; after the block stop everything, even after an error."""
    with together([kind], make) as (session,):
        yield session


@contextmanager
def together(kinds: Sequence[type[Peer]], make: Make) -> Iterator[list[Session]]:
    """Several products at the same time, each with the same services and its own directory and reports.

    Only for products whose processes all descend from the one that was started: see `Session.alone`.
    """
    sessions: list[Session] = []
    bases: list[Path] = []
    try:
        for kind in kinds:
            bases.append(Path(tempfile.mkdtemp(prefix="nsb-")))
            bases[-1].chmod(0o755)
            own = bases[-1] / "p"
            own.mkdir()
            reports = Reports(bases[-1] / "fifo")
            peer = kind(own, list(make(bases[-1], reports)))
            sessions.append(Session(peer, reports, time.monotonic_ns(), alone=len(kinds) == 1))
            peer.write()
            sessions[-1].started_at = time.monotonic_ns()
            peer.start()
        yield sessions
    finally:
        try:
            pids = processes.descendants(os.getpid())
            live = [session for session in sessions if not session.stopped and session.peer.process is not None]
            for session in live:
                session.peer.stop()
            if live:
                processes.wait_gone(pids, 20)
        finally:
            processes.kill_descendants()
            for session in sessions:
                session.peer.clean()
                session.reports.close()
            for base in bases:
                shutil.rmtree(base, ignore_errors=True)


T = TypeVar("T")


def in_pairs(sides: Sequence[T], rounds: int) -> Iterator[tuple[int, Sequence[T]]]:
    """Yield the number of each round, and the sides in the order of measurement, which is reversed each time."""
    for number in range(rounds):
        yield number, sides if number % 2 == 0 else sides[::-1]


def idle(count: int) -> Make:
    """Return services that report their start and then do nothing."""

    def make(_: Path, reports: Reports) -> list[Service]:
        return [Service(f"w{i}", (program("pause"), reports.path, f"w{i}")) for i in range(count)]

    return make


def in_turn(
    kinds: dict[str, type[Peer]], rounds: int, result: Result, measure: Callable[[type[Peer], int], None]
) -> None:
    """Call `measure(kind, round)` for each product in each round; every round begins with another product.

    A product that is not installed, or fails, is said to be so in the result, and left out from then on.
    """
    out: dict[str, str] = {}
    for name, kind in kinds.items():
        if kind.product:
            out[name] = missing(kind.product)
    for name, why in out.items():
        if why:
            result.remarks.append(f"{name}: {why}")
    names = [name for name in kinds if not out.get(name)]
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)] if names else []:
            if out.get(name):
                continue
            print(f"  {result.name}: {name}, round {number + 1} of {rounds}", flush=True)
            try:
                measure(kinds[name], number)
            except (RunError, OSError) as error:
                out[name] = str(error)
                result.remarks.append(f"{name}: failed in round {number + 1}: {error}")
    for name in names:
        kind = kinds[name]
        result.remarks.append(f"{name} {version(kind.product) if kind.product else ''}: {kind.note}".replace(" :", ":"))
