"""A bounded buffer in front of an output that may be slow, full or gone."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable

import trio

from nsupervisor.condition_variable import ConditionVariable
from nsupervisor.logs.log_file import LogFile
from nsupervisor.logs.target import Target
from nsupervisor.logs.threads import call_in_thread

BUFFER_SIZE = 8 * 1024 * 1024
"""The default number of bytes of records held for a slow reader."""

MAX_FLUSH_S = 30.0
"""Seconds at the end for which a steady but slow reader is waited for."""

_BATCH_SIZE = 256 * 1024  # bytes handed to one write(2): several times what a pipe takes
_RETRY_MIN_S, _RETRY_MAX_S = 0.05, 5.0  # seconds between attempts while the output is broken
_BACKPRESSURE_TIMEOUT_S = 0.1  # seconds that a chunk of output waits for a reader that has fallen behind
_BROKEN_PIPE = os.strerror(errno.EPIPE)
_SLOW_READER = "the reader is too slow"


class Delivery:
    """Records of a workload that wait to be written. Made for each of them, so it costs little."""

    __slots__ = ("is_abandoned", "written")

    def __init__(self) -> None:
        self.written = trio.Event()
        """Set when they have been written, can never be, or need not be waited for any longer."""
        self.is_abandoned = False


class _Gap:
    """The records missing at this position of the stream."""

    __slots__ = ("count", "reason")

    def __init__(self) -> None:
        self.count = 0
        self.reason = _SLOW_READER


def _ignore_error(_error: str | None) -> None:
    pass


class Sink:
    """Accepts whole records without waiting, and writes them in order in its own task.

    When `buffer_size` bytes wait, further records are counted instead of kept, until half of the buffer is free again;
    at that position of the stream the record made by `gap_record(count, reason)` is written. A record of which the
    kernel took a part is completed before anything else, so a reader finds whole records only. An output that fails (no
    reader, full disk, I/O error) is tried again with growing delays; meanwhile records wait as for a slow reader.
    """

    def __init__(
        self,
        target: Target,
        gap_record: Callable[[int, str], bytes],
        buffer_size: int = BUFFER_SIZE,
        on_error: Callable[[str | None], None] = _ignore_error,
    ) -> None:
        """`on_error` is called when `error` changes from or to None."""
        self._target = target
        self._on_error = on_error
        self._gap_record = gap_record
        self._limit = buffer_size
        self._queue: deque[bytes | _Gap | trio.Event] = deque()
        self._gap: _Gap | None = None  # the open gap, which is the last element of the queue
        self._batch = memoryview(b"")  # taken from the queue, not yet written
        self._awaited: list[trio.Event] = []  # events to set after the batch is written
        self._pending_bytes = 0  # bytes in the queue and the batch
        self._wake = trio.Event()
        self._written = ConditionVariable()  # notified after bytes were written, and when the output breaks
        self._limiter = trio.CapacityLimiter(1)
        self._next_target: Target | None = None
        self._is_closed = False
        self._scope = trio.CancelScope()
        self._is_at_record_end = True  # whether the output so far ends with a whole record
        self.dropped = 0
        """The number of records not kept, since the start."""
        self.error: str | None = None
        """Why the output cannot be written at the moment, in the system's words; None while it can."""

    def put(self, record: bytes, count: int = 1) -> None:
        """Append one record, newline included, or `count` of them together. Never waits and never raises."""
        if self._pending_bytes + len(record) > self._limit:
            self._drop(count)
        elif not self.drop_if_full(count):
            self._append(record)

    def drop_if_full(self, count: int) -> bool:
        """Return whether records are being dropped, whatever their size; if so, count `count` more."""
        if self._gap is None or self._has_room:
            return False
        self._drop(count)
        return True

    async def deliver(self, records: bytes, count: int, *, block: bool, delivery: Delivery | None = None) -> bool:
        """Append records of a workload, and return when they have been written, so that it is safe to forget them.

        `block`: wait as long as that takes, or until `abandon` is called with `delivery`. Otherwise, and from then on,
        they may be dropped, or stay in the buffer if the reader is slow. If the output can never be read again (a
        broken pipe), there is no waiting. Returns whether the records were not dropped.
        """
        if block and not self._is_broken:
            if delivery is None:
                delivery = Delivery()
            await self._written.wait_for(lambda: self._has_room or self._is_broken or delivery.is_abandoned)
            if delivery.is_abandoned:
                await trio.lowlevel.checkpoint()
                self.put(records, count)
                return self._gap is None
            self._append(records)
            await self._wait_for(delivery.written)
            return True
        await self.wait_for_room()
        self.put(records, count)
        if self._gap is not None:
            return False
        with trio.move_on_after(_BACKPRESSURE_TIMEOUT_S):
            await self._wait_for(trio.Event())
        return True

    def abandon(self, delivery: Delivery) -> None:
        """Let `deliver` return, if it waits, and not wait from now on."""
        delivery.is_abandoned = True
        delivery.written.set()
        self._written.notify()

    async def _wait_for(self, written: trio.Event) -> None:
        """Wait until `written` is set: everything put so far has been written, or can never be."""
        self._queue.append(written)
        if self._is_broken:
            written.set()
        await written.wait()

    def _append(self, record: bytes) -> None:
        self._gap = None
        self._queue.append(record)
        self._pending_bytes += len(record)
        self._wake.set()

    @property
    def _has_room(self) -> bool:
        """Whether half of the buffer is free."""
        return self._pending_bytes <= self._limit // 2

    @property
    def _is_broken(self) -> bool:
        return self.error == _BROKEN_PIPE

    def _release_waiters(self) -> None:
        for item in self._queue:
            if isinstance(item, trio.Event):
                item.set()
        for event in self._awaited:
            event.set()
        self._written.notify()

    def _drop(self, count: int) -> None:
        if self._gap is None:
            self._gap = _Gap()
            self._queue.append(self._gap)
            self._wake.set()
        self._gap.count += count
        self._gap.reason = self.error or self._gap.reason
        self.dropped += count

    async def wait_for_room(self) -> None:
        """Let other tasks run; if the buffer is more than half full, give the reader a moment to catch up.

        A burst, or a reader that does not get the processor, then slows a workload down (as any pipe does) instead of
        costing records. The moment is short, and there is none once records are being dropped: a reader that has
        stopped delays no workload.
        """
        if self._gap is None and not self._has_room:
            with trio.move_on_after(_BACKPRESSURE_TIMEOUT_S):
                await self._written.wait_for(lambda: self._has_room or self._is_broken)
        else:
            await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Write until cancelled or closed; sleeps while there is nothing to write."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        delay = _RETRY_MIN_S
        while True:
            if not self._next_batch():
                self._wake = trio.Event()
                self._written.notify()
                await self._wake.wait()
                continue
            if self._next_target is not None and self._is_at_record_end:
                self._target.close()
                self._target, self._next_target = self._next_target, None
            try:
                written = await self._write()
            except BlockingIOError:
                await self._wait_writable()
            except OSError as error:
                self._set_error(os.strerror(error.errno) if error.errno else str(error))
                if self._is_broken:
                    self._release_waiters()
                await trio.sleep(delay)
                delay = min(2 * delay, _RETRY_MAX_S)
            else:
                self._is_at_record_end = written == len(self._batch) or self._batch[written - 1] == ord("\n")
                self._batch = self._batch[written:]
                self._pending_bytes -= written
                if not self._batch:
                    self._set_written()
                if self._has_room:
                    self._written.notify()
                if self.error is not None:
                    self._set_error(None)
                delay = _RETRY_MIN_S
                if self._target.yields_after_write:
                    await trio.lowlevel.checkpoint()

    def _set_error(self, error: str | None) -> None:
        is_change = (error is None) != (self.error is None)
        self.error = error
        if is_change:
            self._on_error(error)

    @property
    def target_fd(self) -> int:
        """The descriptor of the output; -1 for a file that was opened by its path."""
        return self._target.fd

    @property
    def pending_bytes(self) -> int:
        """The number of bytes that have been put and not yet written."""
        return self._pending_bytes

    @property
    def pending_records(self) -> int:
        """The number of records that have been put and not yet written, with those that were dropped among them."""
        texts = [bytes(self._batch), *(item for item in self._queue if isinstance(item, bytes))]
        gaps = sum(item.count for item in self._queue if isinstance(item, _Gap))
        return sum(text.count(b"\n") for text in texts) + gaps

    @property
    def log_file(self) -> LogFile | None:
        """The regular file that is written to, if it was opened by its path."""
        return self._target.log_file

    def switch_target(self, target: Target) -> None:
        """Write to another target from the next record on."""
        if self._next_target is not None:
            self._next_target.close()
        self._next_target = target

    async def flush(self) -> None:
        """Wait until everything put so far has been written."""
        await self._written.wait_for(lambda: not self._queue and not self._batch)

    async def write_rest(self, flush_sec: float) -> None:
        """Wait, also if cancelled, until everything put so far has been written, but only as long as there is progress.

        That is, no longer than `flush_sec` seconds without progress, and `MAX_FLUSH_S` in all.
        """
        with trio.move_on_after(MAX_FLUSH_S, shield=True):
            pending = self.pending_bytes + 1
            while self.pending_bytes < pending:  # the reader is slow, but makes progress
                pending = self.pending_bytes
                with trio.move_on_after(flush_sec):
                    await self.flush()

    async def wait_written(self) -> None:
        """Wait until everything put so far has been written, or can never be."""
        if (self._queue or self._batch) and not self._is_broken:
            event = trio.Event()
            self._queue.append(event)
            self._wake.set()
            await event.wait()

    def close(self) -> None:
        """Close the output, whatever is still in the buffer. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._scope.cancel()  # a task still waiting for the descriptor would wait for the next file of this number
        if not (self._target.is_blocking and self._batch):  # else a thread may be about to write to this number
            self._target.close()
        if self._next_target is not None:
            self._next_target.close()

    def _next_batch(self) -> bool:
        """Take the next batch when the last one is written. False: nothing is left to write."""
        if self._batch:
            return True
        taken: list[bytes] = []
        size = 0
        while self._queue and size < _BATCH_SIZE:
            item = self._queue.popleft()
            if isinstance(item, trio.Event):
                self._awaited.append(item)
                continue
            if isinstance(item, _Gap):
                if item is self._gap:
                    self._gap = None
                item = self._gap_record(item.count, item.reason)
                self._pending_bytes += len(item)
            taken.append(item)
            size += len(item)
        while self._queue and isinstance(event := self._queue[0], trio.Event):
            self._awaited.append(event)
            self._queue.popleft()
        self._batch = memoryview(b"".join(taken))
        if not taken:
            self._set_written()
        return bool(taken)

    def _set_written(self) -> None:
        """Set the events of everything that has been written."""
        for event in self._awaited:
            event.set()
        self._awaited.clear()

    async def _write(self) -> int:
        # No checkpoint between two writes that succeed: everything that waits is written at once. That is bounded by
        # the buffer, because no record can be put meanwhile. Otherwise several busy workloads, each adding a chunk for
        # every batch that is written, would overflow the buffer in front of a reader that is quick enough. (This
        # applies to pipes, terminals and sockets, which accept what they have room for; threads write files.)
        if not self._target.is_blocking:
            return self._target.write(self._batch)
        data = self._batch[: self._target.max_write]
        return await call_in_thread(self._target.write, data, abandon_on_cancel=True, limiter=self._limiter)

    async def _wait_writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._target.fd)
        except OSError:  # epoll cannot watch it, although the write would have blocked
            await trio.sleep(_RETRY_MIN_S)
