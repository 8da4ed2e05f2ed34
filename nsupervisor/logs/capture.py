"""From a workload's pipe to its log file, the journal, or both; taken from the pipe only once it is written there.

The journal is written by a task of the event loop, so its records are made there. A file may be on a disk that makes
whoever writes wait, so it is written in a thread: one call of `_pump` does all that there is to do for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import trio

from .framing import Framing, newlines
from .journal import Journal
from .pipe import LARGE, Pipe
from .progress import Progress, fingerprint
from .record import JsonFormat, Line, now
from .route import Route, Sequence
from .threads import in_thread

BUDGET = 0.1
"""Seconds after which a thread comes back, so that a capture can be ended."""
NAP = 0.001
"""Seconds that a busy workload's output is let gather at most, in a pipe that is large enough for it."""
BUSY = 4096
"""Bytes since the last nap that make a workload busy."""
BITE = 16384
"""Bytes that are worth a system call where more of them come: who takes all that is there follows a busy workload line
by line, and both do little else than wait for each other."""
PAUSE = 0.003
"""Seconds between two hand-overs to a thread, where less than that comes."""
TEXT = 64 * 1024
"""Bytes made records of at once. Larger pieces of memory come new from the kernel each time: half as fast, measured."""
STEP, PARSED = 4096, 512
"""Lines recorded at once, at most, and those that are parsed: records of short lines are many times as long as these,
and the event loop waits."""
RETRY_FIRST, RETRY_LAST = 0.05, 2.0
"""Seconds between attempts at a file that cannot be written."""
PATIENCE = 2.0
"""Seconds that the end of a capture waits for a thread; it may be held up by a disk that does not answer."""

_JSON = JsonFormat()
_making = threading.Lock()
"""Held while records are made in a thread. Two would not make more: they would take the interpreter from each other,
and from the event loop, which has to get it back after each system call."""
_T = TypeVar("_T")


@attrs.frozen
class _Chunk:
    """What is at the front of the pipe, and its lines: with newlines between them, or one by one."""

    data: bytes
    ends: int
    """Newlines in it."""
    text: bytes | None
    lines: list[Line]
    labels: Mapping[str, Any]
    timestamp: str
    seq: int
    count: int


def _nothing(_size: int, _lines: int) -> None:
    pass


def _silent(_level: str, _event: str, **_fields: Any) -> None:
    pass


@attrs.define(eq=False)
class Capture:
    """One pipe of one generation. `labels` and `stream` are as for `Journal.output`."""

    pipe: Pipe
    route: Route
    labels: Mapping[str, Any]
    stream: str
    count: Callable[[int, int], None] = _nothing
    """Called with the bytes and newlines that have been taken."""
    progress: Progress | None = None
    sequence: Sequence = attrs.field(factory=Sequence)
    say: Callable[..., None] = _silent
    """Called with what people should know of: `say("error", "log file", message=…)`."""
    dropped: int = 0
    """Lines that could not be kept in the file, since the start."""
    _framing: Framing = attrs.field(init=False)
    _next_route: Route | None = None
    _again: int = 0  # bytes at the front of the pipe that perhaps had been recorded by a supervisor that was killed
    _pending: tuple[_Chunk, bytes] | None = None  # a chunk with those of its records that are not in the file yet
    _gap: int = 0  # lines dropped since the file could be written last
    _reason: str = ""
    _failing: bool = False
    _told: bool = False  # so, in words
    _dropped_before: int = 0  # `dropped` when it began to fail
    _delay: float = RETRY_FIRST
    _retry_at: float = 0.0
    _nap: float = NAP
    _taken: int = 0  # bytes since the last nap, by the event loop
    _stopping: bool = False
    _in_use: threading.Lock = attrs.field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._framing = Framing(self.route.max_line)
        if self.progress is not None:
            self._resume(self.progress)

    def _resume(self, progress: Progress) -> None:
        """Go on where a supervisor that was killed has stopped."""
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
        """Record everything until the end of the pipe; then close it. Raises OSError when the pipe cannot be read.

        When cancelled, the beginning of a line that was read already is recorded as partial: its rest is still in the
        pipe, for a next reader.
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
            if self._in_use.acquire(timeout=0):  # else a thread hangs, and may yet use these numbers
                self.pipe.close()
                if self.progress is not None:
                    self.progress.close()

    def reroute(self, route: Route) -> None:
        """From the next chunk on, do this."""
        self._next_route = route

    async def _more(self) -> None:
        """Wait until there is something in the pipe. Not only that tells of lines that are missing in the file."""
        if self.progress is not None:
            self.progress.release()
        while self._gap and not self.route.raw:
            with trio.move_on_after(self._pause()):
                await trio.lowlevel.wait_readable(self.pipe.fd)
                return
            await self._in_thread(self._close_gap)  # where that fails, the pause begins anew, and the pipe is looked at
            self._tell()
        await trio.lowlevel.wait_readable(self.pipe.fd)

    async def _some(self) -> bool:
        """Take what is there; whether it was the end. Raises BlockingIOError when there is nothing."""
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
        """As `_pump` does it, after a bite of `count` bytes."""
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
                # Or cancelled: the journal has the records, and writes them out on its way to the end.
                await self._also_to_file(chunk)
            else:
                self._pending = chunk, b""

    async def _also_to_file(self, chunk: _Chunk) -> None:
        file = self.route.file
        if file is None:
            self._finish(chunk)
        elif self.route.raw:
            left = chunk.data
            while left:
                left = left[await self._until_written(self._take_raw, left) :]
            self._commit()
        else:
            self._pending = chunk, self._records(_JSON, chunk)
            while self._pending is not None:
                await self._until_written(self._store)

    async def _until_written(self, work: Callable[..., _T | None], *arguments: Any) -> _T | None:
        """One call in a thread, and a pause where the file could not be written (None)."""
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
        # Of a pipe that epoll watches, each write of the workload tells it. This one we look at unasked.
        trio.lowlevel.notify_closing(self.pipe.fd)
        return outcome == "end"

    def _pump(self) -> str | None:
        """Take what is there, for a while: "empty", "end", "more"; None when the file cannot be written."""
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
            # A fast one fills the pipe meanwhile, and would then be waiting for us.
            full = self.pipe.waiting() > LARGE // 2
            self._nap = max(self._nap / 2, NAP / 16) if full else min(self._nap * 2, NAP)
        return "more"

    def _pump_raw(self) -> int | None:
        if self._gap or self._failing or (moved := self._pour()) is None:
            data = self.pipe.peek()
            return self._take_raw(data) if data else 0
        return moved

    def _pour(self) -> int | None:
        """The fast way, on which nobody looks at the bytes, or counts lines; None where that does not do."""
        assert self.route.file is not None
        try:
            moved = self.route.file.pour(self.pipe)
        except BlockingIOError:
            raise
        except OSError:
            return None  # the other way meets the error again
        if moved:
            self.count(moved, 0)
        return moved

    def _pump_records(self) -> int | None:
        """The next chunk; how many bytes it was."""
        file = self.route.file
        assert file is not None
        with file.lock:  # two generations of a stream number their lines together
            if self._pending is None:
                data = self.pipe.peek(self._again or TEXT)
                if not data:
                    return 0
                with _making:
                    chunk = self._begin(data)
                    if not self.route.block and time.monotonic() < self._retry_at:  # it cannot be written yet
                        self._drop(chunk.count)
                        self._finish(chunk)
                        return len(data)
                    self._pending = chunk, self._records(_JSON, chunk)
            return self._store()

    def _store(self) -> int | None:
        """Write the pending records to the file, or drop them; None when they have to be tried again."""
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
        """Say in the file what is missing there. (A raw file has the program's bytes alone.)"""
        assert self.route.file is not None
        labels = {**self.labels, "stream": self.stream, "dropped": self._gap, "reason": self._reason}
        self.route.file.append(_JSON.record(now(), "warning", "dropped", labels))
        self._gap = 0

    def _take_raw(self, data: bytes) -> int | None:
        """Move bytes from the pipe to the file, or drop them: how many; None when the file cannot be written."""
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
        """Say once that the file cannot be written, and once that it can again."""
        file = self.route.file
        if file is None or self._told == self._failing:
            return
        self._told = self._failing
        if self._failing:
            then = "the workload waits once its pipe is full" if self.route.block else "its lines are dropped"
            text = f"cannot write {file.path}: {self._reason}; {then}"
            self.say("error", "log file", stream=self.stream, message=text)
        else:
            lost = self.dropped - self._dropped_before
            text = f"{file.path} can be written again; {lost} lines were dropped"
            self.say("warning", "log file", stream=self.stream, message=text, lines=lost)

    async def _in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Run `work` in a thread. A cancellation waits for it a while: it may hang, with the disk."""
        assert self.route.file is not None

        def locked() -> _T:
            with self._in_use:
                return work(*arguments)

        try:
            return await in_thread(self.route.file.path.parent, locked)
        except trio.Cancelled:
            self._stopping = True
            with trio.move_on_after(PATIENCE, shield=True):
                while self._in_use.locked():  # noqa: ASYNC110 - nothing could wake us that does not hang, too
                    await trio.sleep(0.002)
            raise

    # ---- lines

    def _begin(self, data: bytes) -> _Chunk:
        """Cut what is at the front of the pipe into lines, and note that these are about to be recorded."""
        ends, most = newlines(data), PARSED if self.route.parse_json else STEP
        while ends > most and not self._again:
            data = data[: len(data) * most // ends]
            ends = newlines(data)
        text = None if self.route.parse_json else self._framing.whole(data)
        lines = self._framing.feed(data) if text is None else []
        count = len(lines) if text is None else ends
        seq = self.progress.note.seq if self.progress is not None and self._again else self.sequence.next
        self.sequence.next = max(self.sequence.next, seq + count)
        if self.progress is not None:
            self.progress.begin(data, self.sequence.next, self._framing.rest)
        labels = {**self.labels, "duplicate": True} if self._again else self.labels
        return _Chunk(data, ends, text, lines, labels, now(), seq, count)

    def _records(self, formatting: Any, chunk: _Chunk) -> bytes:
        if chunk.text is not None:
            made: bytes = formatting.whole(
                chunk.timestamp, chunk.labels, self.stream, chunk.text, chunk.seq, chunk.count
            )
            return made
        return b"".join(
            formatting.output(chunk.timestamp, chunk.labels, self.stream, chunk.lines, chunk.seq, self.route.parse_json)
        )

    def _finish(self, chunk: _Chunk) -> None:
        """It has been recorded: take it from the pipe."""
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
        """What is left of the last line. `partial`: the pipe has not ended."""
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
