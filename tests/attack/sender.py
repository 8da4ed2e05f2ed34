"""Connections that send packets to a listener and end as the packet says, from a pool of threads.

Blocking sockets in threads, because a non-blocking connect to a Unix socket fails at once when its queue is full
(EAGAIN, connect(2)), while a blocking one waits for its turn.
"""

import itertools
import re
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeAlias

from tests.attack.packets import Ending, Packet
from tests.timing import deadline

THREADS = 16
TIMEOUT = 60.0
"""Whole seconds after which a connection that the service must end, or a send that it must take or refuse, has failed.
Above each time limit of the service for a connection."""
HELD = 64
"""Connections that packets with `Ending.HOLD` keep open at once; the oldest is closed for the next."""
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_BIND_ADDRESS_NO_PORT = 24
"""IP_BIND_ADDRESS_NO_PORT (ip(7)), which Python 3.11 lacks: the port is chosen at connect, so each target has all."""
_LINGER_0 = struct.pack("ii", 1, 0)

Address: TypeAlias = str | tuple[str, int]
"""Of a Unix socket, or an IPv4 address and a port."""


class Listener:
    """Where to connect. name: "unix" or "tcp". sources: of TCP connections, addresses of 127.0.0.0/8 in turn, so that
    neither the ports of one run out nor one limit holds for all."""

    def __init__(self, name: str, address: Address, sources: int = 1) -> None:
        self.name = name
        self.address = address
        self._sources = itertools.cycle(f"127.1.0.{number}" for number in range(1, sources + 1))

    def connect(self) -> socket.socket:
        """A connected socket with a time limit. OSError."""
        unix = isinstance(self.address, str)
        connection = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        try:
            # The kernel's limit, not Python's: with that the socket is non-blocking, see above.
            limit = struct.pack("ll", int(deadline(TIMEOUT)), 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            if not unix:
                connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                connection.bind((next(self._sources), 0))
            connection.connect(self.address)
            connection.settimeout(deadline(TIMEOUT))
        except BaseException:
            connection.close()
            raise
        return connection


class Sender:
    """Sends packets and counts what came of them. All its connections are closed at the end of `sender`."""

    def __init__(self) -> None:
        self.sent = 0
        self.statuses: Counter[str] = Counter()
        """Of the first answer to a connection, where the packet waits for one: status codes, "closed", "reset"."""
        self.wrong: list[str] = []
        """Answers that must not be, each with its packet."""
        self._held: deque[socket.socket] = deque()
        self._lock = threading.Lock()

    def send(self, listener: Listener, packet: Packet) -> None:
        """Send one packet and end its connection. Refusals and resets by the service are as good as answers."""
        try:
            connection = listener.connect()
        except (ConnectionRefusedError, FileNotFoundError):
            self._count(listener, packet, "no listener")
            return
        status = "not read"
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # answered, or refused, before it was read
                for chunk in packet.chunks:
                    connection.sendall(chunk)
            if packet.ending is Ending.HOLD:
                self._hold(connection)
                return
            if packet.ending is Ending.HALF_CLOSE:
                status = self._half_close(connection)
            elif packet.ending is Ending.RESET and connection.family == socket.AF_INET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        except TimeoutError:
            status = "timeout"
        finally:
            if packet.ending is not Ending.HOLD:
                connection.close()
            self._count(listener, packet, status)

    def _half_close(self, connection: socket.socket) -> str:
        begin = b""
        try:
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(1 << 16):
                begin = begin or chunk
        except (ConnectionResetError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            return begin_status(begin, "reset")
        return begin_status(begin, "closed")

    def _hold(self, connection: socket.socket) -> None:
        with self._lock:
            self._held.append(connection)
            oldest = self._held.popleft() if len(self._held) > HELD else None
        if oldest:
            oldest.close()

    def _count(self, listener: Listener, packet: Packet, status: str) -> None:
        with self._lock:
            self.sent += 1
            self.statuses[status] += 1
            # 501 and 505 name what HTTP/1.1 lets a server leave out, 503 is the refusal of one connection too many.
            if status in ("timeout", "no listener") or (status[:1] == "5" and status not in ("501", "503", "505")):
                self.wrong.append(f"{listener.name}: {packet.name} ({packet.ending.value}): {status}")

    def close(self) -> None:
        """Close what is held."""
        while self._held:
            self._held.popleft().close()


def begin_status(begin: bytes, otherwise: str) -> str:
    """The status code at the beginning of what was received; "junk" where it is no HTTP answer."""
    if not begin:
        return otherwise
    found = _STATUS.match(begin)
    return found[1].decode() if found else "junk"


@contextmanager
def sender() -> Iterator[Sender]:
    """A sender without connections at the end."""
    it = Sender()
    try:
        yield it
    finally:
        it.close()


def in_threads(work: Callable[..., None], items: Iterable[tuple[object, ...]], stop: Callable[[], bool]) -> None:
    """`work(*item)` for each item, `THREADS` at a time, until `stop()`; what one raises is raised here."""
    items = iter(items)
    lock = threading.Lock()

    def loop() -> None:
        while not stop():
            with lock:
                item = next(items, None)
            if item is None:
                return
            work(*item)

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(loop) for _ in range(THREADS)]:
            future.result()


def flood(listener: Listener, count: int, first: bytes, ending: Ending, stop: Callable[[], bool]) -> Counter[str]:
    """`count` connections that each send `first`; how many the service accepted, reset, closed, or did not end.

    With CLOSE and RESET each ends at once; with HALF_CLOSE and HOLD all are open before the first one ends.
    """
    connections: list[socket.socket] = []
    outcome: Counter[str] = Counter()

    def connect() -> None:
        try:
            connection = listener.connect()
        except OSError as error:
            outcome[type(error).__name__] += 1
            return
        outcome["connected"] += 1
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(first)
        if ending in (Ending.CLOSE, Ending.RESET):
            end(connection)
        else:
            connections.append(connection)

    def end(connection: socket.socket) -> None:
        if ending is not Ending.CLOSE:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        connection.close()

    def half_close(connection: socket.socket) -> None:
        try:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        except TimeoutError:
            outcome["timeout"] += 1
        except OSError:  # refused and reset
            outcome["reset"] += 1

    try:
        in_threads(connect, itertools.repeat((), count), stop)
        if ending is Ending.HALF_CLOSE:
            in_threads(half_close, ((connection,) for connection in connections), stop)
    finally:
        for connection in connections:
            end(connection)
    return outcome
