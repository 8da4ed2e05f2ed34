"""Find the line of a workload's output that says that it is ready, before the line leaves the pipe.

Race: the supervisor may be killed after a line has left its pipe, and before it is saved that the program is ready. The
next supervisor would wait for a line that does not come again. So a capture searches its output while that is in the
pipe, and after a match waits until the new state has been saved (`LineWatch.end`).
"""

from __future__ import annotations

from typing import Any, Protocol

import trio

MAX_LINE_BYTES = 16 << 10
"""Longer lines are searched in pieces of at least this size. Also what is searched between two checkpoints."""
MAX_SHOWN_BYTES = 256


class Pattern(Protocol):
    """A compiled pattern that takes linear time, and matches within one line."""

    def search(self, text: bytes, /) -> Any:
        """Return the first match, whose `start` says where it begins; None if there is none."""


class LineWatch:
    """Waits for a line in both streams of one generation; each stream has a `LineSearch`."""

    def __init__(self, generation: int, pattern: str, compiled: Pattern) -> None:
        self.generation = generation
        self.pattern = pattern
        self.is_over = False
        """Whether nothing needs to be searched any more."""
        self.line: str | None = None
        """The line that matches, or its beginning."""
        self._compiled = compiled
        self._found = trio.Event()
        self._ended = trio.Event()

    async def wait_found(self) -> str:
        """Wait for a line that matches, and return it."""
        await self._found.wait()
        assert self.line is not None
        return self.line

    async def wait_ended(self) -> None:
        """Wait until `end` is called."""
        await self._ended.wait()

    def end(self) -> None:
        """Let captures go on without a search: the readiness has been saved, or it does not matter any more."""
        self.is_over = True
        self._ended.set()

    def search(self, text: bytes) -> bool:
        """Search complete lines; return whether one matches."""
        if self.line is None and (match := self._compiled.search(text)) is not None:
            start = text.rfind(b"\n", 0, match.start()) + 1
            line = text[start:].split(b"\n", 1)[0]
            self.line = line[:MAX_SHOWN_BYTES].decode(errors="replace")
            self._found.set()
        return self.line is not None


class LineSearch:
    """Searches one stream, whatever pieces it arrives in. Memory: twice `MAX_LINE_BYTES`."""

    def __init__(self, watch: LineWatch, beginning: bytes = b"") -> None:
        """`beginning`: the beginning of a line that has left the pipe already."""
        self.watch = watch
        self._rest = beginning[-MAX_LINE_BYTES:]

    async def feed(self, data: bytes) -> bool:
        """Search the next bytes; return whether a line matches."""
        for start in range(0, len(data), MAX_LINE_BYTES):
            if start:
                await trio.lowlevel.checkpoint()
            if self._feed_piece(data[start : start + MAX_LINE_BYTES]):
                return True
        return self.watch.line is not None

    def _feed_piece(self, data: bytes) -> bool:
        lines, newline, rest = (self._rest + data).rpartition(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            lines, newline, rest = lines + newline + rest, b"\n", b""
        self._rest = rest
        # A carriage return before a newline is no part of the line, as in records.
        return bool(newline) and self.watch.search(lines.replace(b"\r\n", b"\n").removesuffix(b"\r"))
