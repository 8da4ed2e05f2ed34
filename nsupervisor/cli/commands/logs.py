"""The command `nsupervisor logs`."""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.log_reader import LogReader, open_log, sleep_until_poll
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import print_message
from nsupervisor.terminal.records import format_record
from nsupervisor.terminal.style import BOLD, FAINT, RED, colorize, escape_control, has_colour
from nsupervisor.terminal.times import format_time, local_time

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

_TIMESTAMP_START = b'{"timestamp":"'
_TIMESTAMP_LENGTH = len("2026-01-31T12:00:00.000000Z")


@click.command(short_help="Show what workloads have written.")
@socket_option
@click.option("-f", "--follow", is_flag=True, help="Continue with new lines.")
@click.option(
    "-n", "--number", type=click.IntRange(0), help="The number of last lines; default 100, or all with --since."
)
@click.option("--since", metavar="TIME", help='What was written since: "5min", or "2026-01-31 12:00".')
@click.option("--grep", metavar="RE", help="Lines in which the regular expression is found.")
@json_option
@click.argument("names", metavar="[NAME]...", nargs=-1)
def logs(
    socket_path: str,
    follow: bool,
    number: int | None,
    since: str | None,
    grep: str | None,
    as_json: bool,
    names: tuple[str, ...],
) -> int | None:
    """Show what NAME has written to its log file, including rotated and compressed files; without NAME, all workloads.

    The lines of several are merged by time. Times are local.

    NAME is a workload ("web": all its instances), an instance ("web@2") or a glob in quotes ("web*"). A NAME with a
    slash in it is the path of a log file; then no supervisor is needed. If a workload has no file of its own, the file
    of the supervisor's stream is read, if that is one. With --json, the records are printed unchanged, one a line.

    Examples: nsupervisor logs -f web; nsupervisor logs --since 5min --grep 'error|warning' web db
    """
    wanted = Selection(
        since=_parse_time(since) if since else None, pattern=_parse_pattern(grep) if grep else None, as_json=as_json
    )
    count = number if number is not None else None if since else 100
    locations, without_file = _locate(socket_path, names)
    if without_file:
        print_message(_no_file_message(without_file, len(locations)))
    option = "--json" if as_json else "--since" if since else ""
    if option:
        locations = _without_raw(locations, option)
    has_others = len({name for location in locations for name in location.names}) > 1 or len(locations) > 1
    printer = Printer(wanted, has_others)
    sources = [Source(location, wanted) for location in locations]
    problem = not sources
    lines: list[LogLine] = []
    for source in sources:
        try:
            lines += source.last_lines(count, follow)
        except (OSError, EOFError, zlib.error) as error:  # gzip raises the last two, and OSError without an errno
            if isinstance(error, FileNotFoundError) and (follow or has_others):
                continue  # it has written nothing yet
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            print_message(f"cannot read {source.path}: {reason}; {_hint(error)}")
            source.is_broken = problem = True
            source.close()
    for line in _merge(lines, count):
        print(printer.format(line))
    sources = [source for source in sources if not source.is_broken]
    while follow and sources:
        sys.stdout.flush()
        sleep_until_poll()
        for line in sorted((line for source in sources for line in source.new_lines()), key=LogLine.sort_key):
            print(printer.format(line))
    for source in sources:
        source.close()
    return 1 if problem else None


class LogLocation(NamedTuple):
    """A log file, and which of its lines are wanted."""

    path: str
    names: tuple[str, ...]
    """The instances whose output is wanted; none: everything in the file."""
    is_raw: bool | None
    """Whether its lines are no records; None: not known, because it does not exist yet."""


def _merge(lines: Sequence[LogLine], count: int | None) -> list[LogLine]:
    """Merge the lines of all files by time, and return the last `count`; None: all. Lines without a time come first."""
    timed = sorted((line for line in lines if line.timestamp), key=LogLine.sort_key)
    return [line for line in lines if not line.timestamp] + timed[0 if count is None else max(len(timed) - count, 0) :]


def _locate(socket_path: str, names: Sequence[str]) -> tuple[list[LogLocation], list[str]]:
    """Return the files to read, each once, and the instances without one."""
    wanted: dict[tuple[str, bool | None], dict[str, None]] = {}
    without_file: dict[str, None] = {}
    for name in names or ["*"]:
        if "/" in name:
            wanted.setdefault((name, _is_raw_file(name)), {})
            continue
        for instance in Client(socket_path).history(name):
            log = instance["log"]
            path = log["file"] if log["file"] is not None else log["stream"]
            if path is None:
                without_file[instance["name"]] = None
            else:
                is_raw = log["file"] is not None and log["format"] == "raw"
                wanted.setdefault((path, is_raw), {})[instance["name"]] = None
    return [LogLocation(path, tuple(found), is_raw) for (path, is_raw), found in wanted.items()], [*without_file]


def _is_raw_file(path: str) -> bool | None:
    try:
        with open_log(path) as file:
            return file.read(len(_TIMESTAMP_START)) != _TIMESTAMP_START
    except OSError:  # opening it again reports the error
        return None


def _no_file_message(names: Sequence[str], others: int) -> str:
    """Explain where the output of instances without a file is."""
    workload = names[0].partition("@")[0]
    subject = f"{names[0]} has" if len(names) == 1 else f"{', '.join(names)} have"
    return (
        f"{subject} no log file: what is written goes to the supervisor's own output (log_output), where there is no "
        'file to read. Look there, for instance with journalctl -u nsupervisor; or write log = { stdout = "both", '
        f'stderr = "both" }} under [workload.{workload}]'
    )


def _without_raw(locations: Sequence[LogLocation], option: str) -> list[LogLocation]:
    """Leave out raw files, which an option needs more of; say so, or refuse the option if there are no others."""
    raw = [location.path for location in locations if location.is_raw]
    if not raw:
        return list(locations)
    kind = "is raw: its lines have" if len(raw) == 1 else "are raw: their lines have"
    text = f"{', '.join(raw)} {kind} neither times nor fields, so {option}"
    if len(raw) == len(locations):
        raise click.UsageError(f"{text} is not available")
    print_message(f"{text} leaves {'it' if len(raw) == 1 else 'them'} out")
    return [location for location in locations if not location.is_raw]


def _hint(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "nothing has been written to it yet, or it is on another host"
    return (
        "run as a user who may read it, for instance with sudo" if isinstance(error, PermissionError) else "see there"
    )


def _parse_time(since: str) -> str:
    """Return a time in the format of records."""
    from nsupervisor.config.units import parse_duration  # needs attrs, which --help can do without

    try:
        time = datetime.now(UTC) - timedelta(seconds=parse_duration(since))
    except ValueError:
        try:
            time = datetime.fromisoformat(since).astimezone(UTC)
        except ValueError:
            message = f'{since!r} is neither a duration nor a time; write for example "5min" or "2026-01-31 12:00"'
            raise click.BadParameter(message, param_hint="--since") from None
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _parse_pattern(grep: str) -> re.Pattern[str]:
    try:
        return re.compile(grep)
    except re.error as error:
        raise click.BadParameter(f"{grep!r}: {error}", param_hint="--grep") from None


class Selection(NamedTuple):
    """The lines to show: those written since a time and matching a pattern; and whether as JSON."""

    since: str | None
    pattern: re.Pattern[str] | None
    as_json: bool


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

    def sort_key(self) -> str:
        """Return the position among the lines of all files; those without a time come first."""
        return self.timestamp


class Source:
    """Reads one log file and its rotated files; opened when it exists."""

    def __init__(self, location: LogLocation, wanted: Selection) -> None:
        self.path, self.names, self.is_raw = location
        self.wanted = wanted
        self.reader: LogReader | None = None
        self.is_broken = False

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
            if self.wanted.since and line.startswith(_TIMESTAMP_START) and self._timestamp(line) < self.wanted.since:
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
        return line[len(_TIMESTAMP_START) : len(_TIMESTAMP_START) + _TIMESTAMP_LENGTH].decode("latin-1")

    def _select(self, line: bytes) -> LogLine | None:
        """Parse a line; None if it is not wanted, or of another program in the file of the supervisor's stream."""
        if self.is_raw is None:
            self.is_raw = not line.startswith(_TIMESTAMP_START)
        if self.is_raw:
            name = self.names[0] if self.names else os.path.basename(self.path)
            return self._matching(LogLine("", name, line.decode("utf-8", "replace"), {}, ""))
        try:
            record = json.loads(line)
            name = record.get("workload") or os.path.basename(self.path)
            if record["event"] not in ("output", "dropped") or (self.names and name not in self.names):
                return None
            message = record["message"] if record["event"] == "output" else format_record(record)
            fields = record.get("fields")
            text = message if fields is None else json.dumps(fields, ensure_ascii=False)
            json_text = line.decode("utf-8", "replace")
            return self._matching(LogLine(str(record["timestamp"]), str(name), str(text), record, json_text))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _matching(self, line: LogLine) -> LogLine | None:
        return line if self.wanted.pattern is None or self.wanted.pattern.search(line.text) else None


class Printer:
    """Formats lines. With several sources each line has a name, in a column as wide as the longest so far."""

    def __init__(self, wanted: Selection, has_others: bool) -> None:
        self.as_json, self.has_others = wanted.as_json, has_others
        self._colour = has_colour(sys.stdout)
        self._is_terminal = sys.stdout.isatty()
        self._now = datetime.now().astimezone()
        self._name_width = 10

    def format(self, line: LogLine) -> str:
        """Format a line for people, or as JSON."""
        if self.as_json:
            return line.json
        if not line.record:
            return self._with_name(line.name, escape_control(line.text) if self._is_terminal else line.text)
        time = colorize(format_time(local_time(line.record), self._now), FAINT, self._colour)
        end = "…" if line.record.get("partial") else ""
        mark = "(again) " if line.record.get("duplicate") else ""
        colour = RED if line.record.get("stream") == "stderr" else ""
        return self._with_name(
            line.name, f"{time}  {colorize(f'{mark}{escape_control(line.text)}{end}', colour, self._colour)}"
        )

    def _with_name(self, name: str, text: str) -> str:
        if not self.has_others:
            return text
        self._name_width = max(self._name_width, len(name))
        return f"{colorize(f'{escape_control(name):<{self._name_width}}', BOLD, self._colour)}  {text}"
