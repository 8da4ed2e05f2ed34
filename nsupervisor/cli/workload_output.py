"""The output of workloads, for commands that show it: from their log files, or from the service."""

from __future__ import annotations

import json
import os
import queue
import threading
import zlib
from typing import NamedTuple

from nsupervisor.api.client import Client, ClientError
from nsupervisor.cli.log_reader import LogReader
from nsupervisor.terminal.records import format_record
from nsupervisor.terminal.style import RED

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    import re
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from typing import Any

TIMESTAMP_START = b'{"timestamp":"'
"""The beginning of each record."""
_TIMESTAMP_LENGTH = len("2026-01-31T12:00:00.000000Z")
_NEW = b'{"event":"new"}'
"""The line between the lines up to now and new ones."""


class LogLocation(NamedTuple):
    """A log file, and which of its lines are wanted."""

    path: str
    names: tuple[str, ...]
    """The instances whose output is wanted; none: everything in the file."""
    is_raw: bool | None
    """Whether its lines are no records; None: not known, because it does not exist yet."""


class LogLine(NamedTuple):
    """One line of output."""

    timestamp: str
    """In the format of records; "" in a raw file, which has none."""
    name: str
    text: str
    record: dict[str, Any]
    """The whole record; empty for a raw file."""
    json: str
    """The record as it is in the file."""

    @property
    def colour(self) -> str:
        """The colour of its text: lines of standard error are red."""
        return RED if self.record.get("stream") == "stderr" else ""

    def sort_key(self) -> str:
        """Return the position among the lines of all files; those without a time come first."""
        return self.timestamp


class Selection(NamedTuple):
    """The lines to show: those written since a time and matching a pattern; and whether as JSON."""

    since: str | None = None
    """In the format of records."""
    pattern: re.Pattern[str] | None = None
    as_json: bool = False

    def matching(self, line: LogLine) -> LogLine | None:
        """Return the line if the pattern is found in it."""
        return line if self.pattern is None or self.pattern.search(line.text) else None

    def parse(self, line: bytes, names: Collection[str], other_name: str) -> LogLine | None:
        """Parse a record; None if it is not wanted, or is not about output of `names` (none: of anything).

        other_name: the name of a line that is about no workload.
        """
        try:
            record = json.loads(line)
            name = record.get("workload") or other_name
            if record["event"] not in ("output", "dropped") or (names and name not in names):
                return None
            message = record["message"] if record["event"] == "output" else format_record(record)
            fields = record.get("fields")
            text = message if fields is None else json.dumps(fields, ensure_ascii=False)
            timestamp = str(record["timestamp"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return self.matching(LogLine(timestamp, str(name), str(text), record, line.decode("utf-8", "replace")))


class FileSource:
    """Reads one log file and its rotated files; opened when it exists."""

    def __init__(self, location: LogLocation, wanted: Selection) -> None:
        self.path, self.names, self.is_raw = location
        self.wanted = wanted
        self.reader: LogReader | None = None
        self.is_broken = self.is_ended = False

    def close(self) -> None:
        """Close the file of this source."""
        if self.reader is not None:
            self.reader.close()

    def last_lines(self, count: int | None, follow: bool) -> list[LogLine]:
        """Return the last lines, oldest first; None: all. If nothing follows, an incomplete line counts as a line.

        Raises OSError, EOFError or zlib.error if the file cannot be read.
        """
        self.reader = LogReader(self.path)
        lines: list[LogLine] = []
        for line in self.reader.read_backwards(is_complete=not follow):
            if count == 0:
                break
            if self.wanted.since and line.startswith(TIMESTAMP_START) and self._timestamp(line) < self.wanted.since:
                break
            if (selected := self._select(line)) is not None:
                lines.append(selected)
                if len(lines) == count:
                    break
        return lines[::-1]

    def new_lines(self) -> Iterator[LogLine]:
        """Yield the lines that have been added since the last call. A file that does not exist yet has none."""
        if self.reader is None:
            try:
                self.reader = LogReader(self.path)
            except OSError:
                return
        for line in self.reader.read_new_lines():
            if (selected := self._select(line)) is not None:
                yield selected

    def _timestamp(self, line: bytes) -> str:
        return line[len(TIMESTAMP_START) : len(TIMESTAMP_START) + _TIMESTAMP_LENGTH].decode("latin-1")

    def _select(self, line: bytes) -> LogLine | None:
        """Parse a line; None if it is not wanted, or of another program in the file of the supervisor's stream."""
        if self.is_raw is None:
            self.is_raw = not line.startswith(TIMESTAMP_START)
        if self.is_raw:
            name = self.names[0] if self.names else os.path.basename(self.path)
            return self.wanted.matching(LogLine("", name, line.decode("utf-8", "replace"), {}, ""))
        return self.wanted.parse(line, self.names, os.path.basename(self.path))


class TailSource:
    """Reads the latest output that the service keeps of instances without a log file."""

    is_raw = False

    def __init__(self, client: Client, names: Sequence[str], wanted: Selection) -> None:
        self.path = client.socket_path
        self.names, self.wanted = tuple(names), wanted
        self.is_broken = self.is_ended = False
        self._client = client
        self._new: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        """Lines as they come; None: there will be no more."""

    def close(self) -> None:
        """Do nothing: the connection ends with the process."""

    def last_lines(self, count: int | None, follow: bool) -> list[LogLine]:
        """Return the last lines, oldest first; None: all that are kept. Raises ClientError."""
        is_filtered = self.wanted.since is not None or self.wanted.pattern is not None
        lines = self._client.logs(self.names, None if is_filtered else count, follow)
        found = []
        for line in lines:
            if line == _NEW:
                break
            selected = self._select(line)
            if selected is not None and selected.timestamp >= (self.wanted.since or ""):
                found.append(selected)
        if follow:
            # The other sources are files, which are looked at now and then; so something must wait for this one.
            threading.Thread(target=self._receive, args=(lines,), name="output", daemon=True).start()
        return merge(found, count)

    def _receive(self, lines: Iterable[bytes]) -> None:
        try:
            for line in lines:
                self._new.put(line)
        except ClientError:  # the service was killed, which `new_lines` shows as its end
            pass
        self._new.put(None)

    def new_lines(self) -> Iterator[LogLine]:
        """Yield the lines that have come since the last call; `is_ended`: there will be no more."""
        while not self._new.empty():
            line = self._new.get()
            if line is None:
                self.is_ended = True
            elif (selected := self._select(line)) is not None:
                yield selected

    def _select(self, line: bytes) -> LogLine | None:
        return self.wanted.parse(line, (), "supervisor")


Source = FileSource | TailSource


def merge(lines: Sequence[LogLine], count: int | None) -> list[LogLine]:
    """Merge the lines of all sources by time, and return the last `count`; None: all. Those without a time come first.

    Of these, none is left out: `count` was applied where they come from.
    """
    timed = sorted((line for line in lines if line.timestamp), key=LogLine.sort_key)
    return [line for line in lines if not line.timestamp] + timed[0 if count is None else max(len(timed) - count, 0) :]


def locate(instance: dict[str, Any]) -> tuple[list[LogLocation], bool]:
    """Return where the output of an instance is: its files, and whether the service keeps the latest of it.

    instance: an object `History` of the API.
    """
    log, names = instance["log"], (instance["name"],)
    paths = {"": log["file"]} if log.get("files") is None else log["files"]  # version 0.1.0 has one file
    files = [LogLocation(path, names, log["format"] == "raw") for path in dict.fromkeys(paths.values()) if path]
    is_all_in_file = set(log["streams"]) == {"stdout", "stderr"}
    if log["stream"] is not None and not is_all_in_file:
        files.append(LogLocation(log["stream"], names, False))
    return files, bool(log.get("tail"))  # version 0.1.0 keeps nothing


def last_output(client: Client, instance: dict[str, Any], count: int) -> list[LogLine]:
    """Return the last lines of an instance, an object `History`; none if they cannot be read."""
    files, has_tail = locate(instance)
    sources: list[Source] = [FileSource(location, Selection()) for location in files]
    if has_tail:
        sources.append(TailSource(client, (instance["name"],), Selection()))
    lines: list[LogLine] = []
    for source in sources:
        try:
            lines += source.last_lines(count, False)
        except (OSError, EOFError, zlib.error, ClientError):
            continue  # `nsupervisor logs` says why
        finally:
            source.close()
    return merge(lines, count)[-count:]
