"""The latest records of the service, kept in memory for queries, and a stream of new ones for followers.

Only the service's own records are here, as the log has them (`nsupervisor.logs`), whatever the log level; the output of
workloads is not. They are kept as JSON lines, which is what queries and followers receive.

Everything is bounded. The latest records of each workload are kept. When there are too many in total, the workloads
with the most records lose theirs first, so that a noisy workload does not push out why a quiet one was started. A
follower that reads too slowly loses records and receives their number; other followers do not notice. Followers share
the lines. If the lines that are kept only for followers take too many bytes in total, the followers with the most bytes
end.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import attrs
import trio

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.line_stream import NEW_LINE, LineStream
from nsupervisor.logs.record import JsonFormat

MAX_RECORDS_PER_WORKLOAD = 200
"""Most records that are kept of one workload."""
MAX_RECORDS_TOTAL = 5000
"""Most records that are kept in total."""
MAX_RECORDS_WAITING = 1000
"""Most new records that may wait for one follower."""
MAX_BYTES_WAITING = 1 << 20
"""Most bytes of new records that may wait for one follower."""
MAX_BYTES_OUTLIVED = 32 << 20
"""Most bytes of lines that are kept only because followers have not read them yet."""
MAX_PIECE_BYTES = 16 << 10
"""Most bytes that a follower yields at a time; a longer line comes alone. The connection holds a piece until the client
has read it, so this is what each client that does not read costs."""
DRAIN_TIMEOUT_S = 1.0
"""Seconds that followers have at the end to read the rest."""

_FORMAT = JsonFormat()


@attrs.define(eq=False)
class HistoryEntry:
    """One record, with its position among all records.

    `workload` is the name of the instance, the name of the group for a record about no member, or "" for a record about
    the service.
    """

    number: int
    workload: str
    event: str
    line: bytes
    """The record as JSON, with its newline."""
    holders: int = 0
    """How many followers have not yielded it yet."""
    is_kept: bool = True
    """Whether it is still among the latest records."""

    def discard(self) -> None:
        """Note that it is no longer among the latest records."""
        self.is_kept = False

    def add_holder(self) -> None:
        """Note that one more follower holds it."""
        self.holders += 1

    def remove_holder(self) -> None:
        """Note that one follower less holds it."""
        self.holders -= 1


Follower = LineStream[HistoryEntry]
"""The lines for one follower, as `LineStream` says; a slow one loses records and receives their number."""


class OutlivedLines:
    """The size in bytes of the lines that are no longer among the latest records, but that followers still hold."""

    def __init__(self) -> None:
        self.size = 0

    def discard(self, entry: HistoryEntry) -> None:
        """Note that an entry is no longer among the latest records."""
        entry.discard()
        if entry.holders:
            self.size += len(entry.line)

    def hold(self, entry: HistoryEntry) -> None:
        """Note that one more follower holds an entry, which is among the latest records."""
        entry.add_holder()

    def release(self, entry: HistoryEntry) -> None:
        """Note that one follower less holds an entry."""
        entry.remove_holder()
        if not entry.holders and not entry.is_kept:
            self.size -= len(entry.line)


class History:
    """The latest records, and their followers. For the trio thread only; only `close` waits."""

    def __init__(self, per_workload: int = MAX_RECORDS_PER_WORKLOAD, total: int = MAX_RECORDS_TOTAL) -> None:
        self._max_per_workload, self._max_total = per_workload, total
        self._last_number = self._count = 0
        self._entries: dict[str, deque[HistoryEntry]] = {}
        self._total_by_workload: dict[str, int] = {}
        self._followers: dict[Follower, Callable[[HistoryEntry], bool]] = {}
        self._outlived = OutlivedLines()
        self._follower_left = ConditionVariable()
        self._is_closed = False

    def add(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any], line: bytes | None = None) -> None:
        """Keep a record, and pass it to the followers. Never waits, never raises. `line`: the record as JSON."""
        workload = str(fields.get("workload") or fields.get("group", ""))
        self._last_number += 1
        if line is None:
            line = _FORMAT.render_record(timestamp, level, event, fields)
        entry = HistoryEntry(self._last_number, workload, event, line)
        entries = self._entries.setdefault(workload, deque())
        entries.append(entry)
        self._total_by_workload[workload] = self._total_by_workload.get(workload, 0) + 1
        if len(entries) > self._max_per_workload:
            self._outlived.discard(entries.popleft())
        else:
            self._count += 1
            if self._count > self._max_total:
                self._discard_oldest()
        for follower, is_wanted in self._followers.items():
            if is_wanted(entry) and follower.add(entry.line, entry):
                self._outlived.hold(entry)
        if self._outlived.size > MAX_BYTES_OUTLIVED:
            self._end_largest_followers()

    def _end_largest_followers(self) -> None:
        for follower in sorted(self._followers, key=attrgetter("held_bytes"), reverse=True):
            follower.abort("all readers together are too slow, and this one held the most; the stream ends here")
            if self._outlived.size <= MAX_BYTES_OUTLIVED:
                return

    def _discard_oldest(self) -> None:
        """Discard a tenth of all records, the oldest of the workloads with the most: rare, so cheap per record."""
        sizes = [(-len(entries), name) for name, entries in self._entries.items()]
        heapq.heapify(sizes)
        for _ in range(self._max_total // 10 + 1):
            size, name = sizes[0]
            self._outlived.discard(self._entries[name].popleft())
            heapq.heapreplace(sizes, (size + 1, name))
            self._count -= 1

    @property
    def followers(self) -> int:
        """Number of followers at the moment."""
        return len(self._followers)

    def records_of(self, workload: str) -> tuple[list[bytes], int]:
        """Return the lines about one workload instance, oldest first, and how many older ones were discarded."""
        lines = [entry.line for entry in self._entries.get(workload, ())]
        return lines, self._total_by_workload.get(workload, 0) - len(lines)

    @contextmanager
    def follow(
        self,
        names: Collection[str] | None = None,
        events: Collection[str] | None = None,
        *,
        news: bool = True,
        mark: bool = False,
    ) -> Iterator[Follower]:
        """Yield a stream of the kept records and then, with `news`, of new ones, without a gap or a duplicate.

        `names` are workload instances and groups, `events` the values of `event` in records; None means all. `mark`:
        `NEW_LINE` comes between the two.
        """

        def wanted(entry: HistoryEntry) -> bool:
            return (names is None or entry.workload in names) and (events is None or entry.event in events)

        selected = (entry for entries in self._entries.values() for entry in entries if wanted(entry))
        backlog = sorted(selected, key=attrgetter("number"))
        for entry in backlog:
            self._outlived.hold(entry)
        follower: Follower = LineStream(
            max_bytes=MAX_BYTES_WAITING,
            max_lines=MAX_RECORDS_WAITING,
            max_piece_bytes=MAX_PIECE_BYTES,
            backlog=(*((entry.line, entry) for entry in backlog), *([(NEW_LINE, None)] if mark else [])),
            on_leave=self._outlived.release,
        )
        if news and not self._is_closed:
            self._followers[follower] = wanted
        else:
            follower.close()
        try:
            with follower:
                yield follower
        finally:
            self._followers.pop(follower, None)
            self._follower_left.notify()

    async def close(self) -> None:
        """End each follower after the records that it has; wait a short time for them to be read."""
        self._is_closed = True
        for follower in self._followers:
            follower.close()
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            await self._follower_left.wait_for(lambda: not self._followers)
