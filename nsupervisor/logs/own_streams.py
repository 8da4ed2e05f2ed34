"""The service's own standard output and standard error, for workloads whose bytes go there unchanged.

A program does not get these descriptors themselves: it would share the flags of the open file description with the
service (O_NONBLOCK of one program makes the writes of all others fail), could read a terminal, and would keep them
after the service has been replaced. Its output goes through its log pipes instead, as with each other destination: so
a supervisor that was killed loses nothing, and the output follows the next one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from nsupervisor.logs.journal import Journal
from nsupervisor.logs.shared_stream import RawFormat, SharedStream
from nsupervisor.logs.sink import BUFFER_SIZE, Sink
from nsupervisor.logs.target import open_target
from nsupervisor.nurseries import open_background_nursery
from nsupervisor.terminal.numbers import format_past

_FDS = {"stdout": 1, "stderr": 2}
_NAMES = {"stdout": "the standard output of the service", "stderr": "the standard error of the service"}
_FLUSH_S = 2.0


class OwnStreams:
    """Both streams, each opened when the first workload needs it. Made by `open_own_streams`."""

    def __init__(self, journal: Journal, nursery: trio.Nursery, closed: Collection[int], buffer_size: int) -> None:
        self._journal = journal
        self._nursery = nursery
        self._closed = closed
        self._buffer_size = buffer_size
        self._streams: dict[str, SharedStream] = {}
        self.sinks: dict[str, Sink] = {}
        """The outputs that are not the journal's, by the name of the stream."""

    def get(self, name: str) -> SharedStream:
        """Return "stdout" or "stderr". Both are one if they lead to the same place, so that no line is torn there."""
        if name not in self._streams:
            self._streams[name] = self._open(name)
        return self._streams[name]

    def _open(self, name: str) -> SharedStream:
        fd = _FDS[name]
        if fd in self._closed:
            self._report(name, "is closed")
        for stream in (self._journal, *self._streams.values()):
            if stream.writes_to(fd):
                return stream.raw()
        try:
            target = open_target(fd)
        except OSError as error:
            self._report(name, f"cannot be used: {error.strerror or error}")
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            try:
                target = open_target(null)
            finally:
                os.close(null)
        sink = Sink(target, lambda _count, _reason: b"", self._buffer_size, partial(self._on_error, name))
        self.sinks[name] = sink
        self._nursery.start_soon(sink.run)
        return SharedStream(sink, RawFormat(), _NAMES[name], tick=self._journal.tick)

    def _report(self, name: str, problem: str) -> None:
        self._journal.log.error("log file", message=f"{_NAMES[name]} {problem}; what workloads write to it is lost")

    def _on_error(self, name: str, error: str | None) -> None:
        if error is None:
            self._journal.log.warning("log file", message=f"{_NAMES[name]} can be written again")
        else:
            self._journal.log.error("log file", message=f"cannot write {_NAMES[name]}: {error}")


@asynccontextmanager
async def open_own_streams(
    journal: Journal, closed: Collection[int] = (), *, buffer_size: int = BUFFER_SIZE
) -> AsyncIterator[OwnStreams]:
    """Provide both streams until the block is left, which writes what waits, as long as there is progress.

    `closed`: the standard descriptors that were closed when the service began. `buffer_size` is as for `open_journal`,
    for each stream.
    """
    streams: OwnStreams | None = None
    try:
        async with open_background_nursery() as nursery:
            streams = OwnStreams(journal, nursery, closed, buffer_size)
            try:
                yield streams
            finally:
                async with trio.open_nursery() as flushing:
                    for sink in streams.sinks.values():
                        flushing.start_soon(sink.write_rest, _FLUSH_S)
    finally:
        for name, sink in streams.sinks.items() if streams is not None else ():
            with suppress(OSError):
                sink.close()
            if lost := sink.pending_records:
                reason = sink.error or "its reader did not take them in time"
                journal.log.error(
                    "log file", message=f"{format_past(lost, 'line', 'lost')} on {_NAMES[name]}: {reason}"
                )
