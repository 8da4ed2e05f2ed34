"""Packets and floods against both listeners of a service whose workloads log and whose status a client asks for.

What must hold: the service is the same process, a client always gets its answer, no line of a workload is lost, no
log and no output has a traceback, and once the connections have gone, memory and descriptors are as before.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from nsupervisor.api.client import Client, ClientError
from tests.attack.packets import Ending, Packet, packets, request
from tests.attack.sender import Listener, Sender, flood, in_threads, sender
from tests.chaos import observe
from tests.chaos.service import BrokenError, Site, demand, until
from tests.metrics.scraping import free_port
from tests.needs import ROOT
from tests.timing import deadline

COUNT = """import signal, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
number = 0
while not stopped:
    number += 1
    print('count', number, flush=True)
    time.sleep({pause})
print('total', number, flush=True)"""
WORKLOAD = """
[workload.{name}]
command = ["{python}", "-S", "-c", '''{script}''']
"""
OWN_FILE = 'log = {{ stdout = "file", max_size = "64K", max_files = 100 }}\n'
MEMORY_MARGIN = 16 << 20
"""Bytes by which the resident memory may be larger than before: what the allocator keeps between blocks in use. One
leaked connection weighs about 10 KB, so a leak of all of 5,000 is three times as much."""
POLL_TIMEOUT = 20.0
"""Seconds after which a status that has not come counts as never coming."""
POLL_INTERVAL = 0.05
REFUSED = "connections here already"
"""In the refusal of one connection too many."""
RECENT = 40
"""Packets that a failure names: those sent last."""
SOURCES = 16


class Attack:
    """A service under attack. packets, connections: how many packets in all, and connections in each flood."""

    def __init__(self, seed: int, packets: int, connections: int, workloads: int = 50, pause: float = 0.1) -> None:
        self.seed = seed
        self.packets = packets
        self.connections = connections
        self.names = [f"count{number}" for number in range(workloads)]
        # Every fifth one has its own file.
        self.with_file = self.names[::5]
        script = COUNT.format(pause=pause)
        texts = [
            WORKLOAD.format(name=name, python=sys.executable, script=script)
            + (OWN_FILE.format() if name in self.with_file else "")
            for name in self.names
        ]
        self.site = Site("\n".join(texts))
        self.stream, self.logs = self.site.directory / "records", self.site.directory / "logs"
        self.port = free_port()
        keys = f'log_output = "{self.stream}"\nlog_directory = "{self.logs}"\nmetrics = "127.0.0.1:{self.port}"'
        self.site.config.write_text(self.site.config.read_text().replace('log_output = "stdout"', keys))
        self.stderr = self.site.directory / "stderr"
        self.unix = Listener("unix", str(self.site.runtime / "api.sock"))
        self.tcp = Listener("tcp", ("127.0.0.1", self.port), SOURCES)
        self.process: subprocess.Popen[bytes] | None = None
        self.statuses: Counter[str] = Counter()
        self.floods: Counter[str] = Counter()
        self.polls: Counter[str] = Counter()
        self.memory: tuple[int, int] = 0, 0
        self.descriptors: tuple[int, int] = 0, 0
        self._recent: list[str] = []
        self._wrong: list[str] = []
        self._unix_is_full = threading.Event()
        self._idle_sockets = 0
        self._over = threading.Event()

    def run(self) -> str:
        """Attack; a line about what was seen. Raises BrokenError when something does not hold."""
        try:
            self._start()
            pollers = [
                threading.Thread(target=poll) for poll in (self._poll_one_connection, self._poll_new_connections)
            ]
            for poller in pollers:
                poller.start()
            try:
                until("the client with one connection is served", lambda: self.polls["one connection"], 60)
                self._idle_sockets = self._descriptors("socket")
                self._warm_up()
                self._wait_for_rest("socket", self._idle_sockets)
                memory, descriptors = resident(self.process_pid), min(self._descriptors() for _ in range(20))
                self._attack()
                descriptors_after = self._wait_for_rest("", descriptors)
            finally:
                self._over.set()
                for poller in pollers:
                    poller.join()
            self.memory, self.descriptors = (memory, resident(self.process_pid)), (descriptors, descriptors_after)
            demand(self._wrong)
            grown = self.memory[1] - memory
            demand([f"memory: {grown >> 10} KB more than before"] if grown > MEMORY_MARGIN else [])
            pid = self._client.info()["pid"]
            demand([] if pid == self.process_pid else [f"another supervisor, {pid}, answers"])
            lines = self._end()
            return self._summary(lines)
        except (ClientError, BrokenError) as error:
            raise BrokenError(f"{error}\n{self._circumstances()}") from error
        finally:
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.site.sweep()
            self.site.remove()

    # ---- the service

    @property
    def _client(self) -> Client:
        return Client(str(self.unix.address))

    @property
    def process_pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def _start(self) -> None:
        command = [sys.executable, "-m", "nsupervisor", "run", str(self.site.config)]
        # malloc(3) keeps what threads have freed in one arena for each of the threads that ran at once, so that the
        # resident memory depended on how busy the host was. With one arena a leak shows, and nothing else does.
        environment = {**os.environ, observe.MARK: self.site.mark, "MALLOC_ARENA_MAX": "1"}
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stderr, stderr=stderr)
        until("all workloads run", self._all_run, 120)

    def _all_run(self) -> bool:
        demand(["the supervisor ended"] if self._dead() else [])
        try:
            return {one["state"] for one in self._client.status()} == {"running"}
        except ClientError:  # not up yet
            return False

    def _dead(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def _broken(self) -> bool:
        """Whether going on makes no sense."""
        return self._dead() or bool(self._wrong)

    def _circumstances(self) -> str:
        assert self.process is not None
        try:  # one that is ending may need a moment
            status: int | str = self.process.wait(2)
        except subprocess.TimeoutExpired:
            status = "none, it lives"
        recent = "\n  ".join(self._recent[-RECENT:])
        said = self.stderr.read_text()[-3000:]
        return f"exit status of the supervisor: {status}; the last packets:\n  {recent}\nstandard error:\n{said}"

    # ---- the clients that must get their answers

    def _poll_one_connection(self) -> None:
        """Ask again and again over one connection: whatever others do, it gets its answers."""
        connection = socket.socket(socket.AF_UNIX)
        with connection:
            connection.settimeout(deadline(POLL_TIMEOUT))
            connection.connect(str(self.unix.address))
            with connection.makefile("rb") as answers:
                while not self._over.wait(POLL_INTERVAL) and not self._broken():
                    try:
                        connection.sendall(request())
                        status, body = read_answer(answers)
                        demand(
                            [] if status == 200 and len(json.loads(body)) == len(self.names) else [f"status {status}"]
                        )
                        self.polls["one connection"] += 1
                    except (OSError, ValueError, BrokenError) as error:
                        self._wrong.append(f"a client with one connection: {type(error).__name__}: {error}")

    def _poll_new_connections(self) -> None:
        """Ask again and again as the command line does. A refusal is an answer while this user has too many."""
        while not self._over.wait(POLL_INTERVAL) and not self._broken():
            full = self._unix_is_full.is_set()
            try:
                found = self._client.status()
                demand([] if len(found) == len(self.names) else [f"{len(found)} workloads"])
                self.polls["new connections"] += 1
            except (ClientError, BrokenError) as error:
                if (full or self._unix_is_full.is_set()) and REFUSED in str(error):
                    self.polls["refused"] += 1
                else:
                    self._wrong.append(f"a client with new connections: {type(error).__name__}: {error}")

    # ---- the attack

    def _warm_up(self) -> None:
        """Load and allocate what stays for good, by a smaller attack of each kind: only a leak grows later."""
        self._attack_with(self.seed - 1, min(self.packets, 500), min(self.connections, 1000))
        self.statuses.clear()
        self.floods.clear()
        self.polls.clear()

    def _attack(self) -> None:
        self._attack_with(self.seed, self.packets, self.connections)

    def _attack_with(self, seed: int, packets: int, connections: int) -> None:
        self._send(seed, packets)
        for listener in (self.unix, self.tcp):
            for ending in Ending:
                self._flood(listener, connections, b"", ending)
            self._flood(listener, connections, b"GET /metrics HT", Ending.HOLD)
            self._flood(listener, connections, request(b"/metrics", host=self._host), Ending.HOLD)

    @property
    def _host(self) -> bytes:
        return b"127.0.0.1:%d" % self.port

    def _send(self, seed: int, count: int) -> None:
        with sender() as sending:
            in_threads(lambda *item: self._send_one(sending, *item), self._items(seed, count), self._broken)
            self.statuses += sending.statuses
            self._wrong += sending.wrong
        demand(["the supervisor ended"] if self._dead() else self._wrong)

    def _items(self, seed: int, count: int) -> Iterator[tuple[Listener, Packet]]:
        """Each packet to the Unix socket and to TCP, in turn."""
        to_unix, to_tcp = packets(seed), packets(seed, self._host)
        for for_unix, for_tcp in islice(zip(to_unix, to_tcp, strict=True), (count + 1) // 2):
            yield self.unix, for_unix
            yield self.tcp, for_tcp

    def _send_one(self, sending: Sender, listener: Listener, packet: Packet) -> None:
        self._recent.append(f"{listener.name}: {packet.name} ({packet.ending.value})")
        if len(self._recent) > 10 * RECENT:
            del self._recent[:-RECENT]
        sending.send(listener, packet)
        if sending.wrong:
            self._wrong += sending.wrong

    def _flood(self, listener: Listener, count: int, first: bytes, ending: Ending) -> None:
        self._recent.append(f"{listener.name}: {count} connections that send {first[:20]!r} ({ending.value})")
        if listener is self.unix:
            self._unix_is_full.set()
        outcome = flood(listener, count, first, ending, self._broken)
        if outcome["timeout"]:
            self._wrong.append(f"{outcome['timeout']} connections of {self._recent[-1]} were not closed")
        self.floods += outcome
        demand(["the supervisor ended"] if self._dead() else self._wrong)
        if listener is self.unix:
            # All of them, not only one: the next client would find this user's connections at their limit again.
            self._wait_for_rest("socket", self._idle_sockets)
            demand([] if self._client.status() else ["no status"])
            self._unix_is_full.clear()

    def _descriptors(self, kind: str = "") -> int:
        """Open files of the supervisor of one kind, or all of them but those of cgroups and pipes: the pool of pipes
        through which threads copy output grows up to the number of these threads."""
        kinds = observe.descriptors(self.process_pid)
        return sum(count for name, count in kinds.items() if (name == kind if kind else name != "pipe"))

    def _wait_for_rest(self, kind: str, before: int) -> int:
        """Wait until no more descriptors are open than before; how many. The two clients go on: a connection of theirs,
        or a file that is read for them, may be open at any moment, but is not always."""
        found = before

        def at_rest() -> bool:
            nonlocal found
            found = self._descriptors(kind)
            return found <= before

        try:
            until("all connections have gone", at_rest, 60)
        except BrokenError as error:
            kinds = observe.descriptors(self.process_pid)
            raise BrokenError(f"{error}; {before} descriptors {kind} were open before; now {kinds}") from None
        return found

    # ---- what must hold in the end

    def _end(self) -> int:
        """End the service in order; how many lines the workloads have written, all of which are recorded."""
        assert self.process is not None
        self.process.terminate()
        if status := self.process.wait(deadline(60)):
            raise BrokenError(f"exit status {status}")
        self.site.demand_nothing_left()
        if text := self.stderr.read_text():
            raise BrokenError(f"standard error says:\n{text[-3000:]}")
        texts = [self.stream.read_text(), *(path.read_text() for path in sorted(self.logs.iterdir()))]
        demand(
            [f"a traceback in a log:\n{text[text.find('Traceback') :][:2000]}" for text in texts if "Traceback" in text]
        )
        records: list[dict[str, Any]] = [json.loads(line) for text in texts for line in text.splitlines()]
        numbers: dict[str, list[int]] = defaultdict(list)
        totals: dict[str, int] = {}
        for record in records:
            kind, _, number = record.get("message", "").partition(" ")
            if record["event"] == "output" and kind == "count":
                numbers[record["workload"]].append(int(number))
            elif record["event"] == "output" and kind == "total":
                totals[record["workload"]] = int(number)
        demand(lost(self.names, numbers, totals))
        return sum(totals.values())

    def _summary(self, lines: int) -> str:
        return (
            f"{self.packets} packets ({_counts(self.statuses)}), floods of {self.connections} connections "
            f"({_counts(self.floods)}); {lines} lines of {len(self.names)} workloads, none lost; "
            f"answers to clients: {_counts(self.polls)}; resident memory {self.memory[0] >> 10} KB before, "
            f"{self.memory[1] >> 10} KB after; descriptors {self.descriptors[0]} before, {self.descriptors[1]} after"
        )


def lost(names: list[str], numbers: dict[str, list[int]], totals: dict[str, int]) -> list[str]:
    """What is missing, or there twice, of the numbers from 1 to the total of each workload."""
    wrong = [f"{name}: its last line is missing" for name in names if name not in totals]
    for name, total in totals.items():
        if sorted(numbers[name]) != list(range(1, total + 1)):
            absent = sorted(set(range(1, total + 1)) - set(numbers[name]))
            wrong.append(f"{name}: {len(numbers[name])} lines, not {total}; missing: {absent[:10]}")
    return wrong


def resident(pid: int) -> int:
    """Bytes of resident memory (VmRSS, proc_pid_status(5))."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


def read_answer(answers: Any) -> tuple[int, bytes]:
    """Status and body of the next answer with a Content-Length on a connection. OSError when the connection ends."""
    line = answers.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the service closed the connection")
    status, length = int(line.split()[1]), 0
    while (header := answers.readline().strip()) != b"":
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, answers.read(length)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counter.items()))
