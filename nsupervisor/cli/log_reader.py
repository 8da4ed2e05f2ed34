"""Read a log file together with its rotated files: the last lines, and new lines.

`web.log` is written to, `web.log.1` was rotated last; they may be compressed, and are renamed while they are read. So a
name identifies a file only for a moment, and a time is not enough (two files may have been written in the same tick of
the clock). The reader's position is the file that it holds open; its neighbours are found from where that file is at
the moment.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_BLOCK_SIZE = 1 << 18
_MAX_TRIES = 100
POLL_INTERVAL_S = 0.1
"""Seconds between checks for new lines."""


LogFiles = list[tuple[str, os.stat_result]]
"""Names and the status of their files, the newest first: the file in use, if it exists, and the rotated ones."""


class LogReader:
    """Reads a log file and its rotated files.

    It keeps the current file open, so that no rename can hide it.
    """

    def __init__(self, path: str) -> None:
        """Raise FileNotFoundError if neither the file nor a rotated one exists; pass on other OSErrors."""
        self.path = path
        self._partial_line = b""
        try:
            self._file = open_log(path)
        except FileNotFoundError:
            newest = self._open_neighbour(None, 0)
            if newest is None:
                raise
            self._file = newest

    def close(self) -> None:
        """Close the current file."""
        self._file.close()

    def read_backwards(self, *, is_complete: bool = False) -> Iterator[bytes]:
        """Yield all lines, the last one first, without their ends.

        An incomplete last line is kept for `read_new_lines`; if `is_complete`, it is yielded first instead.
        """
        end = self._file.seek(0, os.SEEK_END)
        try:
            lines = _read_backwards(self._file, end)
            self._partial_line = next(lines)
            if is_complete and self._partial_line:
                yield self._partial_line
            yield from lines
        finally:
            self._file.seek(end)
        file = self._open_neighbour(self._file, 1)
        while file is not None:
            with file:
                lines = _read_backwards(file, file.seek(0, os.SEEK_END))
                yield from (line for place, line in enumerate(lines) if place or line)
                file = self._open_neighbour(file, 1)

    def read_new_lines(self) -> list[bytes]:
        """Return the lines that have been added since the last call."""
        if not _is_compressed(self._file) and os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # the file has been truncated
        data = self._partial_line + self._file.read()
        while newer := self._open_neighbour(self._file, -1):
            data += self._file.read()  # lines that were written before it was rotated
            self._file.close()
            self._file = newer
            data += newer.read()
        *lines, self._partial_line = data.split(b"\n")
        return lines

    def _open_neighbour(self, file: BinaryIO | None, step: int) -> BinaryIO | None:
        """Open the next older file (`step` 1), the next newer (-1), or the newest (no file, 0); None if there is none.

        Also None if they are renamed faster than they can be listed: then the next call may succeed, and no line is
        lost.
        """
        if file is not None and step < 0 and self._is_in_use(file):
            return None
        for _ in range(_MAX_TRIES):
            family = self._list_consistently()
            # A file that is not listed any more was the oldest.
            index = (
                0
                if file is None
                else next(
                    (position for position, entry in enumerate(family) if _is_same_file(file, *entry)), len(family)
                )
            )
            index += step
            if not 0 <= index < len(family):
                return None
            name, expected_status = family[index]
            try:
                candidate = open_log(name)
            except FileNotFoundError:
                continue
            if os.path.samestat(os.fstat(candidate.fileno()), expected_status):
                return candidate
            candidate.close()
        return None

    def _is_in_use(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _list_consistently(self) -> LogFiles:
        """List the files as they were at one moment. Empty if no two listings agree.

        Files are only ever renamed to higher numbers. So if each name had the same file in two listings, all of them
        existed under these names at once between the two.
        """
        before = self._list_once()
        for _ in range(_MAX_TRIES):
            after = self._list_once()
            if [(name, status.st_ino) for name, status in before] == [(name, status.st_ino) for name, status in after]:
                return after
            before = after
        return []

    def _list_once(self) -> LogFiles:
        directory, name = os.path.split(self.path)
        try:
            names = os.listdir(directory or ".")
        except FileNotFoundError:
            return []
        numbers: dict[int, str] = {}
        for other_name in names:
            match = re.fullmatch(re.escape(name) + r"\.([0-9]+)(\.gz)?", other_name)
            if match and (match[2] is None or int(match[1]) not in numbers):
                numbers[int(match[1])] = os.path.join(directory, other_name)
        family = []
        for path in [self.path, *(numbers[number] for number in sorted(numbers))]:
            with contextlib.suppress(FileNotFoundError):
                family.append((path, os.stat(path)))
        return family


def _is_same_file(file: BinaryIO, name: str, status: os.stat_result) -> bool:
    """Return whether `name` is the file that is open, possibly compressed meanwhile."""
    own_status = os.fstat(file.fileno())
    if os.path.samestat(own_status, status):
        return True
    if not name.endswith(".gz") or _is_compressed(file) or status.st_mtime_ns != own_status.st_mtime_ns:
        return False
    # RFC 1952, 2.3.1: the compressed file ends with the CRC-32 and the length of its content.
    try:
        with open(name, "rb") as packed:
            packed.seek(-8, os.SEEK_END)
            end = packed.read()
    except OSError:
        return False
    return end[4:] == (own_status.st_size & 0xFFFFFFFF).to_bytes(4, "little") and end[:4] == _checksum(file)


def _checksum(file: BinaryIO) -> bytes:
    import zlib

    crc = offset = 0
    while data := os.pread(file.fileno(), _BLOCK_SIZE, offset):
        crc = zlib.crc32(data, crc)
        offset += len(data)
    return crc.to_bytes(4, "little")


def _is_compressed(file: BinaryIO) -> bool:
    return not isinstance(file, io.BufferedReader)  # the class that `open` returns


def open_log(name: str) -> BinaryIO:
    """Open a log file, compressed or not. Raises OSError."""
    if name.endswith(".gz"):
        import gzip  # imported late, because few log files are compressed

        return gzip.open(name, "rb")  # type: ignore[return-value]
    return open(name, "rb")


def _read_backwards(file: BinaryIO, end: int) -> Iterator[bytes]:
    """Yield the lines of a file from `end` to its beginning, first the text after the last newline, possibly empty."""
    incomplete = b""
    while end:
        start = max(0, end - _BLOCK_SIZE)
        file.seek(start)
        first, *lines = (file.read(end - start) + incomplete).split(b"\n")
        yield from reversed(lines)
        incomplete, end = first, start
    yield incomplete


def sleep_until_poll() -> None:
    """Sleep until the next check for new lines."""
    time.sleep(POLL_INTERVAL_S)
