"""A log file with those put aside from it: its last lines, and those that come.

`web.log` is written to, `web.log.1` was put aside last; they may be compressed, and are renamed while we read.
"""

from __future__ import annotations

import os
import re
import time

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_BLOCK = 1 << 18
POLL = 0.1
"""Seconds between looks for new lines."""


def aside(path: str) -> list[str]:
    """The files put aside, the newest first."""
    directory, name = os.path.split(path)
    try:
        names = os.listdir(directory or ".")
    except FileNotFoundError:
        return []
    found = {}
    for other in names:
        match = re.fullmatch(re.escape(name) + r"\.([0-9]+)(\.gz)?", other)
        if match and (match[2] is None or match[1] not in found):
            found[match[1]] = os.path.join(directory, other)
    return [found[number] for number in sorted(found, key=int)]


class Reader:
    """Reads one such family of files. It holds the file in use open, so that no rename can hide what is in it."""

    def __init__(self, path: str) -> None:
        """Raise FileNotFoundError where there is neither the file nor one put aside, other OSErrors as they come."""
        self.path = path
        self._file: BinaryIO | None = None
        self._rest = b""
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - for as long as we follow
        except FileNotFoundError:
            if not aside(path):
                raise

    def close(self) -> None:
        """Close the file in use."""
        if self._file is not None:
            self._file.close()

    def backwards(self) -> Iterator[bytes]:
        """All lines, the last one first, without their ends. A last line whose end has not come is kept for `news`."""
        if self._file is not None:
            end = self._file.seek(0, os.SEEK_END)
            try:
                lines = _backwards(self._file, end)
                self._rest = next(lines)
                yield from lines
            finally:
                self._file.seek(end)
        for name in aside(self.path):
            try:
                with _opened(name) as file:
                    if name.endswith(".gz"):
                        lines = reversed(file.read().split(b"\n"))
                    else:
                        lines = _backwards(file, file.seek(0, os.SEEK_END))
                    yield from (line for place, line in enumerate(lines) if place or line)
            except FileNotFoundError:
                continue  # it has gone meanwhile, and those behind it have, too

    def news(self) -> list[bytes]:
        """The lines that have come since the last call."""
        data = self._rest
        for file in self._behind():
            data += file.read()
        *lines, self._rest = data.split(b"\n")
        return lines

    def _behind(self) -> Iterator[BinaryIO]:
        """The file that was in use, and where it has been put aside, those that came after it."""
        old = self._file
        if old is not None:
            if os.fstat(old.fileno()).st_size < old.tell():  # somebody has cut it
                old.seek(0)
            yield old
        try:
            new = open(self.path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            return
        if old is not None and os.path.samestat(os.fstat(old.fileno()), os.fstat(new.fileno())):
            new.close()
            return
        if old is not None:
            yield old  # what came into it before it was put aside
            age = os.fstat(old.fileno()).st_mtime_ns
            for name in reversed(aside(self.path)):
                try:
                    if os.stat(name).st_mtime_ns > age:
                        with _opened(name) as file:
                            yield file
                except FileNotFoundError:
                    continue
            old.close()
        self._file = new
        yield new


def _opened(name: str) -> BinaryIO:
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
