"""From a workload's pipe to the journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import trio

from .framing import Framing
from .journal import Journal
from .record import Line

CHUNK = 65536
"""Bytes read at once: what a pipe holds by default (pipe(7))."""

STEP = 500
"""Lines recorded at once."""


async def capture(
    fd: int,
    journal: Journal | None,
    labels: Mapping[str, Any],
    stream: str,
    max_line: int = 16384,
    count: Callable[[bytes], None] | None = None,
) -> None:
    """Record every line that comes out of `fd` until its end, then close it.

    `fd` is the non-blocking read end of a pipe and belongs to this function from now on. `labels` and `stream` are as
    for `Journal.output`; a line longer than `max_line` bytes is recorded in pieces (see Framing). Without a journal
    everything is read and thrown away. `count` is called with each chunk. When cancelled, the beginning of a line that
    was read already is recorded as partial: its rest is still in the pipe, for a next reader. Raises OSError when
    reading fails.
    """
    framing = Framing(max_line)
    lines: list[Line] = []
    done = 0  # how many of them have been recorded

    def record(some: list[Line]) -> None:
        if journal is not None:
            journal.outputs(labels, stream, some)

    try:
        while True:
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(fd)
                continue
            if not data:
                break
            if count is not None:
                count(data)
            if journal is None:
                await trio.lowlevel.checkpoint()
                continue
            lines, done = framing.feed(data), 0
            # One step, then the others: a workload that writes without a pause must not starve them. A chunk of short
            # lines is several steps, because it becomes twenty times its size in records.
            while True:
                record(lines[done : done + STEP])
                done += STEP
                await journal.room()
                if done >= len(lines):
                    break
    except trio.Cancelled:
        record(lines[done:] + [(line, True) for line, _ in framing.end()])
        raise
    else:
        record(framing.end())
    finally:
        os.close(fd)
