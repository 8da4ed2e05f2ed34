"""`nsupervisor logs`."""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from datetime import UTC, datetime, timedelta

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.logfiles import Reader, opened, wait
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import BOLD, FAINT, RED, coloured, has_colour, printable, say
from nsupervisor.cli.records import clock, moment, text

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_STAMP = b'{"timestamp":"'
_STAMP_LENGTH = len("2026-01-31T12:00:00.000000Z")


@click.command(short_help="Show what workloads have written.")
@socket_option
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines as they come.")
@click.option("-n", "--number", type=click.IntRange(0), help="So many of the last lines; default 100, or all --since.")
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
    """Show what NAME has written to its log file, from the files put aside, too, also compressed ones.

    NAME is a workload ("web": all its instances), an instance ("web@2") or a glob in quotes ("web*"). One with a slash
    in it is the path of such a file, for which no supervisor is needed. Where a workload has no file of its own, the
    file of the supervisor's stream is read, if that is one. With --json, the records as they are, one a line.

    Examples: nsupervisor logs -f web; nsupervisor logs --since 5min --grep 'error|warning' web db
    """
    start = _time(since) if since else None
    pattern = _pattern(grep) if grep else None
    count = number if number is not None else None if since else 100
    sources = []
    for name in names:
        places = [_file(name)] if "/" in name else [_place(one) for one in Client(socket_path).history(name)]
        for place in places:
            if isinstance(place, str):
                say(place)
            else:
                sources.append(place)
    several = len(sources) > 1
    problem = len(sources) == 0
    shown = [Source(*place, several, start, pattern, as_json) for place in sources]
    open_ones = []
    for source in shown:
        try:
            source.open()
            lines = source.last(count, follow)
        except (OSError, EOFError, zlib.error) as error:  # the last two, and words without a number, are of gzip's
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            say(f"cannot read {source.path}: {reason}; {_hint(error)}")
            problem = True
            continue
        open_ones.append(source)
        for line in lines:
            print(line)
    while follow and open_ones:
        sys.stdout.flush()
        wait()
        for source in open_ones:
            for line in source.news():
                print(line)
    for source in open_ones:
        source.close()
    return 1 if problem else None


Place = tuple[str, str, bool]
"""A file, the instance whose output is wanted ("": all that is in it), and whether it is raw."""


def _file(path: str) -> Place:
    raw = True
    try:
        with opened(path) as file:
            raw = file.read(len(_STAMP)) != _STAMP
    except OSError:
        pass  # opening it again tells
    return path, "", raw


def _place(one: dict[str, Any]) -> Place | str:
    """Where an instance's output is; or what to do, where it cannot be had."""
    name, log = one["name"], one["log"]
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


def _time(since: str) -> str:
    """A time as records have it."""
    from nsupervisor.config.units import parse_duration  # needs attrs, which --help can do without

    try:
        when = datetime.now(UTC) - timedelta(seconds=parse_duration(since))
    except ValueError:
        try:
            when = datetime.fromisoformat(since).astimezone(UTC)
        except ValueError:
            text_ = f'{since!r} is neither a duration nor a time; write for example "5min" or "2026-01-31 12:00"'
            raise click.BadParameter(text_, param_hint="--since") from None
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _pattern(grep: str) -> re.Pattern[str]:
    try:
        return re.compile(grep)
    except re.error as error:
        raise click.BadParameter(f"{grep!r}: {error}", param_hint="--grep") from None


class Source:
    """The lines of one instance, or of one file, as they are shown."""

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
        """`several`: others are shown, too, so each line has a name. `since`: no record from before."""
        if raw and (since or as_json):
            option = "--json" if as_json else "--since"
            raise click.UsageError(f"{path} is raw: its lines have neither times nor fields, so {option} cannot be had")
        self.path, self.name, self.raw, self.several = path, name, raw, several
        self.since, self.pattern, self.as_json = since, pattern, as_json
        self.reader: Reader | None = None
        self._colour = has_colour(sys.stdout)
        self._now = datetime.now().astimezone()

    def open(self) -> None:
        """Open the file. Raises OSError."""
        self.reader = Reader(self.path)

    def close(self) -> None:
        """Close it."""
        assert self.reader is not None
        self.reader.close()

    def last(self, count: int | None, follow: bool) -> list[str]:
        """The last lines, oldest first; None: all. A line without its end is one where nothing follows."""
        assert self.reader is not None
        found: list[str] = []
        for line in self.reader.backwards(ended=not follow):
            if count == 0:
                break
            if self.since and line.startswith(_STAMP) and self._stamp(line) < self.since:
                break
            if (shown := self._shown(line)) is not None:
                found.append(shown)
                if len(found) == count:
                    break
        return found[::-1]

    def news(self) -> Iterator[str]:
        """Those that have come since."""
        assert self.reader is not None
        for line in self.reader.news():
            if (shown := self._shown(line)) is not None:
                yield shown

    def _stamp(self, line: bytes) -> str:
        return line[len(_STAMP) : len(_STAMP) + _STAMP_LENGTH].decode("latin-1")

    def _shown(self, line: bytes) -> str | None:
        if self.raw:
            words = line.decode("utf-8", "replace")
            if self.pattern is not None and not self.pattern.search(words):
                return None
            return self._headed(printable(words) if sys.stdout.isatty() else words)
        try:
            record = json.loads(line)
            if record["event"] not in ("output", "dropped") or (self.name and record.get("workload") != self.name):
                return None
            said = record["message"] if record["event"] == "output" else text(record)
        except (ValueError, KeyError, TypeError):
            return None  # the file of the stream may have other things in it
        fields = record.get("fields")
        words = said if fields is None else json.dumps(fields, ensure_ascii=False)
        if self.pattern is not None and not self.pattern.search(words):
            return None
        if self.as_json:
            return line.decode("utf-8", "replace")
        time = coloured(clock(moment(record), self._now), FAINT, self._colour)
        end = "…" if record.get("partial") else ""
        again = "(again) " if record.get("duplicate") else ""
        shown = coloured(
            f"{again}{printable(words)}{end}", RED if record.get("stream") == "stderr" else "", self._colour
        )
        return self._headed(f"{time}  {shown}")

    def _headed(self, line: str) -> str:
        if not self.several:
            return line
        return f"{coloured(f'{self.name or os.path.basename(self.path):<10}', BOLD, self._colour)}  {line}"
