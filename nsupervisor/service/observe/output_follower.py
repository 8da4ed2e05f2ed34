"""A stream of the latest output of instances, and of new output."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import attrs
import trio

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.line_stream import NEW_LINE, LineStream
from nsupervisor.logs.tails import Tails

MAX_BYTES_WAITING = 1 << 20
"""Most bytes of new records that may wait for one follower."""
MAX_PIECE_BYTES = 16 << 10
"""Most bytes that a follower receives at a time."""
DRAIN_TIMEOUT_S = 1.0
"""Seconds that followers have at the end to read the rest."""
NEW = NEW_LINE
"""The line between the records up to now and those that come."""


class OutputFollower:
    """An asynchronous iterator of lines: the records up to now, one instance after the other; `NEW`; new records.

    The stream of an instance is without a gap, and has no record twice. A reader that is too slow loses new records and
    receives their number. Only the records of one instance are in memory at a time.
    """

    def __init__(self, tails: Tails, names: Iterable[str], last: int | None, *, news: bool) -> None:
        """Read the instances `names`: of each the `last` records (None: all) up to now, and with `news` new ones."""
        self._tails, self._last, self._news = tails, last, news
        self._waiting = deque(names)
        self._started: set[str] = set()
        self._is_past_read = False
        self._lines: LineStream[None] = LineStream(max_bytes=MAX_BYTES_WAITING, max_piece_bytes=MAX_PIECE_BYTES)

    def add(self, name: str, records: bytes) -> None:
        """Take new records of an instance."""
        if name in self._started:
            for line in records.splitlines(keepends=True):
                self._lines.add(line)

    def close(self) -> None:
        """End the stream after the records that it has."""
        self._lines.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self._waiting:
            await trio.lowlevel.checkpoint()
            if piece := self._read(self._waiting.popleft()):
                return piece
        if not self._news:
            raise StopAsyncIteration
        if not self._is_past_read:
            self._is_past_read = True
            return NEW
        return await anext(self._lines)

    def _read(self, name: str) -> bytes:
        lines = self._tails.read(name)
        if self._news:
            self._started.add(name)  # at once: nothing is written between the two
        if self._last is not None:
            lines = lines[max(len(lines) - self._last, 0) :]
        return b"".join(lines)


@attrs.define(eq=False)
class OutputFollowers:
    """All who follow output."""

    tails: Tails
    _followers: set[OutputFollower] = attrs.field(init=False, factory=set)
    _is_closed: bool = attrs.field(init=False, default=False)
    _left: ConditionVariable = attrs.field(init=False, factory=ConditionVariable)

    @contextmanager
    def follow(self, names: Iterable[str], last: int | None, *, news: bool) -> Iterator[OutputFollower]:
        """Yield the stream of some instances; see `OutputFollower`."""
        follower = OutputFollower(self.tails, names, last, news=news)
        if self._is_closed:
            follower.close()
        self._followers.add(follower)
        self.tails.listeners.add(follower.add)
        try:
            yield follower
        finally:
            self.tails.listeners.discard(follower.add)
            self._followers.discard(follower)
            self._left.notify()

    async def close(self) -> None:
        """End each follower after the records that it has; wait a short time for them to be read."""
        self._is_closed = True
        for follower in self._followers:
            follower.close()
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            await self._left.wait_for(lambda: not self._followers)
