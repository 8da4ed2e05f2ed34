"""Copy a workload's pipe to its log file, the journal, or both; bytes leave the pipe only after they are written.

A task of the event loop writes the journal, so the records for it are made there. A file may be on a disk that blocks
its writers, so a thread writes it: one call of `_record_for_a_while` does all the work that there is for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import trio

from nsupervisor.logs.console import ConsoleFormat
from nsupervisor.logs.framing import Framing, newlines
from nsupervisor.logs.journal import Journal
from nsupervisor.logs.pipe import LARGE, Pipe
from nsupervisor.logs.progress import Progress, fingerprint
from nsupervisor.logs.record import JsonFormat, Line, now
from nsupervisor.logs.route import Route, Sequence
from nsupervisor.logs.threads import in_thread

BUDGET = 0.1
"""Seconds after which a thread returns, so that a capture can be ended."""
NAP = 0.001
"""The longest time in seconds that a busy workload's output gathers in a pipe that is large enough for it."""
BUSY = 4096
"""The number of bytes since the last coalescing delay from which a workload is busy."""
BITE = 16384
"""The number of bytes that is worth a system call if more are coming.

A reader that takes every byte at once follows a busy workload line by line, and the two mostly wait for each other.
"""
PAUSE = 0.003
"""Seconds between two hand-overs to a thread while little output comes."""
TEXT = 64 * 1024
"""The number of bytes converted to records at once.

For larger pieces the kernel provides new memory each time: half as fast, measured.
"""
STEP, PARSED = 4096, 512
"""The largest number of lines recorded at once, and of lines parsed as JSON at once.

Records of short lines are many times as long as the lines, and the event loop waits.
"""
RETRY_FIRST, RETRY_LAST = 0.05, 2.0
"""The first and the longest delay in seconds between attempts at a file that cannot be written."""
PATIENCE = 2.0
"""Seconds that the end of a capture waits for a thread, which may hang on a disk that does not answer."""

_JSON = JsonFormat()
_render_lock = threading.Lock()
"""Held while a thread makes records.

Two threads would not be faster: they would take the interpreter lock from each other, and from the event loop, which
needs it after each system call.
"""
_T = TypeVar("_T")


@attrs.frozen
class _Chunk:
    """The bytes at the front of the pipe, and their lines: as one text with newlines between them, or one by one."""

    data: bytes
    ends: int
    """The number of newlines in `data`."""
    text: bytes | None
    lines: list[Line]
    labels: Mapping[str, Any]
    timestamp: str
    seq: int
    count: int


def _ignore_count(_size: int, _lines: int) -> None:
    pass


def _ignore_report(_level: str, _event: str, **_fields: Any) -> None:
    pass


@attrs.define(eq=False)
class Capture:
    """The capture of one pipe of one generation. `labels` and `stream` are as for `Journal.record_line`."""

    pipe: Pipe
    route: Route
    labels: Mapping[str, Any]
    stream: str
    count: Callable[[int, int], None] = _ignore_count
    """Called with the numbers of bytes and newlines that have been taken from the pipe."""
    progress: Progress | None = None
    sequence: Sequence = attrs.field(factory=Sequence)
    say: Callable[..., None] = _ignore_report
    """Called with messages for people: `report("error", "log file", message=…)`."""
    dropped: int = 0
    """The number of lines that could not be written to the file, since the start."""
    _framing: Framing = attrs.field(init=False)
    _next_route: Route | None = None
    _again: int = 0  # bytes at the front of the pipe that a killed supervisor may have recorded already
    _pending: tuple[_Chunk, bytes] | None = None  # a chunk, and those of its records that are not in the file yet
    _gap: int = 0  # lines dropped since the last successful write to the file
    _reason: str = ""
    _failing: bool = False
    _told: bool = False  # whether the failure has been reported
    _dropped_before: int = 0  # `dropped` when writing began to fail
    _delay: float = RETRY_FIRST
    _retry_at: float = 0.0
    _nap: float = NAP
    _taken: int = 0  # bytes taken by the event loop since the last coalescing delay
    _stopping: bool = False
    _in_use: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._framing = Framing(self.route.max_line)
        if self.progress is not None:
            self._resume(self.progress)

    def _resume(self, progress: Progress) -> None:
        """Continue from the offset of a supervisor that was killed."""
        note = progress.note
        if note.length:
            try:
                front = self.pipe.peek(note.length)
            except BlockingIOError:
                front = b""
            if len(front) == note.length and fingerprint(front) == note.mark:
                self._again = note.length
            else:
                progress.commit()
        self._framing.rest = progress.note.rest
        self.sequence.next = max(self.sequence.next, progress.note.seq)

    async def run(self) -> None:
        """Record everything until the end of the pipe; then close it.

        Raises OSError if the pipe cannot be read. On cancellation, the beginning of a line that was read already is
        recorded as partial: the rest of the line is still in the pipe, for the next reader.
        """
        ended = False
        try:
            while not ended:
                try:
                    ended = await self._some()
                except BlockingIOError:
                    self._taken = 0
                    await self._more()
            await self._last()
        except trio.Cancelled:
            with trio.move_on_after(PATIENCE, shield=True):
                await self._last(partial=not ended)
            raise
        finally:
            if self._in_use.acquire(timeout=0):  # else a thread hangs, and may still use these descriptors
                self.pipe.close()
                if self.progress is not None:
                    self.progress.close()

    def reroute(self, route: Route) -> None:
        """Use another route from the next chunk on."""
        self._next_route = route

    async def _more(self) -> None:
        """Wait until the pipe has input, and meanwhile record in the file how many lines are missing there."""
        if self.progress is not None:
            self.progress.release()
        while self._gap and not self.route.raw:
            with trio.move_on_after(self._pause()):
                await trio.lowlevel.wait_readable(self.pipe.fd)
                return
            await self._in_thread(self._close_gap)  # on failure the pause starts again, and the pipe is checked
            self._tell()
        await trio.lowlevel.wait_readable(self.pipe.fd)

    async def _some(self) -> bool:
        """Record the next input; return whether it was the end. Raises BlockingIOError if there is no input."""
        if self._next_route is not None and self._pending is None:
            self.route, self._next_route = self._next_route, None
            rest, self._framing = self._framing.rest, Framing(self.route.max_line)
            self._framing.rest = rest
        route = self.route
        if route.file is not None and route.journal is None:
            return await self._to_file()
        if route.journal is not None:
            await route.journal.turn.share()
        data = self.pipe.peek(self._again or TEXT)
        if not data:
            return True
        if route.journal is None:
            self._take(data, newlines(data))
            await trio.lowlevel.checkpoint()
        else:
            await self._to_journal(route.journal, data)
        await self._gather(len(data))
        return False

    async def _gather(self, count: int) -> None:
        """Let output gather in the pipe after a chunk of `count` bytes, as `_record_for_a_while` does."""
        self._taken += count
        if count < BITE and self._taken >= BUSY and self.pipe.waiting() < BITE and self.pipe.widen():
            self._taken = 0
            trio.lowlevel.notify_closing(self.pipe.fd)
            await trio.sleep(NAP)

    # ---- the journal, by the event loop

    async def _to_journal(self, journal: Journal, data: bytes) -> None:
        chunk = self._begin(data)
        if not self.route.block and journal.refuses(chunk.count):
            await self._also_to_file(chunk)
            await trio.lowlevel.checkpoint()
            return
        records = self._records(journal.format, chunk)
        delivered = False
        try:
            if chunk.count:
                await journal.deliver(records, chunk.count, block=self.route.block)
            else:
                await trio.lowlevel.checkpoint()
            delivered = True
        finally:
            if delivered or self.route.file is None:
                # Also after a cancellation: the journal has the records, and writes them before it ends.
                await self._also_to_file(chunk)
            else:
                self._pending = chunk, b""

    async def _also_to_file(self, chunk: _Chunk) -> None:
        file = self.route.file
        if file is None:
            self._finish(chunk)
        elif self.route.raw:
            remaining = chunk.data
            while remaining:
                remaining = remaining[await self._until_written(self._take_raw, remaining) :]
            self._commit()
        else:
            self._pending = chunk, self._records(_JSON, chunk)
            while self._pending is not None:
                await self._until_written(self._store)

    async def _until_written(self, work: Callable[..., _T | None], *arguments: Any) -> _T | None:
        """Call `work` once in a thread, and wait for the next retry if the file could not be written (None)."""
        result = await self._in_thread(work, *arguments)
        self._tell()
        if result is None:
            await trio.sleep(self._pause())
        return result

    # ---- the file, by a thread

    async def _to_file(self) -> bool:
        outcome = await self._until_written(self._pump)
        if outcome == "empty":
            await trio.sleep(PAUSE)
            raise BlockingIOError
        # Each write to a pipe that epoll watches costs the workload a notification. This pipe is polled instead.
        trio.lowlevel.notify_closing(self.pipe.fd)
        return outcome == "end"

    def _pump(self) -> str | None:
        """Record input for a while; return "empty", "end", "more", or None if the file cannot be written."""
        until, taken = time.monotonic() + BUDGET, 0
        step = self._pump_raw if self.route.raw else self._pump_records
        while not self._stopping and time.monotonic() < until:
            try:
                count = step()
            except BlockingIOError:
                if taken < BUSY or not self.pipe.widen():
                    return "empty"
            else:
                if not count:
                    return "end" if count == 0 else None
                taken += count
                if count >= BITE or taken < BUSY or self.pipe.waiting() >= BITE or not self.pipe.widen():
                    continue
            taken = 0
            time.sleep(self._nap)
            # A fast workload may fill the pipe during the delay, and would then wait for the capture.
            full = self.pipe.waiting() > LARGE // 2
            self._nap = max(self._nap / 2, NAP / 16) if full else min(self._nap * 2, NAP)
        return "more"

    def _pump_raw(self) -> int | None:
        if self._gap or self._failing or (moved := self._pour()) is None:
            data = self.pipe.peek()
            return self._take_raw(data) if data else 0
        return moved

    def _pour(self) -> int | None:
        """Splice input to the file without reading it or counting lines; None if that is not possible now."""
        assert self.route.file is not None
        try:
            moved = self.route.file.pour(self.pipe)
        except BlockingIOError:
            raise
        except OSError:
            return None  # the slower way meets the error again and handles it
        if moved:
            self.count(moved, 0)
        return moved

    def _pump_records(self) -> int | None:
        """Record the next chunk; return its number of bytes."""
        file = self.route.file
        assert file is not None
        with file.lock:  # two generations of a stream share one sequence of numbers
            if self._pending is None:
                data = self.pipe.peek(self._again or TEXT)
                if not data:
                    return 0
                with _render_lock:
                    chunk = self._begin(data)
                    if not self.route.block and time.monotonic() < self._retry_at:  # the next retry is not due
                        self._drop(chunk.count)
                        self._finish(chunk)
                        return len(data)
                    self._pending = chunk, self._records(_JSON, chunk)
            return self._store()

    def _store(self) -> int | None:
        """Write the pending records to the file, or drop them; None if they must be tried again."""
        file = self.route.file
        assert file is not None
        assert self._pending is not None
        chunk, records = self._pending
        try:
            if records and self._gap and time.monotonic() >= self._retry_at:
                self._write_gap()
            while records and time.monotonic() >= self._retry_at:
                records = records[file.append(records) :]
        except OSError as error:
            self._failed(error)
        if records:
            if self.route.block:
                self._pending = chunk, records
                return None
            self._drop(records.count(b"\n"))
        else:
            self._works()
        self._pending = None
        self._finish(chunk)
        return len(chunk.data)

    def _close_gap(self) -> int | None:
        try:
            self._write_gap()
        except OSError as error:
            self._failed(error)
            return None
        self._works()
        return 0

    def _write_gap(self) -> None:
        """Record in the file how many lines are missing there. (A raw file contains only the program's bytes.)"""
        assert self.route.file is not None
        labels = {**self.labels, "stream": self.stream, "dropped": self._gap, "reason": self._reason}
        self.route.file.append(_JSON.record(now(), "warning", "dropped", labels))
        self._gap = 0

    def _take_raw(self, data: bytes) -> int | None:
        """Move bytes from the pipe to the file, or drop them; return how many, or None if the write must be retried."""
        file = self.route.file
        assert file is not None
        try:
            if time.monotonic() >= self._retry_at:
                if self._gap:
                    file.end_line()
                moved = file.take(self.pipe, data)
                self._gap = 0
                self._works()
                self.count(moved, 0 if self.route.journal is None else newlines(data[:moved]))
                return moved
        except BlockingIOError:
            raise
        except OSError as error:
            self._failed(error)
        if self.route.block:
            return None
        lines = newlines(data)
        self._drop(lines)
        self._take(data, lines)
        return len(data)

    def _failed(self, error: OSError) -> None:
        if not self._failing:
            self._failing, self._dropped_before = True, self.dropped
        self._reason = error.strerror or str(error)
        self._retry_at = time.monotonic() + self._delay
        self._delay = min(2 * self._delay, RETRY_LAST)

    def _works(self) -> None:
        self._failing, self._delay = False, RETRY_FIRST

    def _pause(self) -> float:
        return max(self._retry_at - time.monotonic(), 0)

    def _drop(self, lines: int) -> None:
        self._gap += lines
        self.dropped += lines

    def _tell(self) -> None:
        """Report once that the file cannot be written, and once that it can be again."""
        file = self.route.file
        if file is None or self._told == self._failing:
            return
        self._told = self._failing
        if self._failing:
            consequence = "the workload waits once its pipe is full" if self.route.block else "its lines are dropped"
            message = f"cannot write {file.path}: {self._reason}; {consequence}"
            self.say("error", "log file", stream=self.stream, message=message)
        else:
            lost_lines = self.dropped - self._dropped_before
            message = f"{file.path} can be written again; {lost_lines} lines were dropped"
            self.say("warning", "log file", stream=self.stream, message=message, lines=lost_lines)

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a thread. A cancellation waits for the thread a while, since it may hang on its disk."""
        assert self.route.file is not None

        def locked() -> _T:
            with self._in_use:
                return work(*arguments)

        try:
            return await in_thread(self.route.file.path.parent, locked)
        except trio.Cancelled:
            self._stopping = True
            with trio.move_on_after(PATIENCE, shield=True):
                while self._in_use.locked():  # noqa: ASYNC110 - only the hanging thread itself could wake this task
                    await trio.sleep(0.002)
            raise

    # ---- lines

    def _begin(self, data: bytes) -> _Chunk:
        """Cut the bytes at the front of the pipe into lines, and note in the offset file that recording begins."""
        newline_count, max_lines = newlines(data), PARSED if self.route.parse_json else STEP
        while newline_count > max_lines and not self._again:
            data = data[: len(data) * max_lines // newline_count]
            newline_count = newlines(data)
        text = None if self.route.parse_json else self._framing.whole(data)
        lines = self._framing.feed(data) if text is None else []
        count = len(lines) if text is None else newline_count
        seq = self.progress.note.seq if self.progress is not None and self._again else self.sequence.next
        self.sequence.next = max(self.sequence.next, seq + count)
        if self.progress is not None:
            self.progress.begin(data, self.sequence.next, self._framing.rest)
        labels = {**self.labels, "duplicate": True} if self._again else self.labels
        return _Chunk(data, newline_count, text, lines, labels, now(), seq, count)

    def _records(self, formatting: JsonFormat | ConsoleFormat, chunk: _Chunk) -> bytes:
        if chunk.text is not None:
            return formatting.whole(chunk.timestamp, chunk.labels, self.stream, chunk.text, chunk.seq, chunk.count)
        return b"".join(
            formatting.output(chunk.timestamp, chunk.labels, self.stream, chunk.lines, chunk.seq, self.route.parse_json)
        )

    def _finish(self, chunk: _Chunk) -> None:
        """Take a recorded chunk from the pipe."""
        self._take(chunk.data, chunk.ends)
        self._commit()

    def _take(self, data: bytes, lines: int) -> None:
        self.pipe.drop(len(data))
        self.count(len(data), lines)

    def _commit(self) -> None:
        self._again = 0
        if self.progress is not None:
            self.progress.commit()

    async def _last(self, partial: bool = False) -> None:
        """Record the rest of the last line. `partial`: the pipe has not ended."""
        route = self.route
        if self._pending is not None or (route.raw and route.journal is None):
            return
        lines = [(line, cut or partial) for line, cut in self._framing.end()]
        seq = self.sequence.next
        self.sequence.next += len(lines)
        chunk = _Chunk(b"", 0, None, lines, self.labels, now(), seq, len(lines))
        if lines and route.journal is not None:
            await route.journal.deliver(self._records(route.journal.format, chunk), len(lines), block=route.block)
        if lines and route.file is not None and not route.raw:
            self._pending = chunk, self._records(_JSON, chunk)
            while self._pending is not None:
                await self._until_written(self._store)
        if self.progress is not None:
            self.progress.restart(self.sequence.next)
