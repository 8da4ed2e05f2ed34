"""Copy a workload's pipe to its log file, a shared stream, or both; bytes leave the pipe only after they are written.

A task of the event loop writes a shared stream, so the records for it are made there. A file may be on a disk that
blocks its writers, so a thread writes it: one call of `_record_for_a_while` does all the work there is for a while.
`chunks.py` makes the records; this module decides where they go, and what happens if they cannot be written.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import trio

from nsupervisor.logs.blockage import STALLED_AFTER_S, Blockage, describe_blockage
from nsupervisor.logs.chunks import JSON, Chunk, ChunkReader
from nsupervisor.logs.framing import count_newlines
from nsupervisor.logs.line_watch import LineSearch, LineWatch
from nsupervisor.logs.offsets import OffsetFile
from nsupervisor.logs.pipe import BUSY_PIPE_SIZE, PEEK_SIZE, Pipe
from nsupervisor.logs.rate_limit import RateLimiter
from nsupervisor.logs.record import JsonFormat, timestamp_now
from nsupervisor.logs.route import LineSequence, OutputRoute
from nsupervisor.logs.shared_stream import Format, SharedStream
from nsupervisor.logs.sink import Delivery
from nsupervisor.logs.threads import run_in_thread
from nsupervisor.logs.write_failures import WriteFailures
from nsupervisor.terminal.numbers import format_count, format_past

MAX_THREAD_TIME_S = 0.1
"""Seconds after which a thread returns, so that a capture can be ended."""
COALESCE_DELAY_S = 0.001
"""The longest time in seconds that a busy workload's output gathers in a pipe that is large enough for it."""
BUSY_THRESHOLD = 4096
"""The number of bytes since the last coalescing delay from which a workload is busy."""
MIN_BATCH = 16384
"""The number of bytes that is worth a system call if more are coming.

A reader that takes every byte at once follows a busy workload line by line, and the two mostly wait for each other.
"""
HAND_OVER_INTERVAL_S = 0.003
"""Seconds between two hand-overs to a thread while little output comes."""
MAX_CHUNK = 64 * 1024
"""The number of bytes converted to records at once.

For larger pieces the kernel provides new memory each time: half as fast, measured.
"""
THREAD_TIMEOUT_S = 2.0
"""Seconds that the end of a capture waits for a thread, which may hang on a disk that does not answer."""
LIMIT_REPORT_INTERVAL_S = 60.0
"""Minimum seconds between two reports to people that the rate limit drops output of a stream."""
RELEASED_PATIENCE_S = STALLED_AFTER_S
"""Seconds that the output of a workload that stops waits for a reader of the stream that takes nothing."""

_render_lock = threading.Lock()
"""Held while a thread makes records.

Two threads would not be faster: they would take the interpreter lock from each other, and from the event loop, which
needs it after each system call.
"""
_T = TypeVar("_T")


def _ignore_count(_size: int, _lines: int) -> None:
    pass


def _ignore_dropped(_lines: int) -> None:
    pass


def _ignore_report(_level: str, _event: str, **_fields: Any) -> None:
    pass


@attrs.define(eq=False)
class Capture:
    """The capture of one pipe of one generation. `labels` and `stream` are as for `Journal.record_line`."""

    pipe: Pipe
    route: OutputRoute
    labels: Mapping[str, Any]
    stream: str
    on_consumed: Callable[[int, int], None] = _ignore_count
    """Called with the numbers of bytes and newlines that have been taken from the pipe."""
    offset_file: OffsetFile | None = None
    sequence: LineSequence = attrs.field(factory=LineSequence)
    report: Callable[..., None] = _ignore_report
    """Called with messages for people: `report("error", "log file", message=…)`."""
    on_dropped: Callable[[int], None] = _ignore_dropped
    """Called with the number of lines that a destination lacks, by any thread; with two destinations, for each."""
    on_limited: Callable[[int], None] = _ignore_dropped
    """Called with the number of bytes that the rate limit drops, by any thread; their lines go to `on_dropped`."""
    watch: LineWatch | None = None
    """Waits for a line of this output; None: see `search_lines`."""
    dropped: int = 0
    """The number of lines that could not be written to the file, since the start."""
    _chunks: ChunkReader = attrs.field(init=False)
    _count_consumed: Callable[[int, int], None] = attrs.field(init=False, default=_ignore_count)
    _next_route: OutputRoute | None = None
    _next_watch: LineWatch | None = None
    _unwritten_raw: bytes = b""  # the beginning of a line that a raw file lacks, because another route had read it
    _pending: tuple[Chunk, bytes] | None = None  # a chunk, and those of its records that are not in the file yet
    _failures: WriteFailures = attrs.field(init=False, factory=WriteFailures)
    _coalesce_delay: float = COALESCE_DELAY_S
    _bytes_since_delay: int = 0  # bytes taken by the event loop since the last coalescing delay
    _is_stopping: bool = False
    _in_use: threading.Lock = attrs.field(init=False, factory=threading.Lock)
    _waiting_since: float | None = None  # the time of the loop since when the same output waits to be written
    _is_released: bool = False  # whether the workload must not be blocked any more, whatever the route says
    _has_given_up: bool = False  # whether a release has found that nothing reads the stream
    _delivery: Delivery | None = None  # what waits for the stream
    _retry: trio.CancelScope | None = None  # the wait for the next attempt at the file, which a release ends
    _limited_lines: int = 0  # lines that the rate limit has dropped since the last record of that
    _limited_bytes: int = 0  # the bytes that it has dropped, since the last report
    _limited_lines_unreported: int = 0
    _limit_report_at: float = -math.inf  # the time of the loop from which the next report may come
    _has_raw_gap: bool = False  # whether a raw file lacks something at its end
    _search: LineSearch | None = None  # searches the output for `watch`, until that is over
    _searched: int = 0  # the bytes at the front of the pipe that it has searched

    def __attrs_post_init__(self) -> None:
        self._count_consumed, self.on_consumed = self.on_consumed, self._on_consumed
        self._chunks = ChunkReader(
            self.pipe,
            self.labels,
            self.stream,
            self.offset_file,
            self.sequence,
            self.on_consumed,
            self._count_dropped,
            self.route.make_framing(),
            self.route.parse_json,
        )
        if self.offset_file is not None:
            beginning = self._chunks.restore_offset(self.offset_file)
            self._continue_line(beginning, is_in_raw_file=self._has_raw_file and self.route.shared is not None)
        if self.watch is not None:
            self._search = LineSearch(self.watch, self._chunks.framing.partial_line)

    def _continue_line(self, beginning: bytes, is_in_raw_file: bool) -> None:
        """Continue a line of which `beginning` has been taken from the pipe, by another route or supervisor.

        `is_in_raw_file`: whether a raw file has the beginning already, except for `_unwritten_raw`.
        """
        missing = self._unwritten_raw if is_in_raw_file else beginning
        self._unwritten_raw = missing if self._has_raw_file else b""
        if self.route.shared is not None or (self.route.file is not None and not self.route.is_raw):
            self._chunks.framing.partial_line = beginning or missing

    @property
    def _has_raw_file(self) -> bool:
        return self.route.is_raw and self.route.file is not None

    async def run(self) -> None:
        """Record everything until the end of the pipe; then close it.

        On cancellation, the beginning of a line that was read already is recorded as partial: the rest of the line is
        still in the pipe, for the next reader. An unexpected error is reported and ends only this capture's records:
        the rest of the output is read and discarded, so the program is not blocked.
        """
        ended = False
        try:
            while not ended:
                try:
                    ended = await self._record_next()
                except BlockingIOError:
                    self._bytes_since_delay = 0
                    await self._wait_for_input()
            await self._record_limited()
            await self._record_rest()
            self._report_final_loss()
        except Exception as error:  # the workload's own fault domain: the tasks of the others go on
            self._waiting_since = None
            self._report_defect(error, "the rest of this output is discarded")
            await self._discard_rest()
        except trio.Cancelled:
            with trio.move_on_after(THREAD_TIMEOUT_S, shield=True):
                await self._record_limited()
                await self._record_rest(partial=not ended)
            raise
        finally:
            if self._in_use.acquire(timeout=0):  # else a thread hangs, and may still use these descriptors
                self.pipe.close()
                if self.offset_file is not None:
                    self.offset_file.close()

    async def _discard_rest(self) -> None:
        """Read the pipe to its end, or until it cannot be read, without recording anything."""
        while True:
            try:
                data = os.read(self.pipe.fd, MAX_CHUNK)
            except BlockingIOError:
                await self.pipe.wait_readable()
                continue
            except OSError:
                return
            if not data:
                return
            self._count_dropped(data.count(b"\n"))
            await trio.lowlevel.checkpoint()

    def _report_defect(self, error: Exception, consequence: str) -> None:
        message = f"cannot record {self.stream}: {type(error).__name__}: {error}; {consequence}"
        text = "".join(traceback.format_exception(error)).rstrip("\n")
        self.report("error", "output not recorded", stream=self.stream, message=message, exception=text)

    def reroute(self, route: OutputRoute) -> None:
        """Use another route from the next chunk on."""
        self._next_route = route

    def release(self) -> None:
        """From now on drop, and count, what cannot be written, as with a route that does not block.

        A workload that waits for its output would not obey a request to stop. A stream without an error gets a moment,
        since a reader that is only slow is no reason to lose lines.
        """
        if not self._is_released:
            self._is_released = True
            if self._retry is not None:
                self._retry.deadline = min(self._retry.deadline, trio.current_time() + self._remaining_patience)
            if self._delivery is not None:
                self._limit_wait(self._delivery)

    def _limit_wait(self, delivery: Delivery) -> None:
        """Let a delivery wait no longer than `_remaining_patience`."""
        if (seconds := self._remaining_patience) > 0:
            trio.lowlevel.spawn_system_task(self._abandon_later, delivery, seconds)
        else:
            self._abandon(delivery)

    async def _abandon_later(self, delivery: Delivery, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await delivery.written.wait()
        if not delivery.written.is_set():
            self._abandon(delivery)

    def _abandon(self, delivery: Delivery) -> None:
        if self.route.shared is not None:
            self.route.shared.abandon(delivery)

    @property
    def blockage(self) -> Blockage | None:
        """Since when its output cannot be written, and why; None while it can be, or if lines are dropped instead."""
        if self._waiting_since is None or not self._blocks:
            return None
        seconds, route = trio.current_time() - self._waiting_since, self.route
        if route.file is not None and (self._failures.is_failing or self._in_use.locked() or route.shared is None):
            error = self._failures.reason if self._failures.is_failing else None
            reason = describe_blockage(error, str(route.file.path), is_file=True)
        else:
            assert route.shared is not None
            error, reason = route.shared.error, route.shared.describe_blockage()
        return Blockage(seconds, reason) if error is not None or seconds >= STALLED_AFTER_S else None

    @property
    def _blocks(self) -> bool:
        """Whether the workload waits for a file that cannot be written."""
        return self.route.blocks and not self._is_released

    @property
    def _remaining_patience(self) -> float:
        """Seconds that a chunk may wait for the stream."""
        if not self._is_released:
            return math.inf
        is_failing = self.route.shared is not None and self.route.shared.error is not None
        return 0 if is_failing or self.route.shared is None else RELEASED_PATIENCE_S

    async def _wait_for_input(self) -> None:
        """Wait until the pipe has input, and meanwhile record in the file how many lines are missing there."""
        if self.offset_file is not None:
            self.offset_file.close_fd()
        if self._limited_lines and self.route.limiter is not None:
            with trio.move_on_after(self.route.limiter.remaining_sec):
                await self.pipe.wait_readable()
                return
            await self._record_limited()
        while self._failures.gap_lines and not self.route.is_raw:
            with trio.move_on_after(self._time_to_retry()):
                await self.pipe.wait_readable()
                return
            await self._in_thread(self._close_gap)  # on failure the pause starts again, and the pipe is checked
            self._report_state()
        await self.pipe.wait_readable()

    def search_lines(self, watch: LineWatch) -> None:
        """Search the output from now on; what is being recorded is not searched."""
        self._next_watch = watch

    async def _search_next(self, search: LineSearch) -> None:
        """Search the front of the pipe for a line, of which nothing is recorded before. Raises BlockingIOError."""
        if search.watch.is_over:
            self._search = None
            return
        data = self.pipe.peek(self._chunks.redo_length or MAX_CHUNK)
        if await search.feed(data):
            await search.watch.wait_ended()
        if not data or search.watch.is_over:
            self._search = None
        self._searched = len(data)

    def _on_consumed(self, size: int, lines: int) -> None:
        self._searched -= size
        self._count_consumed(size, lines)

    def _peek(self, max_bytes: int = PEEK_SIZE) -> bytes:
        """Return the front of the pipe, as far as it has been searched if it must be."""
        return self.pipe.peek(max_bytes if self._search is None else min(max_bytes, self._searched))

    async def _record_next(self) -> bool:
        """Record the next input; return whether it was the end. Raises BlockingIOError if there is no input."""
        if self._next_watch is not None and self._pending is None:
            self._search, self._searched = LineSearch(self._next_watch, self._chunks.framing.partial_line), 0
            self._next_watch = None
        if self._search is not None and self._searched <= 0:
            await self._search_next(self._search)
        if self._next_route is not None and self._pending is None:
            was_raw = self._has_raw_file
            self.route, self._next_route = self._next_route, None
            self._continue_line(self._chunks.apply_route(self.route), was_raw)
        route = self.route
        if route.file is not None and route.shared is None:
            return await self._to_file()
        # Not if the pipe is empty or has ended: in the ticks in which thousands start or end, all of them would yield.
        if route.shared is not None and self.pipe.available_bytes():
            await route.shared.tick.yield_if_long()
        data = self._peek(self._chunks.redo_length or MAX_CHUNK)
        if not data:
            return True
        if route.shared is None:
            self._chunks.consume(data, count_newlines(data))
            await trio.lowlevel.checkpoint()
        elif route.limiter is None or self._chunks.redo_length:
            await self._to_shared(route.shared, self._chunks.frame(data))
        elif allowed := route.limiter.allowed_length(data):
            chunk = self._chunks.frame(data[:allowed])
            route.limiter.charge(len(chunk.data), max(chunk.newlines, chunk.line_count))
            await self._record_limited()
            await self._to_shared(route.shared, chunk)
        else:
            self._drop_limited(self._chunks.frame(data))
            self._report_state()
            await trio.lowlevel.checkpoint()
        await self._coalesce(len(data))
        return False

    async def _coalesce(self, count: int) -> None:
        """Let output gather in the pipe after a chunk of `count` bytes, as `_record_for_a_while` does."""
        self._bytes_since_delay += count
        if (
            count < MIN_BATCH
            and self._bytes_since_delay >= BUSY_THRESHOLD
            and self.pipe.available_bytes() < MIN_BATCH
            and self.pipe.enlarge()
        ):
            self._bytes_since_delay = 0
            self.pipe.stop_waiting()
            await trio.sleep(COALESCE_DELAY_S)

    # ---- the shared stream, by the event loop

    async def _to_shared(self, shared: SharedStream, chunk: Chunk) -> None:
        if not self._waits_for_stream and shared.drop_if_full(chunk.line_count):
            self.on_dropped(chunk.line_count)
            if self.route.tail is not None and chunk.line_count:
                self.route.tail.append(self._chunks.render_latest(chunk))
            await self._also_to_file(chunk)
            await trio.lowlevel.checkpoint()
            return
        records = self._chunks.render(shared.format, chunk)
        self._report_state()
        delivered = False
        try:
            if chunk.line_count:
                await self._deliver(shared, records, chunk.line_count)
            else:
                await trio.lowlevel.checkpoint()
            delivered = True
            if self.route.tail is not None:
                is_json = isinstance(shared.format, JsonFormat)
                self.route.tail.append(records if is_json else self._chunks.render(JSON, chunk))
        finally:
            if delivered or self.route.file is None:
                # Also after a cancellation: the stream has the records, and writes them before it ends.
                await self._also_to_file(chunk)
            else:
                self._pending = chunk, b""

    @property
    def _waits_for_stream(self) -> bool:
        return self.route.blocks and not self._has_given_up

    async def _deliver(self, shared: SharedStream, records: bytes, count: int) -> None:
        """Deliver records to the stream, and wait for it as long as the route, or a release, says."""
        self._waiting_since = trio.current_time()
        delivery = self._delivery = Delivery()
        if self._is_released:
            self._limit_wait(delivery)
        block = self.route.blocks and not self._has_given_up
        if not await shared.deliver(records, count, block=block, delivery=delivery):
            self.on_dropped(count)
        if block and delivery.is_abandoned:
            self._has_given_up = True
        self._waiting_since = self._delivery = None

    def _drop_limited(self, chunk: Chunk) -> None:
        """Drop a chunk that is above the rate limit."""
        self._limited_lines += chunk.line_count
        self._count_limited(len(chunk.data), chunk.line_count)
        self._chunks.consume_chunk(chunk)

    def _count_limited(self, size: int, lines: int) -> None:
        self._limited_bytes += size
        self._limited_lines_unreported += lines
        self._has_raw_gap = True
        self._count_dropped(lines)
        self.on_limited(size)

    def _take_limited_record(self, formatting: Format) -> bytes:
        """Return the record of the lines that the rate limit has dropped, or b""."""
        if not self._limited_lines:
            return b""
        return self._chunks.render_dropped(formatting, self._limited_lines, "the rate limit", timestamp_now())

    async def _record_limited(self) -> None:
        """Record at this place, in the stream and in a file of records, how many lines the rate limit has dropped."""
        if not self._limited_lines:
            return
        route = self.route
        if route.shared is not None:
            await self._deliver(route.shared, self._take_limited_record(route.shared.format), 1)
            if route.tail is not None:
                route.tail.append(self._take_limited_record(JSON))
        if route.file is not None and not route.is_raw and self._pending is None:
            self._pending = self._chunks.empty(), self._take_limited_record(JSON)
            while self._pending is not None:
                await self._until_written(self._write_pending)
        self._limited_lines = 0

    async def _also_to_file(self, chunk: Chunk) -> None:
        file = self.route.file
        if file is None:
            self._chunks.consume_chunk(chunk)
        elif self.route.is_raw:
            while self._unwritten_raw:
                await self._until_written(self._write_line_beginning)
            remaining = chunk.data
            while remaining:
                remaining = remaining[await self._until_written(self._move_raw, remaining) :]
            self._chunks.commit_offset()
        else:
            self._pending = chunk, self._chunks.render(JSON, chunk)
            while self._pending is not None:
                await self._until_written(self._write_pending)

    async def _until_written(self, work: Callable[..., _T | None], *arguments: Any) -> _T | None:
        """Call `work` once in a thread, and wait for the next retry if the file could not be written (None)."""
        if self._waiting_since is None:
            self._waiting_since = trio.current_time()
        result = await self._in_thread(work, *arguments)
        self._report_state()
        if result is not None:
            self._waiting_since = None
        elif self._blocks:  # otherwise it was released meanwhile, and drops at the next attempt
            with trio.move_on_after(self._time_to_retry()) as self._retry:
                await trio.sleep_forever()
            self._retry = None
        return result

    # ---- the file, by a thread

    async def _to_file(self) -> bool:
        outcome = await self._until_written(self._record_for_a_while)
        if outcome == "empty":
            await trio.sleep(HAND_OVER_INTERVAL_S)
            raise BlockingIOError
        # Each write to a pipe that epoll watches costs the workload a notification. This pipe is polled instead.
        self.pipe.stop_waiting()
        return outcome == "end"

    def _record_for_a_while(self) -> str | None:
        """Record input for a while; return "empty", "end", "more", or None if the file cannot be written."""
        until, taken = time.monotonic() + MAX_THREAD_TIME_S, 0
        step = self._record_raw_step if self.route.is_raw else self._record_step
        while not self._is_stopping and time.monotonic() < until:
            if self._search is not None and self._searched <= 0:
                return "more"
            try:
                count = step()
            except BlockingIOError:
                if taken < BUSY_THRESHOLD or not self.pipe.enlarge():
                    return "empty"
            else:
                if not count:
                    return "end" if count == 0 else None
                taken += count
                if (
                    count >= MIN_BATCH
                    or taken < BUSY_THRESHOLD
                    or self.pipe.available_bytes() >= MIN_BATCH
                    or not self.pipe.enlarge()
                ):
                    continue
            taken = 0
            time.sleep(self._coalesce_delay)
            # A fast workload may fill the pipe during the delay, and would then wait for the capture.
            full = self.pipe.available_bytes() > BUSY_PIPE_SIZE // 2
            self._coalesce_delay = (
                max(self._coalesce_delay / 2, COALESCE_DELAY_S / 16)
                if full
                else min(self._coalesce_delay * 2, COALESCE_DELAY_S)
            )
        return "more"

    def _record_raw_step(self) -> int | None:
        if self._unwritten_raw and self._write_line_beginning() is None:
            return None
        if self.route.limiter is not None:
            return self._limited_raw_step(self.route.limiter)
        failures = self._failures
        is_read = failures.gap_lines or self._has_raw_gap or failures.is_failing or self._search is not None
        if is_read or (moved := self._splice_raw()) is None:
            data = self._peek()
            return self._move_raw(data) if data else 0
        return moved

    def _limited_raw_step(self, limiter: RateLimiter) -> int | None:
        data = self._peek()
        if not data:
            return 0
        if allowed := limiter.allowed_length(data):
            moved = self._move_raw(data[:allowed])
            if moved is not None:
                limiter.charge(moved, count_newlines(data[:moved]))
            return moved
        self._count_limited(len(data), count_newlines(data))
        self._chunks.consume(data, 0)
        return len(data)

    def _splice_raw(self) -> int | None:
        """Splice input to the file without reading it or counting lines; None if that is not possible now."""
        assert self.route.file is not None
        try:
            moved = self.route.file.splice(self.pipe)
        except BlockingIOError:
            raise
        except OSError:
            return None  # the slower way meets the error again and handles it
        if moved:
            self.on_consumed(moved, 0)
        return moved

    def _record_step(self) -> int | None:
        """Record the next chunk; return its number of bytes."""
        file = self.route.file
        assert file is not None
        with file.lock:  # two generations of a stream share one sequence of numbers
            if self._pending is None:
                data = self._peek(self._chunks.redo_length or MAX_CHUNK)
                if not data:
                    return 0
                limiter = self.route.limiter if not self._chunks.redo_length else None
                allowed = limiter.allowed_length(data) if limiter is not None else len(data)
                with _render_lock:
                    chunk = self._chunks.frame(data[:allowed] if allowed else data)
                    if not allowed:
                        self._drop_limited(chunk)
                        return len(chunk.data)
                    if limiter is not None:
                        limiter.charge(len(chunk.data), max(chunk.newlines, chunk.line_count))
                    if not self._blocks and time.monotonic() < self._failures.retry_at:  # the next retry is not due
                        self._drop(chunk.line_count)
                        self._chunks.consume_chunk(chunk)
                        return len(data)
                    self._pending = chunk, self._take_limited_record(JSON) + self._chunks.render(JSON, chunk)
                    self._limited_lines = 0
            return self._write_pending()

    def _write_pending(self) -> int | None:
        """Write the pending records to the file, or drop them; None if they must be tried again."""
        file = self.route.file
        assert file is not None
        assert self._pending is not None
        chunk, records = self._pending
        try:
            if records and self._failures.gap_lines and time.monotonic() >= self._failures.retry_at:
                self._write_gap()
            while records and time.monotonic() >= self._failures.retry_at:
                records = records[file.append(records) :]
        except OSError as error:
            self._failures.add(error, time.monotonic(), self.dropped)
        if records:
            if self._blocks:
                self._pending = chunk, records
                return None
            self._drop(records.count(b"\n"))
        else:
            self._failures.end()
        self._pending = None
        self._chunks.consume_chunk(chunk)
        return len(chunk.data)

    def _close_gap(self) -> int | None:
        try:
            self._write_gap()
        except OSError as error:
            self._failures.add(error, time.monotonic(), self.dropped)
            return None
        self._failures.end()
        return 0

    def _write_gap(self) -> None:
        """Record in the file how many lines are missing there. (A raw file contains only the program's bytes.)"""
        assert self.route.file is not None
        record = self._chunks.render_dropped(JSON, self._failures.gap_lines, self._failures.reason, timestamp_now())
        self.route.file.append(record)
        self._failures.gap_lines = 0

    def _write_line_beginning(self) -> int | None:
        """Write what the raw file lacks of the beginning of a line, or drop it; None if it must be tried again."""
        file = self.route.file
        assert file is not None
        try:
            while self._unwritten_raw and time.monotonic() >= self._failures.retry_at:
                self._unwritten_raw = self._unwritten_raw[file.append_bytes(self._unwritten_raw) :]
                self._failures.end()
        except OSError as error:
            self._failures.add(error, time.monotonic(), self.dropped)
        if self._unwritten_raw:
            if self._blocks:
                return None
            self._unwritten_raw = b""
            self._drop(1)
        if self.route.shared is None:
            self._chunks.reset_offset()
        return 0

    def _move_raw(self, data: bytes) -> int | None:
        """Move bytes from the pipe to the file, or drop them; return how many, or None if the write must be retried."""
        file = self.route.file
        assert file is not None
        try:
            if time.monotonic() >= self._failures.retry_at:
                if self._failures.gap_lines or self._has_raw_gap:
                    file.end_line()
                    self._has_raw_gap = False
                moved = file.append_raw(self.pipe, data)
                self._failures.gap_lines = 0
                self._failures.end()
                self.on_consumed(moved, 0 if self.route.shared is None else count_newlines(data[:moved]))
                return moved
        except BlockingIOError:
            raise
        except OSError as error:
            self._failures.add(error, time.monotonic(), self.dropped)
        if self._blocks:
            return None
        lines = count_newlines(data)
        self._drop(lines)
        self._chunks.consume(data, lines)
        return len(data)

    def _time_to_retry(self) -> float:
        return max(self._failures.retry_at - time.monotonic(), 0)

    def _drop(self, lines: int) -> None:
        self._failures.gap_lines += lines
        self._count_dropped(lines)

    def _count_dropped(self, lines: int) -> None:
        self.dropped += lines
        self.on_dropped(lines)

    def _report_state(self) -> None:
        """Report lines that could not be rendered; report once that the file cannot be written, and can be again."""
        if self._chunks.defect is not None:
            error, self._chunks.defect = self._chunks.defect, None
            self._report_defect(error, 'its latest lines are missing (see the records of the event "dropped")')
        if self._limited_bytes and trio.current_time() >= self._limit_report_at:
            self._report_limited()
        failures = self._failures
        if self.route.file is not None and failures.is_reported != failures.is_failing:
            self._report_file(failures.take_report(str(self.route.file.path), self._blocks, self.dropped))

    def _report_file(self, report: tuple[str, dict[str, Any]]) -> None:
        level, fields = report
        self.report(level, "log file", stream=self.stream, **fields)

    def _report_limited(self) -> None:
        """Report how much the rate limit has dropped since the previous report."""
        lines, size = self._limited_lines_unreported, self._limited_bytes
        self._limited_lines_unreported = self._limited_bytes = 0
        self._limit_report_at = trio.current_time() + LIMIT_REPORT_INTERVAL_S
        dropped = f"{format_past(lines, 'line', 'dropped')} ({format_count(size, 'byte')})"
        message = f"its output is above log.rate_limit: {dropped}"
        self.report("warning", "rate limit", stream=self.stream, message=message, lines=lines, bytes=size)

    def _report_final_loss(self) -> None:
        """Report lines that a file lacks if the output has ended before the file could be written again."""
        if self._limited_bytes:
            self._report_limited()
        file = self.route.file
        if file is not None and (lost := self._failures.final_report(str(file.path), self.dropped)) is not None:
            self._report_file(lost)

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a thread. A cancellation waits for the thread a while, since it may hang on its disk."""
        assert self.route.file is not None

        def locked() -> _T:
            with self._in_use:
                return work(*arguments)

        try:
            return await run_in_thread(self.route.file.path.parent, locked)
        except trio.Cancelled:
            self._is_stopping = True
            with trio.move_on_after(THREAD_TIMEOUT_S, shield=True):
                while self._in_use.locked():  # noqa: ASYNC110 - only the hanging thread itself could wake this task
                    await trio.sleep(0.002)
            raise

    async def _record_rest(self, partial: bool = False) -> None:
        """Record the rest of the last line. `partial`: the pipe has not ended."""
        route = self.route
        if self._pending is not None or (route.is_raw and route.shared is None):
            return
        chunk = self._chunks.flush(partial)
        if chunk.lines and route.shared is not None:
            await self._deliver(route.shared, self._chunks.render(route.shared.format, chunk), chunk.line_count)
            if route.tail is not None:
                route.tail.append(self._chunks.render(JSON, chunk))
        if chunk.lines and route.file is not None and not route.is_raw:
            self._pending = chunk, self._chunks.render(JSON, chunk)
            while self._pending is not None:
                await self._until_written(self._write_pending)
        self._chunks.reset_offset()
