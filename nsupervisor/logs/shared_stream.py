"""A stream that several workloads write to: the journal, or the service's own standard output or standard error."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from nsupervisor.logs.blockage import describe_blockage
from nsupervisor.logs.fairness import LoopTick
from nsupervisor.logs.record import Line
from nsupervisor.logs.sink import Delivery, Sink


class Format(Protocol):
    """Renders records and lines of output for a stream."""

    def render_record(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> bytes:
        """Render one record of the service."""

    def render_lines(
        self,
        timestamp: str,
        labels: Mapping[str, Any],
        stream: str,
        lines: Iterable[Line],
        seq: int | None = None,
        parse_json: bool = False,
    ) -> list[bytes]:
        """Render lines that a workload wrote, numbered from `seq`."""

    def render_text(
        self, timestamp: str, labels: Mapping[str, Any], stream: str, text: bytes, seq: int, count: int
    ) -> bytes:
        """Render `count` complete lines with newlines between them."""


class SharedStream:
    """The part of a stream that captures use. Nothing that is written to it is torn."""

    def __init__(
        self, sink: Sink, formatting: Format, name: str, *, is_file: bool = False, tick: LoopTick | None = None
    ) -> None:
        """`name` is for people; `is_file`: the output is a file, which no process has to read.

        `tick` is that of another stream of this event loop.
        """
        self._sink = sink
        self._format = formatting
        self._name = name
        self._is_file = is_file
        self.tick = tick or LoopTick()
        """Tracks the current tick of the event loop, for tasks that make records of much output."""

    @property
    def format(self) -> Format:
        """The format in which records are written."""
        return self._format

    @property
    def is_raw(self) -> bool:
        """Whether it gets the bytes unchanged, instead of records."""
        return isinstance(self._format, RawFormat)

    @property
    def dropped(self) -> int:
        """The number of records dropped for lack of room, since the start."""
        return self._sink.dropped

    @property
    def error(self) -> str | None:
        """Why the output cannot be written just now ("No space left on device"), or None."""
        return self._sink.error

    def drop_if_full(self, count: int) -> bool:
        """Return whether `count` records of a non-blocking workload need not be made.

        If so, they are counted as dropped.
        """
        return self._sink.drop_if_full(count)

    async def deliver(self, records: bytes, count: int, *, block: bool, delivery: Delivery | None = None) -> bool:
        """Queue finished records of a workload; return when they need not be waited for any longer (see `Sink`).

        Returns whether they were not dropped.
        """
        return await self._sink.deliver(records, count, block=block, delivery=delivery)

    def abandon(self, delivery: Delivery) -> None:
        """Let `deliver` return, if it waits, and not wait from now on."""
        self._sink.abandon(delivery)

    def describe_blockage(self) -> str:
        """Describe why records wait."""
        return describe_blockage(self._sink.error, self._name, is_file=self._is_file)

    def writes_to(self, fd: int) -> bool:
        """Return whether the output is the file, pipe, terminal or socket behind `fd`."""
        own = self._sink.target_fd
        return own >= 0 and os.path.samestat(os.fstat(own), os.fstat(fd))

    def raw(self) -> SharedStream:
        """Return the same output as a stream of bytes, whose lines do not tear the records between them."""
        return SharedStream(self._sink, RawFormat(), self._name, is_file=self._is_file, tick=self.tick)


class RawFormat:
    """Renders lines as the bytes that they are. A stream of bytes has no records."""

    def render_record(self, _timestamp: str, _level: str, _event: str, _fields: Mapping[str, Any]) -> bytes:
        """Return no bytes, as there are no records."""
        return b""

    def render_lines(
        self,
        _timestamp: str,
        _labels: Mapping[str, Any],
        _stream: str,
        lines: Iterable[Line],
        _seq: int | None = None,
        _parse_json: bool = False,
    ) -> list[bytes]:
        """Return each line with its newline; the pieces of a line that was cut, without."""
        return [line if partial else line + b"\n" for line, partial in lines]

    def render_text(
        self, _timestamp: str, _labels: Mapping[str, Any], _stream: str, text: bytes, _seq: int, _count: int
    ) -> bytes:
        """Return the lines, each with its newline."""
        return text + b"\n"
