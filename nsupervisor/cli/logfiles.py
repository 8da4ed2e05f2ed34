"""A log file with those put aside from it: its last lines, and those that come.

`web.log` is written to, `web.log.1` was put aside last; they may be compressed, and are renamed while we read. So a
name says nothing for long, and a time not enough (two files may well have been written in the same tick of the clock):
where we are is the file that we hold open, and its neighbours are found from where it stands at that moment.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_BLOCK = 1 << 18
_TRIES = 100
POLL = 0.1
"""Seconds between looks for new lines."""


Family = list[tuple[str, os.stat_result]]
"""Names and what stands there, the newest first: the file in use, if there is one, and those put aside."""


class Reader:
    """Reads one such family of files. It holds the file it has come to open, so that no rename can hide it."""

    def __init__(self, path: str) -> None:
        """Raise FileNotFoundError where there is neither the file nor one put aside, other OSErrors as they come."""
        self.path = path
        self._rest = b""
        try:
            self._file = opened(path)
        except FileNotFoundError:
            newest = self._neighbour(None, 0)
            if newest is None:
                raise
            self._file = newest

    def close(self) -> None:
        """Close the file that we have come to."""
        self._file.close()

    def backwards(self, *, ended: bool = False) -> Iterator[bytes]:
        """All lines, the last one first, without their ends. A last line whose end has not come is kept for `news`; or,
        where `ended`, is the first."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            lines = _backwards(self._file, end)
            self._rest = next(lines)
            if ended and self._rest:
                yield self._rest
            yield from lines
        finally:
            self._file.seek(end)
        file = self._neighbour(self._file, 1)
        while file is not None:
            with file:
                lines = _backwards(file, file.seek(0, os.SEEK_END))
                yield from (line for place, line in enumerate(lines) if place or line)
                file = self._neighbour(file, 1)

    def news(self) -> list[bytes]:
        """The lines that have come since the last call."""
        if not _is_packed(self._file) and os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # somebody has cut it
        data = self._rest + self._file.read()
        while newer := self._neighbour(self._file, -1):
            data += self._file.read()  # what came before it was put aside
            self._file.close()
            self._file = newer
            data += newer.read()
        *lines, self._rest = data.split(b"\n")
        return lines

    def _neighbour(self, file: BinaryIO | None, step: int) -> BinaryIO | None:
        """The next older file (`step` 1), or newer one (-1), or the newest (no file, 0), opened; None if there is none.

        Also None where they are renamed faster than we can look: the next call has better luck, and nothing is lost.
        """
        if file is not None and step < 0 and self._is_in_use(file):
            return None
        for _ in range(_TRIES):
            family = self._family()
            # What has gone was the oldest.
            place = 0 if file is None else next((n for n, one in enumerate(family) if _is(file, *one)), len(family))
            place += step
            if not 0 <= place < len(family):
                return None
            name, found = family[place]
            try:
                file_there = opened(name)
            except FileNotFoundError:
                continue
            if os.path.samestat(os.fstat(file_there.fileno()), found):
                return file_there
            file_there.close()
        return None

    def _is_in_use(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _family(self) -> Family:
        """As it was at one moment: files only ever move on to higher numbers, so where each name stood for the same
        file in two looks, all did at once between them. Empty where no two looks agree."""
        before = self._look()
        for _ in range(_TRIES):
            after = self._look()
            if [(name, found.st_ino) for name, found in before] == [(name, found.st_ino) for name, found in after]:
                return after
            before = after
        return []

    def _look(self) -> Family:
        directory, name = os.path.split(self.path)
        try:
            others = os.listdir(directory or ".")
        except FileNotFoundError:
            return []
        numbers: dict[int, str] = {}
        for other in others:
            match = re.fullmatch(re.escape(name) + r"\.([0-9]+)(\.gz)?", other)
            if match and (match[2] is None or int(match[1]) not in numbers):
                numbers[int(match[1])] = os.path.join(directory, other)
        family = []
        for path in [self.path, *(numbers[number] for number in sorted(numbers))]:
            with contextlib.suppress(FileNotFoundError):
                family.append((path, os.stat(path)))
        return family


def _is(file: BinaryIO, name: str, found: os.stat_result) -> bool:
    """Whether that is the file which we hold, maybe compressed meanwhile."""
    ours = os.fstat(file.fileno())
    if os.path.samestat(ours, found):
        return True
    if not name.endswith(".gz") or _is_packed(file) or found.st_mtime_ns != ours.st_mtime_ns:
        return False
    # RFC 1952, 2.3.1: it ends with the CRC-32 and the length of what was compressed.
    try:
        with open(name, "rb") as packed:
            packed.seek(-8, os.SEEK_END)
            end = packed.read()
    except OSError:
        return False
    return end[4:] == (ours.st_size & 0xFFFFFFFF).to_bytes(4, "little") and end[:4] == _crc(file)


def _crc(file: BinaryIO) -> bytes:
    import zlib

    crc = place = 0
    while data := os.pread(file.fileno(), _BLOCK, place):
        crc = zlib.crc32(data, crc)
        place += len(data)
    return crc.to_bytes(4, "little")


def _is_packed(file: BinaryIO) -> bool:
    return not isinstance(file, io.BufferedReader)  # as `open` makes them


def opened(name: str) -> BinaryIO:
    """A log file, whether it is compressed or not. Raises OSError."""
    if name.endswith(".gz"):
        import gzip  # few have such files

        return gzip.open(name, "rb")  # type: ignore[return-value]
    return open(name, "rb")


def _backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines of a file from `end` on to its beginning, first what stands behind the last newline, maybe nothing."""
    rest = b""
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        first, *lines = (file.read(end - start) + rest).split(b"\n")
        yield from reversed(lines)
        rest, end = first, start
    yield rest


def wait() -> None:
    """A moment, until there may be more."""
    time.sleep(POLL)
