"""What the service said lately, kept in memory for whoever asks why; and news of it for whoever waits for them.

Only the service's own records are here, as the log has them (`nsupervisor.logs`), whatever its level; the workloads'
output is not. They are kept as JSON lines, which is what both askers and followers get.

Everything is bounded. Of each workload the latest records are kept, and where all together become too many, those go
first of whom there are most, so that a workload that makes much noise does not push out why a quiet one was started.
A follower that reads too slowly loses records and is told how many; nobody else notices.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import attrs
import trio

from nsupervisor.logs.record import JsonFormat, now

EACH = 200
"""Records that are kept of one workload."""
TOTAL = 5000
"""Records that are kept of all together."""
WAITING = 1000
"""News that may wait for one follower."""
LAST_WORDS = 1.0
"""Seconds that followers have at the end to read what is left."""

_FORMAT = JsonFormat()


@attrs.frozen
class Kept:
    """One record. ``number`` counts all of them; ``workload`` is the group's name for what concerns no member of it,
    and "" for what concerns none at all."""

    number: int
    workload: str
    event: str
    line: bytes
    """JSON, with its newline."""


class History:
    """The latest records, and those who follow them. For the trio thread only; nothing waits but `end`."""

    def __init__(self, each: int = EACH, total: int = TOTAL) -> None:
        self._each, self._total = each, total
        self._number = self._count = 0
        self._kept: dict[str, deque[Kept]] = {}
        self._seen: dict[str, int] = {}
        self._followers: set[Follower] = set()
        self._left = trio.lowlevel.ParkingLot()
        self._ended = False

    def add(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Keep a record, and hand it to those who follow. Never waits, never raises."""
        workload = str(fields.get("workload") or fields.get("group", ""))
        self._number += 1
        kept = Kept(self._number, workload, event, _FORMAT.record(timestamp, level, event, fields))
        of_it = self._kept.setdefault(workload, deque())
        of_it.append(kept)
        self._seen[workload] = self._seen.get(workload, 0) + 1
        if len(of_it) > self._each:
            of_it.popleft()
        else:
            self._count += 1
            if self._count > self._total:
                self._forget()
        for follower in self._followers:
            follower.hear(kept)

    def _forget(self) -> None:
        """Forget a tenth, always the oldest of those who have most: seldom, so that it costs each record little."""
        most = [(-len(kept), name) for name, kept in self._kept.items()]
        heapq.heapify(most)
        for _ in range(self._total // 10 + 1):
            size, name = most[0]
            self._kept[name].popleft()
            heapq.heapreplace(most, (size + 1, name))
            self._count -= 1

    @property
    def followers(self) -> int:
        """How many follow just now."""
        return len(self._followers)

    def of(self, workload: str) -> tuple[list[bytes], int]:
        """The lines about one workload instance, oldest first; and how many older ones are kept no more."""
        lines = [kept.line for kept in self._kept.get(workload, ())]
        return lines, self._seen.get(workload, 0) - len(lines)

    @contextmanager
    def follow(
        self, names: Collection[str] | None = None, events: Collection[str] | None = None, *, news: bool = True
    ) -> Iterator["Follower"]:
        """What is kept, and then, with ``news``, what is new, without a gap or anything twice.

        ``names`` are workload instances and groups, ``events`` what records have as their event; None means all.
        """

        def wanted(kept: Kept) -> bool:
            return (names is None or kept.workload in names) and (events is None or kept.event in events)

        every = (kept for of_one in self._kept.values() for kept in of_one if wanted(kept))
        follower = Follower(wanted, [kept.line for kept in sorted(every, key=attrgetter("number"))])
        if news and not self._ended:
            self._followers.add(follower)
        else:
            follower.end()
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            self._left.unpark_all()

    async def end(self) -> None:
        """There will be no more news: each follower ends after what it has. Waits a little for them to read it."""
        self._ended = True
        for follower in self._followers:
            follower.end()
        with trio.move_on_after(LAST_WORDS):
            while self._followers:
                await self._left.park()


class Follower:
    """An asynchronous iterator of bytes: whole lines, as many as there are. Made by `History.follow`."""

    def __init__(self, wanted: Callable[[Kept], bool], lines: list[bytes]) -> None:
        self._wanted = wanted
        self._backlog = lines
        self._news: list[bytes] = []
        self._dropped = 0
        self._ended = False
        self._heard = trio.lowlevel.ParkingLot()

    def hear(self, kept: Kept) -> None:
        """Take a record in, if it is wanted and there is room."""
        if not self._wanted(kept):
            return
        if len(self._news) < WAITING:
            self._news.append(kept.line)
        else:
            self._dropped += 1
        self._heard.unpark_all()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._heard.unpark_all()

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> bytes:
        # A class and no generator: one that is left in the middle would have to be closed by somebody.
        while not (lines := self._take()):
            if self._ended:
                raise StopAsyncIteration
            await self._heard.park()
        return lines

    def _take(self) -> bytes:
        lines = [*self._backlog, *self._news]
        if self._dropped:  # there was no room since the last of these lines
            gap = {"dropped": self._dropped, "reason": "the reader is too slow"}
            lines.append(_FORMAT.record(now(), "warning", "dropped", gap))
        self._backlog, self._news, self._dropped = [], [], 0
        return b"".join(lines)
