"""The latest output of each workload that has no log file, in small files in the runtime directory.

They are for people who ask what a program has written last (`nsupervisor logs`, `status`, `why`), whatever became of
the supervisor's stream. They survive the death of the supervisor, but not a restart of the host.

An instance has two files, `NAME` and the older `NAME.1`, of whole JSON records. A record goes to the first with one
write, without a descriptor that stays open: thousands of workloads may write now and then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs

TAILS_DIRECTORY = "tails"
"""Directory within the runtime directory for the files of all instances."""
MAX_TOTAL_BYTES = 32 << 20
"""Most bytes of all files together; while there are many instances, each keeps less than its `log.tail`."""
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW

TailListener = Callable[[str, bytes], None]
"""Called with the name of an instance and new records of it, each a line."""


def _ignore_problem(_message: str) -> None:
    pass


@attrs.define(eq=False)
class Tail:
    """The latest records of one instance. For the trio thread; nothing waits, nothing raises."""

    name: str
    max_bytes: int
    """Most bytes to keep (`log.tail`)."""
    _owner: Tails
    _is_whole: bool = False
    """Whether the file ends with a whole record: a supervisor that was killed may have left a part of one."""

    def append(self, records: bytes) -> None:
        """Keep some records, each a line of JSON, and pass them to the listeners."""
        if records:
            for listener in self._owner.listeners:
                listener(self.name, records)
            try:
                self._write(records)
            except OSError as error:
                self._owner.report(f"cannot keep the latest output of {self.name}: {error.strerror}")

    def _write(self, records: bytes) -> None:
        half = self._owner.bytes_of(self) // 2
        if len(records) > half:
            start = records.find(b"\n", len(records) - half - 1) + 1
            if start == len(records):  # the last record alone is larger
                start = records.rfind(b"\n", 0, -1) + 1
            records = records[start:]
            self._owner.remove_files(self.name)  # what is kept has no gap
        path = f"{self._owner.directory}/{self.name}"
        fd = self._owner.open(path)
        try:
            size = os.fstat(fd).st_size
            if size and size + len(records) > half:
                os.rename(path, f"{path}.1")
                os.close(fd)
                fd = self._owner.open(path)
            elif size and not self._is_whole and os.pread(fd, 1, size - 1) != b"\n":
                os.write(fd, b"\n")
            self._is_whole = os.write(fd, records) == len(records)
        finally:
            os.close(fd)

    def read(self) -> list[bytes]:
        """Return the records that are kept, oldest first, each with its newline."""
        lines: list[bytes] = []
        for path in (self._owner.directory / f"{self.name}.1", self._owner.directory / self.name):
            with suppress(OSError):
                lines += path.read_bytes().splitlines(keepends=True)
        # A line of which a full disk, or the end of a supervisor, kept out a part is none.
        return [line for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]


class Tails:
    """The latest output of all instances."""

    def __init__(self, directory: Path, report: Callable[[str], None] = _ignore_problem) -> None:
        """Keep files in `directory`, which is made when it is needed. `report` gets each different problem once."""
        self.directory = directory
        self._report = report
        self._reported: set[str] = set()
        self._tails: dict[str, Tail] = {}
        self.listeners: set[TailListener] = set()

    def get(self, name: str, max_bytes: int) -> Tail:
        """Return the latest records of an instance, of which to keep this many bytes from now on."""
        tail = self._tails.setdefault(name, Tail(name, max_bytes, self))
        tail.max_bytes = max_bytes
        return tail

    def read(self, name: str) -> list[bytes]:
        """Return the records that are kept of an instance, as `Tail.read` does; none if it is not known."""
        tail = self._tails.get(name)
        return tail.read() if tail is not None else []

    def remove(self, name: str) -> None:
        """Forget an instance, and remove its files."""
        self._tails.pop(name, None)
        self.remove_files(name)

    def remove_files(self, name: str) -> None:
        """Remove what is kept of an instance."""
        for path in (self.directory / name, self.directory / f"{name}.1"):
            with suppress(OSError):
                path.unlink()

    def remove_others(self) -> None:
        """Remove the files of instances that are not known: an earlier supervisor had others."""
        known = {file for name in self._tails for file in (name, f"{name}.1")}
        with suppress(OSError):
            for entry in os.listdir(self.directory):
                if entry not in known:
                    with suppress(OSError):
                        (self.directory / entry).unlink()

    def bytes_of(self, tail: Tail) -> int:
        """Return how many bytes an instance may keep now."""
        return min(tail.max_bytes, MAX_TOTAL_BYTES // max(len(self._tails), 1))

    def open(self, path: str) -> int:
        """Open a file of an instance. Raises OSError."""
        try:
            return os.open(path, _FLAGS, 0o600)
        except FileNotFoundError:
            self.directory.mkdir(mode=0o700)
            return os.open(path, _FLAGS, 0o600)

    def report(self, message: str) -> None:
        """Report a problem, unless it has been reported already."""
        if message not in self._reported:
            self._reported.add(message)
            self._report(message)
