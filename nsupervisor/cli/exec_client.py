"""The client's side of `nsupervisor exec`: this terminal or these pipes on one side, frames on the other.

Standard library only. One loop waits for standard input, the connection and signals. It reads standard input only when
the service has taken what was read before.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import termios
import tty

from nsupervisor.api import exec_frames as frames
from nsupervisor.api.client import Client, NoSupervisorError
from nsupervisor.cli.output import FAILED, print_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
"""Signals to this process that the command gets. A terminal in raw mode sends none."""
_PIECE = frames.MAX_CONTENT
_MAX_UNSENT = 4 * _PIECE
"""Bytes that wait for the connection, from which standard input is not read."""


def execute(client: Client, name: str, command: dict[str, Any], is_terminal: bool) -> int:
    """Execute a command in an instance on the standard streams; return the exit status. Raises ClientError.

    `command`: an object `Exec` of `nsupervisor schema api`. `is_terminal`: it runs on a terminal. If standard input is
    one, it is in raw mode meanwhile.
    """
    size_of = next((fd for fd in (0, 1, 2) if os.isatty(fd)), -1) if is_terminal else -1
    if is_terminal:
        command = {**command, "terminal": list(_size(size_of))}
    connection, first = client.exec(name, command)
    with connection, _Signals() as signals, _RawMode(command["input"] and is_terminal):
        end = _Session(connection, signals, command["input"], size_of).run(first)
    if end is None:
        text = (
            f"the supervisor on {client.socket_path} ended before the command did, which ends with it; see its output"
        )
        raise NoSupervisorError(text)
    if end["failure"]:
        print_message(f"{name}: {end['failure']}")
    if end["signal"] is not None:
        return 128 + _number(end["signal"])
    return FAILED if end["code"] is None else int(end["code"])


def _number(name: str) -> int:
    try:
        return signal.Signals[name].value
    except KeyError:  # a real-time signal without a name, "SIG40"
        return int(name.removeprefix("SIG"))


def _size(fd: int) -> tuple[int, int]:
    try:
        return termios.tcgetwinsize(fd)
    except (termios.error, OSError, ValueError):
        return 24, 80


class _RawMode:
    """Puts the terminal on standard input into raw mode while the block runs."""

    def __init__(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted and os.isatty(0)
        self._before: list[Any] = []

    def __enter__(self) -> None:
        if self._is_wanted:
            self._before = termios.tcgetattr(0)
            tty.setraw(0)

    def __exit__(self, *_: object) -> None:
        if self._before:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)


class _Signals:
    """Makes signals readable from a descriptor while the block runs: signal.set_wakeup_fd()."""

    def __enter__(self) -> _Signals:
        self.fd, self._writer = os.pipe()
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        numbers = [n for n in (*_FORWARDED, signal.SIGWINCH) if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.fd)
        os.close(self._writer)

    def read(self) -> Iterator[int]:
        """Yield the signals that have come."""
        try:
            yield from os.read(self.fd, 4096)
        except BlockingIOError:
            pass


class _Session:
    """One command, from the switch of the protocol to its end."""

    def __init__(self, connection: socket.socket, signals: _Signals, has_input: bool, size_of: int) -> None:
        self._connection = connection
        self._signals = signals
        self._reads_input = has_input
        self._size_of = size_of
        self._unsent = bytearray()
        self._unpacker = frames.Unpacker()
        self._can_poll_input = True
        self._forwarded = 0

    def run(self, first: bytes) -> dict[str, Any] | None:
        """Return the object of the frame `EXIT`; None if the connection has ended before it."""
        connection = self._connection
        connection.setblocking(False)
        if (end := self._handle(first)) is not None:
            return end
        while True:
            poll = select.poll()
            poll.register(self._signals.fd, select.POLLIN)
            poll.register(connection, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            if self._reads_input and len(self._unsent) < _MAX_UNSENT:
                poll.register(0, select.POLLIN)
            for fd, _ in poll.poll():
                if fd == 0:
                    self._read_input()
                elif fd == self._signals.fd:
                    for number in self._signals.read():
                        self._on_signal(number)
            self._send()
            try:
                data = connection.recv(2 * _PIECE)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                return None
            if not data:
                return None
            if (end := self._handle(data)) is not None:
                return end

    def _handle(self, data: bytes) -> dict[str, Any] | None:
        for kind, content in self._unpacker.feed(data):
            if kind == frames.EXIT:
                end: dict[str, Any] = json.loads(content)
                return end
            _write(2 if kind == frames.STDERR else 1, content)
        return None

    def _read_input(self) -> None:
        try:
            data = os.read(0, _PIECE)
        except OSError as error:  # EIO: the terminal is gone, or belongs to another process group
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return
            data = b""
        self._unsent += frames.pack(frames.STDIN, data)
        if not data:
            self._reads_input = False

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._size_of >= 0:
                self._unsent += frames.pack(frames.RESIZE, frames.SIZE.pack(*_size(self._size_of)))
            return
        self._forwarded += 1
        if self._forwarded > 1 and number in (signal.SIGINT, signal.SIGQUIT):  # the command does not end by it
            raise KeyboardInterrupt
        self._unsent += frames.pack(frames.SIGNAL, bytes([number]))

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):  # what it has sent before is read
            self._unsent.clear()
            self._reads_input = False


def _write(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises BrokenPipeError and OSError, as output does elsewhere."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # another process has set that on the terminal
            select.select((), (fd,), ())


def check_terminal() -> str:
    """Return why standard input cannot be the terminal of a command; "" if it can."""
    return "" if os.isatty(sys.stdin.fileno()) else "standard input is not a terminal; leave out -t, or -i"
