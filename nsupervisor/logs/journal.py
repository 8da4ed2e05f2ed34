"""The journal: one stream of records, written by the service's logger and by the capture of workloads' output."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

import trio

from nsupervisor.logs.collector import LogCollector
from nsupervisor.logs.console import ConsoleFormat
from nsupervisor.logs.log_daemons import Journald, Syslog
from nsupervisor.logs.log_file import NO_ROTATION, Rotation
from nsupervisor.logs.logger import DropEvent, EventDict, FilteringBoundLogger, make_logger
from nsupervisor.logs.record import JsonFormat, Line, timestamp_now
from nsupervisor.logs.shared_stream import Format, SharedStream
from nsupervisor.logs.sink import BUFFER_SIZE, MAX_FLUSH_S, Sink
from nsupervisor.logs.target import Target, open_target
from nsupervisor.logs.threads import call_in_thread
from nsupervisor.nurseries import open_background_nursery
from nsupervisor.terminal.numbers import format_past

Level = Literal["debug", "info", "warning", "error", "critical"]
_LEVELS = {level: rank for rank, level in enumerate(("debug", "info", "warning", "error", "critical"))}


_JSON = JsonFormat()


class Journal(SharedStream):
    """The stream of records. Made by `open_journal`.

    Writing a record neither blocks nor raises, whatever the output does.
    """

    log: FilteringBoundLogger
    """The logger for the service's own records: `journal.log.info("started", workload="web", pid=12)`.

    It is structlog's: `journal.log.bind(workload="web")` returns a logger whose records all have that field.
    """

    listener: Callable[[str, str, str, Mapping[str, Any], bytes], None] | None = None
    """Called with the timestamp, level, event and fields of each record of the service, and with its line of JSON,
    whatever the level."""

    def __init__(
        self,
        sink: Sink,
        formatting: Format,
        level: str,
        output: str | int | Sequence[str] | Target = "stdout",
    ) -> None:
        is_file = isinstance(output, str) and output.startswith("/")
        super().__init__(sink, formatting, _output_name(output), is_file=is_file)
        self._output = output
        self._min_level = _LEVELS[level]
        self._is_json = type(formatting) is JsonFormat
        processors = (self._add_timestamp, self._render)
        self.log = make_logger(sink.put, processors)

    # ---- structlog's processors of a record, in this order

    def _add_timestamp(self, _logger: Any, _level: str, record: EventDict) -> EventDict:
        if "timestamp" not in record:
            record["timestamp"] = timestamp_now()
        return record

    def _render(self, _logger: Any, level: str, record: EventDict) -> bytes:
        rendered = self._compose(record["timestamp"], level, str(record.get("event", "")), record)
        if rendered is None:
            raise DropEvent
        return rendered

    # ----

    def write(self, level: str, event: str, fields: Mapping[str, Any], timestamp: str | None = None) -> None:
        """Write a record of the service, as `log` does: for the many records of instances, at half the cost.

        `timestamp`: as `timestamp_now` returns it; None: now.
        """
        rendered = self._compose(timestamp or timestamp_now(), level, event, fields)
        if rendered is not None:
            self._sink.put(rendered)

    def _compose(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> bytes | None:
        """Pass a record to the listener; return what the output gets, or None if its level is too low.

        The listener gets a line of JSON, which is the output's too if that has this format: it is made once.
        """
        is_written = _LEVELS[level] >= self._min_level
        if self.listener is None:
            return self._format.render_record(timestamp, level, event, fields) if is_written else None
        line = _JSON.render_record(timestamp, level, event, fields)
        self.listener(timestamp, level, event, fields, line)
        if not is_written or self._is_json:
            return line if is_written else None
        return self._format.render_record(timestamp, level, event, fields)

    def set_level(self, level: Level) -> None:
        """From now on write records of at least this level."""
        self._min_level = _LEVELS[level]

    def record_line(self, labels: Mapping[str, Any], stream: str, line: bytes, partial: bool = False) -> None:
        """Record one line that a workload wrote to `stream` ("stdout", "stderr").

        `labels` identify the process: workload, generation, pid, and instance if there are several. The level of the
        journal does not apply: it is for the service's own records.
        """
        self.record_lines(labels, stream, ((line, partial),))

    def record_lines(self, labels: Mapping[str, Any], stream: str, lines: Iterable[Line]) -> None:
        """Record lines that were read together, with one timestamp."""
        put = self._sink.put
        for record in self._format.render_lines(timestamp_now(), labels, stream, lines):
            put(record)

    async def reopen(self) -> None:
        """Open the output file again after a log rotation has renamed it. Raises OSError."""
        # In a thread: opening reads the end of the file, and its disk may block.
        if (file := self._sink.log_file) is not None:
            await call_in_thread(file.reopen, abandon_on_cancel=True)
        elif isinstance(self._output, str) and self._output.startswith("/"):
            self._sink.switch_target(await call_in_thread(open_target, self._output, abandon_on_cancel=True))

    def set_rotation(self, rotation: Rotation) -> None:
        """Rotate the output file, if it is one, by other settings from its next record on."""
        if (file := self._sink.log_file) is not None:
            file.configure(rotation, records=True)

    async def flush(self) -> None:
        """Wait until all records so far have been written."""
        await self._sink.flush()

    async def wait_written(self) -> None:
        """Wait until all records so far have been written, or are lost; later records are not waited for."""
        await self._sink.wait_written()


def _output_name(output: str | int | Sequence[str] | Target) -> str:
    """Return the name of the output, for people."""
    match output:
        case "stdout":
            return "the standard output of the service"
        case str():
            return output.removeprefix("syslog:")
        case [command, *_]:
            return str(command)
        case _:
            return "supervisor.log_output"


@asynccontextmanager
async def open_journal(
    output: str | int | Sequence[str] | Target = "stdout",
    *,
    level: str = "info",
    format: str = "json",  # noqa: A002
    buffer_size: int = BUFFER_SIZE,
    flush_sec: float = 2.0,
    rotation: Rotation = NO_ROTATION,
) -> AsyncIterator[Journal]:
    """Open the stream of records and write to it until the block is left.

    `output` is "stdout", a path (opened for appending), a file descriptor (not taken over), "journald",
    "syslog:SOCKET", the command of a collector, which gets the records on its standard input, or an opened target.
    `level` is the lowest level of the service's own records; `format` is "json", "console", or "auto": console on a
    terminal, else JSON. `buffer_size` is how many bytes of records wait for a slow reader before some are dropped and
    counted. Leaving the block takes until the rest is written, but no longer than `flush_sec` seconds without progress,
    and half a minute in all. `rotation`: of an output file that is opened by its path.

    Raises OSError if the output cannot be opened, ValueError for an unknown level or format. Exceptions of the block
    pass unchanged, not in a group.
    """
    if format not in ("auto", "json", "console"):
        raise ValueError(f'unknown log format "{format}"; write "auto", "json" or "console"')
    if level not in _LEVELS:
        raise ValueError(f'unknown log level "{level}"; write "debug", "info", "warning" or "error"')
    collector: LogCollector | None = None
    if isinstance(output, Target):
        target = output
    elif isinstance(output, str | int):
        target = open_target(output, rotation)
    else:
        collector = LogCollector(output)
        target = collector.target
    by_record = output == "journald" or (isinstance(output, str) and output.startswith("syslog:"))
    if isinstance(target, Journald | Syslog):
        _warn_if_missing(target.path, buffer_size)
    is_json = by_record or format == "json" or (format == "auto" and not target.is_terminal)
    formatting = JsonFormat() if is_json else ConsoleFormat.for_terminal(target.is_terminal)

    def gap_record(count: int, reason: str) -> bytes:
        return formatting.render_record(timestamp_now(), "warning", "dropped", {"dropped": count, "reason": reason})

    sink = Sink(target, gap_record, buffer_size)
    try:
        async with open_background_nursery() as nursery:
            nursery.start_soon(sink.run)
            journal = Journal(sink, formatting, level, output)
            if collector is not None:
                nursery.start_soon(collector.run, partial(_log_collector, journal))
            try:
                yield journal
            finally:
                await _write_rest(sink, collector, flush_sec)
    finally:
        sink.close()
    unwritten = sink.pending_records + (0 if collector is None else collector.unread.count(b"\n"))
    if unwritten:
        reason = sink.error or "the reader did not take them in time"
        _print_warning(f"{format_past(unwritten, 'record', 'lost')}: {reason}")


async def _write_rest(sink: Sink, collector: LogCollector | None, flush_sec: float) -> None:
    """Write the records that wait, as long as there is progress, and let the collector read them; then close both."""
    if collector is not None:
        collector.stop()
    with trio.move_on_after(MAX_FLUSH_S, shield=True):
        await sink.write_rest(flush_sec)
        if collector is not None:
            sink.close()
            await collector.drain()


def _warn_if_missing(path: str, buffer_size: int) -> None:
    """Print a warning if the daemon's socket does not exist.

    The daemon may start after the service, so this is no error. The stream itself, which reports everything else,
    cannot report this.
    """
    if not os.path.exists(path):
        _print_warning(f"there is no {path} yet; records wait for it, up to {buffer_size >> 20} MiB of them")


def _print_warning(text: str) -> None:
    """Print a warning about the stream, which the stream itself cannot carry."""
    with contextlib.suppress(OSError, ValueError):  # standard error is closed
        print(f"nsupervisor: supervisor.log_output: {text}", file=sys.stderr, flush=True)


def _log_collector(journal: Journal, text: str) -> None:
    journal.log.warning("collector ended", message=text)
