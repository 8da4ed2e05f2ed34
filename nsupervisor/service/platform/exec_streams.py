"""The input and output of a command that is executed in a workload: pipes, or a terminal."""

from __future__ import annotations

import os
import stat
import termios
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

PIECE_SIZE = 64 << 10
"""Bytes read at a time."""
_END_OF_FILE = b"\x04"
"""VEOF of a new terminal, termios(3)."""


class ExecStreams(Protocol):
    """Both ends of the input and output of a command."""

    @property
    def child_fds(self) -> tuple[int, ...]:
        """The descriptors of its standard input, output and error."""
        ...

    @property
    def outputs(self) -> int:
        """The number of output streams: 2, or 1 for a terminal."""
        ...

    @property
    def output_fds(self) -> tuple[int, ...]:
        """The descriptors to read its output, which stay this object's own."""
        ...

    def close_child_ends(self) -> None:
        """Close the child's ends, when the keeper has them."""
        ...

    async def write(self, data: bytes) -> bool:
        """Write to its standard input; return False if nothing reads that."""
        ...

    async def end_input(self) -> None:
        """End its standard input."""
        ...

    async def read(self, number: int) -> bytes:
        """Return the next output of a stream, 0 or 1; b"" at its end."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the terminal, if it is one."""
        ...

    def close(self) -> None:
        """Close all ends. A terminal sends SIGHUP to its processes."""
        ...


class PipeStreams:
    """Pipes. Without input the standard input is the null device."""

    def __init__(self, has_input: bool, owner: tuple[int, int] | None) -> None:
        """Open them. Raises OSError.

        `owner`: the (uid, gid) of the command on the host, so that it may open /dev/stdout; None: those of the service.
        """
        opened: list[int] = []
        try:
            if has_input:
                opened += os.pipe()
            else:
                opened += (os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1)
            for _ in range(2):
                opened += os.pipe()
            for fd in opened:
                if fd >= 0:
                    _give_to(fd, owner)
        except OSError:
            _close(opened)
            raise
        self._child_fds: tuple[int, ...] = (opened[0], opened[3], opened[5])
        self._input = None if opened[1] < 0 else trio.lowlevel.FdStream(opened[1])
        self._outputs: tuple[trio.lowlevel.FdStream, ...] = tuple(map(trio.lowlevel.FdStream, (opened[2], opened[4])))

    @property
    def child_fds(self) -> tuple[int, ...]:
        return self._child_fds

    @property
    def outputs(self) -> int:
        return len(self._outputs)

    @property
    def output_fds(self) -> tuple[int, ...]:
        return tuple(stream.fileno() for stream in self._outputs)

    def close_child_ends(self) -> None:
        _close(self._child_fds)
        self._child_fds = ()

    async def write(self, data: bytes) -> bool:
        if self._input is None:
            await trio.lowlevel.checkpoint()
            return False
        try:
            await self._input.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def end_input(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._input is not None:
            self._input.close()

    async def read(self, number: int) -> bytes:
        try:
            return bytes(await self._outputs[number].receive_some(PIECE_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def resize(self, rows: int, columns: int) -> None:
        """Nothing: there is no terminal."""

    def close(self) -> None:
        self.close_child_ends()
        for stream in self._outputs if self._input is None else (self._input, *self._outputs):
            stream.close()


class TerminalStreams:
    """A new pseudo-terminal, pty(7). The service has the master end, and reads what the command writes."""

    def __init__(self, size: tuple[int, int], has_input: bool, owner: tuple[int, int] | None) -> None:
        """Open it, with `size` rows and columns. `owner` as for `PipeStreams`. Raises OSError."""
        master, slave = os.openpty()
        try:
            termios.tcsetwinsize(slave, size)
            if owner is not None:
                _give_to(slave, (owner[0], -1))
        except (OSError, termios.error):
            _close((master, slave))
            raise
        self._slave = slave
        self._has_input = has_input
        self._master = trio.lowlevel.FdStream(master)

    @property
    def child_fds(self) -> tuple[int, ...]:
        return (self._slave,) * 3

    @property
    def outputs(self) -> int:
        return 1

    @property
    def output_fds(self) -> tuple[int, ...]:
        return (self._master.fileno(),)

    def close_child_ends(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    async def write(self, data: bytes) -> bool:
        if not self._has_input:
            await trio.lowlevel.checkpoint()
            return False
        try:
            await self._master.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def end_input(self) -> None:
        await self.write(_END_OF_FILE)

    async def read(self, number: int) -> bytes:
        try:
            return bytes(await self._master.receive_some(PIECE_SIZE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):  # EIO: no process has the other end, pty(7)
            return b""

    def resize(self, rows: int, columns: int) -> None:
        fd = self._master.fileno()
        if fd >= 0:
            termios.tcsetwinsize(fd, (rows, columns))

    def close(self) -> None:
        self.close_child_ends()
        self._master.close()


class OutputStreams(PipeStreams):
    """The output of a command that an earlier supervisor has begun."""

    def __init__(self, fds: Sequence[int]) -> None:
        """Own the descriptors, the ends to read; without any, there is no output."""
        self._child_fds = ()
        self._input = None
        self._outputs = tuple(trio.lowlevel.FdStream(fd) for fd in fds)


OpenExecStreams = Callable[[bool, tuple[int, int] | None, tuple[int, int] | None], ExecStreams]
"""Opens the streams: whether there is input, the size of the terminal or None, and the command's (uid, gid) or None."""


def open_exec_streams(has_input: bool, terminal: tuple[int, int] | None, owner: tuple[int, int] | None) -> ExecStreams:
    """Open the streams of a command. Raises OSError."""
    return PipeStreams(has_input, owner) if terminal is None else TerminalStreams(terminal, has_input, owner)


AdoptExecOutputs = Callable[[Sequence[int]], ExecStreams]
"""Makes streams of the ends to read the output of a command, which it owns from then on."""


def _give_to(fd: int, owner: tuple[int, int] | None) -> None:
    """Make `owner` the owner of a pipe or terminal; other files stay."""
    if owner is None or (stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd)):
        return
    try:
        os.fchown(fd, *owner)
    except PermissionError:  # without CAP_CHOWN
        pass


def _close(fds: tuple[int, ...] | list[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
