"""The command `nsupervisor logs`."""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from datetime import UTC, datetime, timedelta

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.log_reader import LogReader, open_log, sleep_until_poll
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import BOLD, FAINT, RED, colorize, escape_control, has_colour, print_message
from nsupervisor.cli.records import format_record, format_time, local_time

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterator
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
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def logs(
    socket_path: str,
    follow: bool,
    number: int | None,
    since: str | None,
    grep: str | None,
    as_json: bool,
    names: tuple[str, ...],
) -> int | None:
    """Show what NAME has written to its log file, including rotated and compressed files.

    NAME is a workload ("web": all its instances), an instance ("web@2") or a glob in quotes ("web*"). A NAME with a
    slash in it is the path of a log file; then no supervisor is needed. If a workload has no file of its own, the file
    of the supervisor's stream is read, if that is one. With --json, the records are printed unchanged, one a line.

    Examples: nsupervisor logs -f web; nsupervisor logs --since 5min --grep 'error|warning' web db
    """
    start = _parse_time(since) if since else None
    pattern = _parse_pattern(grep) if grep else None
    count = number if number is not None else None if since else 100
    sources = []
    for name in names:
        locations = (
            [_locate_file(name)]
            if "/" in name
            else [_locate_instance(instance) for instance in Client(socket_path).history(name)]
        )
        for location in locations:
            if isinstance(location, str):
                print_message(location)
            else:
                sources.append(location)
    several = len(sources) > 1
    problem = len(sources) == 0
    all_sources = [Source(*location, several, start, pattern, as_json) for location in sources]
    open_sources = []
    for source in all_sources:
        try:
            source.open()
            lines = source.last_lines(count, follow)
        except (OSError, EOFError, zlib.error) as error:  # gzip raises the last two, and OSError without an errno
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            print_message(f"cannot read {source.path}: {reason}; {_hint(error)}")
            problem = True
            continue
        open_sources.append(source)
        for line in lines:
            print(line)
    while follow and open_sources:
        sys.stdout.flush()
        sleep_until_poll()
        for source in open_sources:
            for line in source.new_lines():
                print(line)
    for source in open_sources:
        source.close()
    return 1 if problem else None


LogLocation = tuple[str, str, bool]
"""A file, the instance whose output is wanted ("": everything in the file), and whether it is raw."""


def _locate_file(path: str) -> LogLocation:
    raw = True
    try:
        with open_log(path) as file:
            raw = file.read(len(_TIMESTAMP_START)) != _TIMESTAMP_START
    except OSError:
        pass  # opening it again reports the error
    return path, "", raw


def _locate_instance(instance: dict[str, Any]) -> LogLocation | str:
    """Return where an instance's output is; or, if it cannot be read, what to do."""
    name, log = instance["name"], instance["log"]
    if log["file"] is not None:
        return log["file"], name, log["format"] == "raw"
    if log["stream"] is not None:
        return log["stream"], name, False
    workload = name.partition("@")[0]
    return (
        f"{name} has no log file: what it writes goes to the supervisor's own output (log_output), where there is no "
        f'file to read. Look there, for instance with journalctl -u nsupervisor; or write log = {{ stdout = "both", '
        f'stderr = "both" }} under [workload.{workload}]'
    )


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


class Source:
    """The lines of one instance, or of one file, formatted for output."""

    def __init__(
        self,
        path: str,
        name: str,
        raw: bool,
        several: bool,
        since: str | None,
        pattern: re.Pattern[str] | None,
        as_json: bool,
    ) -> None:
        """Raise UsageError for an option that a raw file does not support.

        `has_others`: other sources are shown, too, so each line gets a name. `since`: omit records from before.
        """
        if raw and (since or as_json):
            option = "--json" if as_json else "--since"
            raise click.UsageError(
                f"{path} is raw: its lines have neither times nor fields, so {option} is not available"
            )
        self.path, self.name, self.raw, self.has_others = path, name, raw, several
        self.since, self.pattern, self.as_json = since, pattern, as_json
        self.reader: LogReader | None = None
        self._colour = has_colour(sys.stdout)
        self._now = datetime.now().astimezone()

    def open(self) -> None:
        """Open the file. Raises OSError."""
        self.reader = LogReader(self.path)

    def close(self) -> None:
        """Close the file of this source."""
        assert self.reader is not None
        self.reader.close()

    def last_lines(self, count: int | None, follow: bool) -> list[str]:
        """Return the last lines, oldest first; None: all. If nothing follows, an incomplete line counts as a line."""
        assert self.reader is not None
        lines: list[str] = []
        for line in self.reader.read_backwards(is_complete=not follow):
            if count == 0:
                break
            if self.since and line.startswith(_TIMESTAMP_START) and self._timestamp(line) < self.since:
                break
            if (shown := self._format(line)) is not None:
                lines.append(shown)
                if len(lines) == count:
                    break
        return lines[::-1]

    def new_lines(self) -> Iterator[str]:
        """Yield the lines that have been added since the last call."""
        assert self.reader is not None
        for line in self.reader.read_new_lines():
            if (shown := self._format(line)) is not None:
                yield shown

    def _timestamp(self, line: bytes) -> str:
        return line[len(_TIMESTAMP_START) : len(_TIMESTAMP_START) + _TIMESTAMP_LENGTH].decode("latin-1")

    def _format(self, line: bytes) -> str | None:
        if self.raw:
            words = line.decode("utf-8", "replace")
            if self.pattern is not None and not self.pattern.search(words):
                return None
            return self._with_name(escape_control(words) if sys.stdout.isatty() else words)
        try:
            record = json.loads(line)
            if record["event"] not in ("output", "dropped") or (self.name and record.get("workload") != self.name):
                return None
            message = record["message"] if record["event"] == "output" else format_record(record)
            fields = record.get("fields")
            words = message if fields is None else json.dumps(fields, ensure_ascii=False)
        except (ValueError, KeyError, TypeError, RecursionError):
            return None  # the file of the stream may contain lines of other programs
        if self.pattern is not None and not self.pattern.search(words):
            return None
        if self.as_json:
            return line.decode("utf-8", "replace")
        time = colorize(format_time(local_time(record), self._now), FAINT, self._colour)
        end = "…" if record.get("partial") else ""
        duplicate_mark = "(again) " if record.get("duplicate") else ""
        shown = colorize(
            f"{duplicate_mark}{escape_control(words)}{end}",
            RED if record.get("stream") == "stderr" else "",
            self._colour,
        )
        return self._with_name(f"{time}  {shown}")

    def _with_name(self, line: str) -> str:
        if not self.has_others:
            return line
        return f"{colorize(f'{self.name or os.path.basename(self.path):<10}', BOLD, self._colour)}  {line}"
