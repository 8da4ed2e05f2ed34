"""Lines from the service to one reader, a client of the API, which may be slow or gone."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, Self, TypeVar

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.logs.record import JsonFormat, timestamp_now

MAX_BYTES_WAITING = 8 << 20
"""The default for the number of bytes that may wait for the reader."""
MAX_LINES_WAITING = 1 << 20
"""The default for the number of lines that may wait for the reader."""
MAX_PIECE_BYTES = 64 << 10
"""The default for the number of bytes that are handed out at a time. A longer line comes alone."""

NEW_LINE = b'{"event":"new"}\n'
"""The line between the lines up to now and new ones, for readers that ask for it."""

_FORMAT = JsonFormat()
_SLOW_READER = "the reader is too slow"
_Entry = TypeVar("_Entry")


def _ignore(_entry: object) -> None:
    pass


class LineStream(Generic[_Entry]):
    """An asynchronous iterator of bytes: whole lines, several at a time. For the trio thread; the writer never waits.

    At most `max_bytes` bytes in `max_lines` lines wait for the reader. If it is too slow, further lines are dropped
    until it has read all that waits; then it receives a record of the event "dropped" with their number.
    A writer whose lines are useless with a gap looks at `has_room` and ends the stream instead. Lines of `backlog` come
    first and do not count. When the context is left, the stream is closed and its lines are
    discarded.

    A line may come with an entry, the writer's object for it. `on_leave` is called with the entry of each line that is
    handed out or discarded.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES_WAITING,
        max_lines: int = MAX_LINES_WAITING,
        max_piece_bytes: int = MAX_PIECE_BYTES,
        backlog: Iterable[tuple[bytes, _Entry | None]] = (),
        on_leave: Callable[[_Entry], None] = _ignore,
    ) -> None:
        self._max_bytes, self._max_lines, self._max_piece_bytes = max_bytes, max_lines, max_piece_bytes
        self._on_leave = on_leave
        self._backlog: deque[tuple[bytes, _Entry | None]] = deque(backlog)
        self._lines: deque[tuple[bytes, _Entry | None]] = deque()
        self._bytes = 0
        """The size of `_lines`."""
        self._dropped = 0
        self._gap_reason = _SLOW_READER
        self._is_closed = False
        """Whether the stream ends when no line waits."""
        self._is_complete = False
        """Whether no line can be added any more."""
        self._changed = ConditionVariable()

    # ---- the writer

    def add(self, line: bytes, entry: _Entry | None = None) -> bool:
        """Append a line, which ends with a newline; return whether it waits now. It does not if it was dropped."""
        if self._is_complete:
            return False
        accepted = not self._dropped and self.has_room(len(line))  # after a gap comes first the line about it
        if accepted:
            self._append(line, entry)
        else:
            self._dropped += 1
        self._changed.notify()
        return accepted

    def has_room(self, size: int) -> bool:
        """Return whether a line of this size may wait."""
        return len(self._lines) < self._max_lines and self._bytes + size <= self._max_bytes

    def end(self, last_line: bytes) -> None:
        """Append a last line, for which there is always room, and end the stream."""
        if not self._is_complete:
            self._append(last_line, None)
            self._complete()

    def close(self) -> None:
        """End the stream after the lines that wait, and those added before the reader has read them."""
        self._is_closed = True
        self._changed.notify()

    def _complete(self) -> None:
        self._is_complete = True
        self.close()

    def abort(self, reason: str) -> None:
        """Drop all lines that wait, and end the stream with a record that gives their number and the reason."""
        self._dropped += len(self._backlog) + len(self._lines)
        self._gap_reason = reason
        self.discard()
        self._complete()

    def discard(self) -> None:
        """Discard all lines that wait."""
        for queue in (self._backlog, self._lines):
            while queue:
                self._pop(queue)

    @property
    def is_complete(self) -> bool:
        """Whether no line can be added any more."""
        return self._is_complete

    @property
    def held_bytes(self) -> int:
        """The size of all lines that wait."""
        return self._bytes + sum(len(line) for line, _ in self._backlog)

    # ---- the reader

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._complete()
        self.discard()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        # A class and not a generator: a generator that is abandoned in the middle would have to be closed by its user.
        await self.wait()
        if piece := self.take():
            return piece
        raise StopAsyncIteration

    async def wait(self) -> None:
        """Wait until `take` returns something, or the stream has ended."""
        await self._changed.wait_for(lambda: self._backlog or self._lines or self._dropped or self._is_closed)

    def take(self) -> bytes:
        """Return the lines that wait, up to the size of a piece; b"" if there are none."""
        lines, size = [], 0
        while (queue := self._backlog or self._lines) and (
            not size or size + len(queue[0][0]) <= self._max_piece_bytes
        ):
            lines.append(self._pop(queue))
            size += len(lines[-1])
        if self._dropped and not queue:  # there has been no room since the last of these lines
            gap = {"dropped": self._dropped, "reason": self._gap_reason}
            lines.append(_FORMAT.render_record(timestamp_now(), "warning", "dropped", gap))
            self._dropped = 0
        return b"".join(lines)

    def _append(self, line: bytes, entry: _Entry | None) -> None:
        self._lines.append((line, entry))
        self._bytes += len(line)

    def _pop(self, queue: deque[tuple[bytes, _Entry | None]]) -> bytes:
        line, entry = queue.popleft()
        if queue is self._lines:
            self._bytes -= len(line)
        if entry is not None:
            self._on_leave(entry)
        return line
