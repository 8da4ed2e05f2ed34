"""Measure the output of a program that writes lines of 100 bytes as fast as it can, captured to files on a tmpfs."""

import itertools
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks import control, processes
from benchmarks.checkout import Checkout
from benchmarks.figures import Result
from benchmarks.peer import LOG_FILES, LOG_SIZE, Peer, Service, load
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.products import program
from benchmarks.reports import Reports
from benchmarks.session import Options, RunError, Session, in_pairs, in_turn, running, together

CASES = {"a write a line": "lines", "64 KiB a write": "blocks"}
LINE = re.compile(rb"^\d{10} x{88}$")


def run(options: Options) -> Result:
    """Measure MB/s until the capture is idle again, CPU time except the writer's, and lost lines."""
    result = Result("logs", "output of one program through the capture")
    size, seconds = (20_000_000, 2.0) if options.quick else (400_000_000, 3.0)
    for case, mode in CASES.items():

        def measure(kind: type[Peer], number: int, case: str = case, mode: str = mode) -> None:
            _measure(kind, number, case, mode, size, seconds, result)

        in_turn(load(options.peers, "logs"), options.number(2, 1), result, measure)
    result.remarks = list(dict.fromkeys(result.remarks))
    return result


FORMATS = {
    "the stream of all": "",
    "raw file": f'log = {{ stdout = "file", format = "raw", max_size = {LOG_SIZE}, max_files = {LOG_FILES} }}\n',
    "JSON file": f'log = {{ stdout = "file", max_size = {LOG_SIZE}, max_files = {LOG_FILES} }}\n',
}


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Run both sides at the same time, each with a writer per case; one writer runs at a time."""
    result = Result("logs", "output of one program through the capture")
    rounds, seconds = options.number(9, 1), 0.3 if options.quick else 1.0
    logs: list[Path] = []
    writers = {f"w{i}": (how, format_) for i, (how, format_) in enumerate(itertools.product(CASES, FORMATS))}

    def make(base: Path, reports: Reports) -> list[Service]:
        logs.append(Path(tempfile.mkdtemp(prefix="nsb-", dir="/dev/shm")))
        logs[-1].chmod(0o755)
        services = []
        for name, (how, format_) in writers.items():
            words = (program("writer"), reports.path, name, str(base / f"gate-{name}"), CASES[how], "2000000000")
            extra = f"autostart = false\n{FORMATS[format_]}"
            services.append(Service(name, (*words, str(seconds)), logs[-1], extra=extra))
        return services

    try:
        with together([taken_from(Nsupervisor, side) for side in sides], make) as sessions:
            print(f"  logs: {rounds} rounds", flush=True)
            for session in sessions:
                control.wait_answer(session)
            for number, order in in_pairs(sessions, rounds):
                for name, (how, format_) in writers.items():
                    for session in order:
                        speed, cpu = _written(session, name, seconds)
                        result.add(session.peer.name, f"{how}, {format_}", "MB/s", number, [speed])
                        result.add(session.peer.name, f"{how}, {format_}", "CPU s/GB", number, [cpu])
    finally:
        for directory in logs:
            shutil.rmtree(directory, ignore_errors=True)
    return result


def _written(session: Session, name: str, seconds: float) -> tuple[float, float]:
    """Run a writer once; return MB/s, and CPU seconds per GB. Raises RunError."""
    peer = session.peer
    assert isinstance(peer, Nsupervisor)
    gate = peer.directory.parent / f"gate-{name}"
    gate.unlink(missing_ok=True)
    control.command(peer.socket, "start", name)
    session.up(1, 20)
    time.sleep(0.1)
    pids = session.overhead()
    cpu = processes.cpu_seconds(pids)
    gate.touch()
    done = session.reports.take(1, seconds + 60)
    if not done or done[0][2] != "done":
        raise RunError(f"the writer has not ended{session.said()}")
    end, written, elapsed = int(done[0][0]), int(done[0][3]), int(done[0][4])
    rest = _until_quiet(pids, end)
    used = processes.cpu_seconds(pids) - cpu
    control.command(peer.socket, "stop", name)
    logs = next(service.log for service in peer.services if service.log)
    os.truncate(logs / "current", 0)  # the supervisor appends to it; it grows without limit, in memory
    return written / 1e6 / ((rest - end + elapsed) / 1e9), used / (written / 1e9)


def _measure(kind: type[Peer], number: int, case: str, mode: str, size: int, seconds: float, result: Result) -> None:
    logs = Path(tempfile.mkdtemp(prefix="nsb-", dir="/dev/shm"))
    logs.chmod(0o755)

    def make(base: Path, reports: Reports) -> list[Service]:
        command = (program("writer"), reports.path, "w0", str(base / "gate"), mode, str(size), str(seconds))
        return [Service("w0", command, logs)]

    try:
        with running(kind, make) as session:
            session.up(1, 60)
            time.sleep(0.5)
            pids = session.overhead()
            cpu = processes.cpu_seconds(pids)
            (session.peer.directory.parent / "gate").touch()
            done = session.reports.take(1, seconds + 120)
            if not done or done[0][2] != "done":
                raise RunError(f"the writer has not ended{session.said()}")
            end, written, elapsed = int(done[0][0]), int(done[0][3]), int(done[0][4])
            rest = _until_quiet(pids, end)
            used = processes.cpu_seconds(pids) - cpu
            if kind.name != "systemd":
                session.stop()
                kept, lost = _kept(logs, written // 100)
                result.add(kind.name, case, "lines lost", number, [lost])
                result.add(kind.name, case, "MB kept", number, [kept / 1e6])
            result.add(kind.name, case, "MB/s", number, [written / 1e6 / ((rest - end + elapsed) / 1e9)])
            result.add(kind.name, case, "CPU s/GB", number, [used / (written / 1e9)])
    finally:
        shutil.rmtree(logs, ignore_errors=True)


def _until_quiet(pids: list[int], end: int) -> int:
    """Return when the capture had processed its input, from when on it uses almost no CPU (monotonic ns)."""
    quiet, cpu, at = end, processes.cpu_seconds(pids), time.monotonic()
    for _ in range(1200):
        time.sleep(0.1)
        cpu, before, at, start = processes.cpu_seconds(pids), cpu, time.monotonic(), at
        if cpu - before < 0.05 * (at - start):
            return quiet
        quiet = time.monotonic_ns()
    raise RunError("the capture has not come to rest within 120 s")


def _kept(directory: Path, count: int) -> tuple[int, int]:
    """Return the bytes of files, and how many lines up to number `count` are missing after the first one present.

    Rotation deletes the oldest lines, which is no loss; it may also cut a line in two, which counts as two halves.
    """
    size, halves, numbers = 0, 0, set()
    for file in directory.rglob("*"):
        if not file.is_file():
            continue
        size += file.stat().st_size
        with file.open("rb") as stream:
            for line in stream:
                text = _message(line.rstrip(b"\n"))
                if LINE.match(text):
                    numbers.add(int(text[:10]))
                elif text:
                    halves += 1
    if not numbers:
        return size, count
    # A half at the start of the oldest file has no partner, and is no loss.
    return size, max(0, count - min(numbers) - len(numbers) - halves // 2)


def _message(line: bytes) -> bytes:
    """Return the program's line: in nsupervisor's journal the message of a record, otherwise the line itself."""
    if not line.startswith(b"{"):
        return line
    record = orjson.loads(line)
    return record["message"].encode() if record["event"] == "output" else b""
