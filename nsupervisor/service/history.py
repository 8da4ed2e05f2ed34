"""The latest records of the service, kept in memory for queries, and a stream of new ones for followers.

Only the service's own records are here, as the log has them (`nsupervisor.logs`), whatever the log level; the output of
workloads is not. They are kept as JSON lines, which is what queries and followers receive.

Everything is bounded. The latest records of each workload are kept. When there are too many in total, the workloads
with the most records lose theirs first, so that a noisy workload does not push out why a quiet one was started. A
follower that reads too slowly loses records and receives their number; other followers do not notice.
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
"""Most records that are kept of one workload."""
TOTAL = 5000
"""Most records that are kept in total."""
WAITING = 1000
"""Most new records that may wait for one follower."""
LAST_WORDS = 1.0
"""Seconds that followers have at the end to read the rest."""

_FORMAT = JsonFormat()


@attrs.frozen
class Kept:
    """One record, with its position among all records.

    `workload` is the name of the instance, the name of the group for a record about no member, or "" for a record about
    the service.
    """

    number: int
    workload: str
    event: str
    line: bytes
    """The record as JSON, with its newline."""


class History:
    """The latest records, and their followers. For the trio thread only; only `close` waits."""

    def __init__(self, each: int = EACH, total: int = TOTAL) -> None:
        self._each, self._total = each, total
        self._number = self._count = 0
        self._kept: dict[str, deque[Kept]] = {}
        self._seen: dict[str, int] = {}
        self._followers: set[Follower] = set()
        self._left = trio.lowlevel.ParkingLot()
        self._ended = False

    def add(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Keep a record, and pass it to the followers. Never waits, never raises."""
        workload = str(fields.get("workload") or fields.get("group", ""))
        self._number += 1
        entry = Kept(self._number, workload, event, _FORMAT.record(timestamp, level, event, fields))
        entries = self._kept.setdefault(workload, deque())
        entries.append(entry)
        self._seen[workload] = self._seen.get(workload, 0) + 1
        if len(entries) > self._each:
            entries.popleft()
        else:
            self._count += 1
            if self._count > self._total:
                self._forget()
        for follower in self._followers:
            follower.hear(entry)

    def _forget(self) -> None:
        """Discard a tenth of all records, the oldest of the workloads with the most: rare, so cheap per record."""
        sizes = [(-len(entries), name) for name, entries in self._kept.items()]
        heapq.heapify(sizes)
        for _ in range(self._total // 10 + 1):
            size, name = sizes[0]
            self._kept[name].popleft()
            heapq.heapreplace(sizes, (size + 1, name))
            self._count -= 1

    @property
    def followers(self) -> int:
        """Number of followers at the moment."""
        return len(self._followers)

    def of(self, workload: str) -> tuple[list[bytes], int]:
        """Return the lines about one workload instance, oldest first, and how many older ones were discarded."""
        lines = [entry.line for entry in self._kept.get(workload, ())]
        return lines, self._seen.get(workload, 0) - len(lines)

    @contextmanager
    def follow(
        self, names: Collection[str] | None = None, events: Collection[str] | None = None, *, news: bool = True
    ) -> Iterator["Follower"]:
        """Yield a follower of the kept records and then, with `news`, of new ones, without a gap or a duplicate.

        `names` are workload instances and groups, `events` the values of `event` in records; None means all.
        """

        def wanted(entry: Kept) -> bool:
            return (names is None or entry.workload in names) and (events is None or entry.event in events)

        selected = (entry for entries in self._kept.values() for entry in entries if wanted(entry))
        follower = Follower(wanted, [entry.line for entry in sorted(selected, key=attrgetter("number"))])
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
        """End each follower after the records that it has; wait a short time for them to be read."""
        self._ended = True
        for follower in self._followers:
            follower.end()
        with trio.move_on_after(LAST_WORDS):
            while self._followers:
                await self._left.park()


class Follower:
    """An asynchronous iterator of bytes: whole lines, as many as are available. Made by `History.follow`."""

    def __init__(self, wanted: Callable[[Kept], bool], lines: list[bytes]) -> None:
        self._wanted = wanted
        self._backlog = lines
        self._news: list[bytes] = []
        self._dropped = 0
        self._ended = False
        self._heard = trio.lowlevel.ParkingLot()

    def hear(self, kept: Kept) -> None:
        """Queue a record if it is wanted and there is room, and count it as dropped if there is none."""
        if not self._wanted(kept):
            return
        if len(self._news) < WAITING:
            self._news.append(kept.line)
        else:
            self._dropped += 1
        self._heard.unpark_all()

    def end(self) -> None:
        """End the stream after the queued records."""
        self._ended = True
        self._heard.unpark_all()

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> bytes:
        # A class and not a generator: a generator that is abandoned in the middle would have to be closed by its user.
        while not (lines := self._take()):
            if self._ended:
                raise StopAsyncIteration
            await self._heard.park()
        return lines

    def _take(self) -> bytes:
        lines = [*self._backlog, *self._news]
        if self._dropped:  # there has been no room since the last of these lines
            gap = {"dropped": self._dropped, "reason": "the reader is too slow"}
            lines.append(_FORMAT.record(now(), "warning", "dropped", gap))
        self._backlog, self._news, self._dropped = [], [], 0
        return b"".join(lines)
