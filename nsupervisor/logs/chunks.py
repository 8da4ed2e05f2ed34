"""From the bytes at the front of a workload's pipe to numbered records: what a `Capture` writes, whatever it writes to.

A chunk is cut, numbered and rendered before it leaves the pipe, and it leaves the pipe when it has been recorded or
dropped. The offset file says so in both steps, so that a supervisor after a kill neither loses nor doubles lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from nsupervisor.logs.framing import Framing, count_newlines
from nsupervisor.logs.offsets import OffsetFile, chunk_checksum
from nsupervisor.logs.pipe import Pipe
from nsupervisor.logs.record import JsonFormat, Line, timestamp_now
from nsupervisor.logs.route import LineSequence, OutputRoute
from nsupervisor.logs.shared_stream import Format

MAX_LINES, MAX_PARSED_LINES = 4096, 512
"""The largest number of lines recorded at once, and of lines parsed as JSON at once.

Records of short lines are many times as long as the lines, and the event loop waits.
"""
MAX_KEPT_BYTES, MAX_KEPT_LINES = 4096, 32
"""About how much of a chunk that is dropped is kept among the latest lines."""

JSON = JsonFormat()


@attrs.frozen
class Chunk:
    """The bytes at the front of the pipe, and their lines: as one text with newlines between them, or one by one."""

    data: bytes
    newlines: int
    """The number of newlines in `data`."""
    text: bytes | None
    lines: list[Line]
    labels: Mapping[str, Any]
    timestamp: str
    seq: int
    line_count: int


@attrs.define(eq=False)
class ChunkReader:
    """Makes the chunks of one pipe of one generation, and takes them from the pipe.

    It is used by one task or thread at a time.
    """

    pipe: Pipe
    labels: Mapping[str, Any]
    stream: str
    offset_file: OffsetFile | None
    sequence: LineSequence
    on_consumed: Callable[[int, int], None]
    """Called with the numbers of bytes and newlines that have been taken from the pipe."""
    count_dropped: Callable[[int], None]
    """Called with the number of lines that could not be rendered."""
    framing: Framing
    parse_json: bool
    redo_length: int = 0
    """The number of bytes at the front of the pipe that a killed supervisor may have recorded already."""
    defect: Exception | None = None
    """Why the latest lines could not be rendered, until it is reported."""

    def restore_offset(self, offset_file: OffsetFile) -> bytes:
        """Continue from the offset of a supervisor that was killed; return the beginning of a line that it had read."""
        note = offset_file.offset
        if note.pending_length:
            try:
                front = self.pipe.peek(note.pending_length)
            except BlockingIOError:
                front = b""
            if len(front) == note.pending_length and chunk_checksum(front) == note.pending_checksum:
                self.redo_length = note.pending_length
            else:
                offset_file.commit()
        self.sequence.next_seq = max(self.sequence.next_seq, offset_file.offset.seq)
        return offset_file.offset.partial_line

    def apply_route(self, route: OutputRoute) -> bytes:
        """Cut lines as another route wants it; return the beginning of a line that has been read already."""
        beginning = self.framing.partial_line
        self.framing, self.parse_json = route.make_framing(), route.parse_json
        return beginning

    def frame(self, data: bytes) -> Chunk:
        """Cut the bytes at the front of the pipe into lines, and note in the offset file that recording begins."""
        newline_count, max_lines = count_newlines(data), MAX_PARSED_LINES if self.parse_json else MAX_LINES
        while newline_count > max_lines and not self.redo_length:
            data = data[: len(data) * max_lines // newline_count]
            newline_count = count_newlines(data)
        text = None if self.parse_json else self.framing.feed_complete(data)
        lines = self.framing.feed(data) if text is None else []
        count = len(lines) if text is None else newline_count
        seq = (
            self.offset_file.offset.seq if self.offset_file is not None and self.redo_length else self.sequence.next_seq
        )
        self.sequence.next_seq = max(self.sequence.next_seq, seq + count)
        if self.offset_file is not None:
            self.offset_file.begin(data, self.sequence.next_seq, self.framing.partial_line)
        labels = {**self.labels, "duplicate": True} if self.redo_length else self.labels
        return Chunk(data, newline_count, text, lines, labels, timestamp_now(), seq, count)

    def flush(self, partial: bool) -> Chunk:
        """Return a chunk without data of the rest of the last line. `partial`: the pipe has not ended."""
        lines = [(line, cut or partial) for line, cut in self.framing.flush()]
        seq = self.sequence.next_seq
        self.sequence.next_seq += len(lines)
        return Chunk(b"", 0, None, lines, self.labels, timestamp_now(), seq, len(lines))

    def empty(self) -> Chunk:
        """Return a chunk without data and lines, for a record of the service's own among those of the workload."""
        return Chunk(b"", 0, None, [], self.labels, timestamp_now(), self.sequence.next_seq, 0)

    def render(self, formatting: Format, chunk: Chunk) -> bytes:
        """Render a chunk; if that fails, which is a defect, return a record of how many lines are missing."""
        try:
            return self._render_lines(formatting, chunk)
        except Exception as error:
            self.defect = error
            self.count_dropped(chunk.line_count)
            return self.render_dropped(formatting, chunk.line_count, "a defect", chunk.timestamp)

    def _render_lines(self, formatting: Format, chunk: Chunk) -> bytes:
        if chunk.text is not None:
            return formatting.render_text(
                chunk.timestamp, chunk.labels, self.stream, chunk.text, chunk.seq, chunk.line_count
            )
        return b"".join(
            formatting.render_lines(chunk.timestamp, chunk.labels, self.stream, chunk.lines, chunk.seq, self.parse_json)
        )

    def render_latest(self, chunk: Chunk) -> bytes:
        """Render the latest lines of a chunk that is dropped. All of them would cost as much as recording them."""
        if chunk.text is None:
            kept = attrs.evolve(chunk, lines=chunk.lines[-MAX_KEPT_LINES:])
            count = len(kept.lines)
        else:
            lines = chunk.text[-MAX_KEPT_BYTES:].split(b"\n")
            if len(chunk.text) > MAX_KEPT_BYTES:  # the first may be the end of a longer line
                lines = lines[1:] or chunk.text.rsplit(b"\n", 1)[-1:]
            lines = lines[-MAX_KEPT_LINES:]
            kept = attrs.evolve(chunk, text=b"\n".join(lines))
            count = len(lines)
        skipped = chunk.line_count - count
        records = self.render(JSON, attrs.evolve(kept, seq=chunk.seq + skipped, line_count=count))
        if skipped:
            records = self.render_dropped(JSON, skipped, "the stream is full", chunk.timestamp) + records
        return records

    def render_dropped(self, formatting: Format, lines: int, reason: str, timestamp: str) -> bytes:
        """Render a record of how many lines are missing at this place, and why."""
        labels = {**self.labels, "stream": self.stream, "dropped": lines, "reason": reason}
        return formatting.render_record(timestamp, "warning", "dropped", labels)

    def consume_chunk(self, chunk: Chunk) -> None:
        """Take a recorded chunk from the pipe."""
        self.consume(chunk.data, chunk.newlines)
        self.commit_offset()

    def consume(self, data: bytes, lines: int) -> None:
        """Take bytes from the pipe that are recorded or dropped."""
        self.pipe.discard(len(data))
        self.on_consumed(len(data), lines)

    def commit_offset(self) -> None:
        """Note in the offset file that what was begun has been recorded."""
        self.redo_length = 0
        if self.offset_file is not None:
            self.offset_file.commit()

    def reset_offset(self) -> None:
        """Note in the offset file that nothing is begun, and no beginning of a line is kept."""
        if self.offset_file is not None:
            self.offset_file.reset(self.sequence.next_seq)
