"""One program that writes lines of 100 bytes as fast as it can, through each product's capture, to files on a tmpfs."""

import re
import shutil
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks import processes
from benchmarks.figures import Result
from benchmarks.peer import Peer, Service, load
from benchmarks.products import program
from benchmarks.reports import Reports
from benchmarks.session import Options, RunError, in_turn, running

CASES = {"a write a line": "lines", "64 KiB a write": "blocks"}
LINE = re.compile(rb"^\d{10} x{88}$")


def run(options: Options) -> Result:
    """MB/s from the first byte until the capture is at rest again; CPU time of all but the writer; lines lost."""
    result = Result("logs", "output of one program through the capture")
    size, seconds = (20_000_000, 2.0) if options.quick else (400_000_000, 3.0)
    for case, mode in CASES.items():

        def measure(kind: type[Peer], number: int, case: str = case, mode: str = mode) -> None:
            _measure(kind, number, case, mode, size, seconds, result)

        in_turn(load(options.peers, "logs"), options.number(2, 1), result, measure)
    result.remarks = list(dict.fromkeys(result.remarks))
    return result


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
    """When the capture had worked off what it had taken in: from then on it uses next to no CPU (monotonic ns)."""
    quiet, cpu, at = end, processes.cpu_seconds(pids), time.monotonic()
    for _ in range(1200):
        time.sleep(0.1)
        cpu, before, at, start = processes.cpu_seconds(pids), cpu, time.monotonic(), at
        if cpu - before < 0.05 * (at - start):
            return quiet
        quiet = time.monotonic_ns()
    raise RunError("the capture has not come to rest within 120 s")


def _kept(directory: Path, count: int) -> tuple[int, int]:
    """Bytes of files, and how many of the lines up to number `count` are missing behind the first that is there.

    Rotation throws the oldest away, which is no loss; it may also cut a line in two, which is counted as two halves.
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
    return size, max(0, count - min(numbers) - len(numbers) - halves // 2)  # the oldest half is behind nothing


def _message(line: bytes) -> bytes:
    """The program's line: in our journal it is a record's message, elsewhere it stands as it is."""
    if not line.startswith(b"{"):
        return line
    record = orjson.loads(line)
    return record["message"].encode() if record["event"] == "output" else b""
