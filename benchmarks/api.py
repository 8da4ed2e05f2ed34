"""The control API and the metrics of a service with some programs: requests a second, and how long one takes.

The latency is that of an open loop: a request is sent when it is due, whether or not the one before has been answered,
and its time counts from when it was due. Else a server that stops for a second would delay one request, not hundreds.
"""

import http.client
import socket
import statistics
import time
from pathlib import Path

import trio

from benchmarks import control, processes
from benchmarks.checkout import Checkout
from benchmarks.figures import Result, Target
from benchmarks.peer import Service
from benchmarks.peers.nsupervisor import Nsupervisor, taken_from
from benchmarks.session import Options, RunError, Session, idle, in_pairs, running, together

PROGRAMS = 50
RATE = 200
"""Requests a second of the open loop."""
STATUS, OPEN, METRICS = "status, one connection", f"status, {RATE} connections a second", "metrics, a connection each"
SPEED, CPU, MEDIAN, TAIL = "requests/s", "CPU ms a request", "ms", "ms, 99 %"
TIMEOUT_S = 30.0
SCRAPES = 5
REQUEST = b"GET /v1/status HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
"""As the command line sends it: HTTP/1.0, one connection each."""


class Serving(Nsupervisor, listed=False):
    """With metrics on a free port of the loopback interface."""

    name = "nsupervisor"

    def __init__(self, directory: Path, services: list[Service]) -> None:
        """Choose the port."""
        super().__init__(directory, services)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def settings(self) -> str:
        """The address of the metrics."""
        return f'metrics = "127.0.0.1:{self.port}"'


def run(options: Options) -> Result:
    """Some rounds, ours alone."""
    result = Result("api", f"the control API and the metrics, with {PROGRAMS} programs")
    rounds = options.number(5, 1)
    try:
        with running(Serving, idle(PROGRAMS)) as session:
            session.up(PROGRAMS)
            time.sleep(1)
            for number in range(rounds):
                print(f"  api: round {number + 1} of {rounds}", flush=True)
                _measure(session, number, *(100, 0.5) if options.quick else (1000, 5.0), result)
    except (RunError, OSError, http.client.HTTPException) as error:
        result.remarks.append(f"failed: {error}")
    tail = result.median("nsupervisor", OPEN, TAIL)
    result.targets.append(Target(f"{OPEN}, 99 %", tail, 50, "ms"))
    return result


def compare(options: Options, sides: list[Checkout]) -> Result:
    """Both run at the same time, and are asked by turns."""
    result = Result("api", f"the control API and the metrics, with {PROGRAMS} programs")
    rounds = options.number(15, 2)
    with together([taken_from(Serving, side) for side in sides], idle(PROGRAMS)) as sessions:
        for session in sessions:
            session.up(PROGRAMS)
        time.sleep(1)
        print(f"  api: {rounds} rounds", flush=True)
        for number, order in in_pairs(sessions, rounds):
            for session in order:
                _measure(session, number, *(100, 0.5) if options.quick else (300, 1.0), result)
    return result


def _measure(session: Session, number: int, requests: int, seconds: float, result: Result) -> None:
    """Each of the three once. Raises RunError, OSError and http.client.HTTPException."""
    peer = session.peer
    assert isinstance(peer, Serving)
    connection = control.UnixConnection(peer.socket)
    try:
        control.get(connection, "/v1/status")
        begin, before = time.monotonic(), processes.cpu_seconds([peer.pid])
        for _ in range(requests):
            control.get(connection, "/v1/status")
        used = processes.cpu_seconds([peer.pid]) - before
        result.add(peer.name, STATUS, SPEED, number, [requests / (time.monotonic() - begin)])
        result.add(peer.name, STATUS, CPU, number, [used / requests * 1000])
    finally:
        connection.close()
    before = processes.cpu_seconds([peer.pid])
    taken, problems = trio.run(_open_loop, peer.socket, round(RATE * seconds))
    used = processes.cpu_seconds([peer.pid]) - before
    if problems:  # a server that sheds load would look quick, and the round is no measurement of its latency
        text = f"{len(problems)} of {round(RATE * seconds)} requests failed: {problems[0]}"
        result.remarks.append(f"{peer.name}, {OPEN}, round {number + 1} left out: {text}")
        print(f"  api: {result.remarks[-1]}", flush=True)
    else:
        result.add(peer.name, OPEN, CPU, number, [used / len(taken) * 1000])
        result.add(peer.name, OPEN, MEDIAN, number, [statistics.median(taken)])
        result.add(peer.name, OPEN, TAIL, number, [sorted(taken)[round(0.99 * (len(taken) - 1))]])
    before = processes.cpu_seconds([peer.pid])
    for _ in range(SCRAPES):
        begin = time.monotonic()
        scrape = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=TIMEOUT_S)
        try:
            control.get(scrape, "/metrics")
        finally:
            scrape.close()
        result.add(peer.name, METRICS, MEDIAN, number, [(time.monotonic() - begin) * 1000])
    used = processes.cpu_seconds([peer.pid]) - before
    result.add(peer.name, METRICS, CPU, number, [used / SCRAPES * 1000])


def _connect(path: str) -> socket.socket:
    """Connect as the command line does: where the queue of connections is full, connect(2) waits for room. A socket
    that does not block gets EAGAIN instead (unix(7)), and trio takes that for a connection in progress."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(None)
        connected.connect(path)
    except BaseException:
        connected.close()
        raise
    connected.setblocking(False)
    return connected


async def _open_loop(path: str, count: int) -> tuple[list[float], list[str]]:
    """`count` requests at `RATE`: milliseconds from when each was due to the end of its answer, and the errors of those
    that failed. Raises RunError if one is neither answered nor refused in time."""
    taken: list[float] = []
    problems: list[str] = []
    limiter = trio.CapacityLimiter(count)
    start = trio.current_time() + 0.05

    async def ask(due: float) -> None:
        await trio.sleep_until(due)
        answer = bytearray()
        try:
            connected = await trio.to_thread.run_sync(_connect, path, limiter=limiter)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(connected)) as stream:
                await stream.send_all(REQUEST)
                async for piece in stream:
                    answer += piece
        except (OSError, trio.BrokenResourceError) as error:
            problems.append(repr(error))
            return
        if answer.split(b" ", 2)[1:2] != [b"200"] or not answer.rstrip().endswith(b"]"):
            problems.append(f"answered {bytes(answer[:100])!r}")
            return
        taken.append((trio.current_time() - due) * 1000)

    with trio.move_on_after(count / RATE + TIMEOUT_S) as scope:
        async with trio.open_nursery() as nursery:
            for i in range(count):
                nursery.start_soon(ask, start + i / RATE)
    if scope.cancelled_caught:
        missing = count - len(taken) - len(problems)
        raise RunError(f"{missing} of {count} requests were not answered within {TIMEOUT_S:g} s")
    return taken, problems
