"""What the event loop is held up by while output cannot be written: `python -m tests.logs.lag [SECONDS] [WRITERS]`.

In the service's own way (`Capture`, `open_journal`), WRITERS pipes are kept full of lines by a process beside us, while
the disk is full or read-only, or the collector is killed again and again, or stopped. A task looks at the clock every
five milliseconds; of how late it is, the kernel tells how long the thread was ready and had no processor
(/proc/thread-self/schedstat), which is the machine's affair. The rest is ours: what the thread did, and what it was
blocked by, such as a write or the interpreter's lock. Timings decide no test; `test_lag.py` shows without them that no
file is written by the loop.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from nsupervisor.logs import Capture, LogFile, OutputRoute, Pipe, Rotation, open_journal
from tests.logs.records import LABELS

TICK = 0.005
WRITER = """
import os, sys, time
ends = [int(word) for word in sys.argv[1:]]
lines = b"".join(b"%010d %s\\n" % (number, b"x" * 88) for number in range(100))
for end in ends:
    os.set_blocking(end, False)
while True:
    for end in ends:
        try:
            os.write(end, lines)
        except OSError:
            pass
    time.sleep(0.005)
"""


class Lag:
    """How late the loop was at each tick, and what of it the machine owes (ms)."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self.waited: list[float] = []
        self.worked: list[float] = []

    async def run(self) -> None:
        """Until cancelled."""
        schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        try:
            before, ready = time.perf_counter(), _ready(schedstat)
            worked = time.thread_time()
            while True:
                await trio.sleep(TICK)
                now, ready_now, worked_now = time.perf_counter(), _ready(schedstat), time.thread_time()
                self.late.append(max(now - before - TICK, 0) * 1e3)
                self.waited.append((ready_now - ready) * 1e3)
                self.worked.append((worked_now - worked) * 1e3)
                before, ready, worked = now, ready_now, worked_now
        finally:
            os.close(schedstat)

    def row(self) -> tuple[float, ...]:
        """Largest and 99th percentile of the lag, the largest without the machine's share, the largest work."""
        own = [max(late - waited, 0) for late, waited in zip(self.late, self.waited, strict=True)]
        return max(self.late), statistics.quantiles(self.late, n=100)[98], max(own), max(self.worked)


def _ready(schedstat: int) -> float:
    """Seconds that this thread has been ready to run and has waited for a processor."""
    return int(os.pread(schedstat, 100, 0).split()[1]) / 1e9


def full(directory: Path) -> None:
    """No byte is left."""
    with open(directory / "filler", "wb", buffering=0) as filler:
        for size in (1 << 20, 4096):
            try:
                while filler.write(b"x" * size) == size:
                    pass
            except OSError:
                pass


def read_only(directory: Path) -> None:
    """As after an error of the disk."""
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)


@contextmanager
def writers(count: int) -> Iterator[list[int]]:
    """The reading ends of pipes that a process keeps full."""
    pipes = [os.pipe() for _ in range(count)]
    ends = [end for _, end in pipes]
    process = subprocess.Popen([sys.executable, "-c", WRITER, *map(str, ends)], pass_fds=ends)
    for end in ends:
        os.close(end)
    for reader, _ in pipes:
        os.set_blocking(reader, False)
    try:
        yield [reader for reader, _ in pipes]
    finally:
        process.kill()
        process.wait()


async def measure(count: int, seconds: float, routes: list[OutputRoute], meanwhile=None) -> Lag:
    """Capture what the writers write, for a while."""
    lag = Lag()
    with writers(count) as readers:
        async with trio.open_nursery() as nursery:
            for reader, route in zip(readers, routes, strict=True):
                nursery.start_soon(Capture(Pipe(reader), route, LABELS, "stdout").run)
            await trio.sleep(0.5)
            if meanwhile is not None:
                nursery.start_soon(meanwhile)
            nursery.start_soon(lag.run)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()
    return lag


async def disk(directory: Path, breaks, block: bool, form: str, count: int, seconds: float) -> Lag:
    """Files on a disk that cannot be written to."""
    await trio.run_process(["mount", "-t", "tmpfs", "-o", "size=64m", "none", directory])
    try:
        breaks(directory)
        files = [LogFile(directory / f"{n}.log", Rotation(), records=form == "json") for n in range(count)]
        return await measure(
            count, seconds, [OutputRoute(file=file, is_raw=form == "raw", blocks=block) for file in files]
        )
    finally:
        await trio.run_process(["umount", "-l", directory])


async def collector(directory: Path, how: str, block: bool, count: int, seconds: float) -> Lag:
    """A collector that is killed every tenth of a second, or stopped."""
    pid = directory / "pid"
    command = ["sh", "-c", 'echo $$ >"$0"; exec cat >/dev/null', str(pid)]

    async def harm() -> None:
        while True:
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
                pid.unlink()
            except (OSError, ValueError):
                pass
            await trio.sleep(0.1)

    async with open_journal(command, flush_sec=0.1) as journal:
        try:
            return await measure(count, seconds, [OutputRoute(journal, blocks=block)] * count, harm)
        finally:
            for child in Path("/proc/thread-self/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


async def main(seconds: float, count: int) -> None:
    """One line a case."""
    print(f"{'case':34}{'lag ms, largest':>17}{'99 %':>8}{'largest without waits for a processor':>40}{'work':>8}")
    for block in (True, False):
        mode = "block" if block else "drop"
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            for breaks in (full, read_only):
                for form in ("json", "raw"):
                    lag = await disk(directory, breaks, block, form, count, seconds)
                    show(f"disk {breaks.__name__}, {form}, {mode}", lag)
            for how in ("killed", "stopped"):
                show(f"collector {how}, {mode}", await collector(directory, how, block, count, seconds))


def show(case: str, lag: Lag) -> None:
    """A row."""
    most, high, own, worked = lag.row()
    print(f"{case:34}{most:17.1f}{high:8.1f}{own:40.1f}{worked:8.1f}", flush=True)


if __name__ == "__main__":
    trio.run(main, *(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0, int(sys.argv[2]) if len(sys.argv) > 2 else 50))
