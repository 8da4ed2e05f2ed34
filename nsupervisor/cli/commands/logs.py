"""The command `nsupervisor logs`."""

from __future__ import annotations

import re
import sys
import zlib
from datetime import UTC, datetime, timedelta

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.log_reader import open_log, sleep_until_poll
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import print_message
from nsupervisor.cli.workload_output import (
    TIMESTAMP_START,
    FileSource,
    LogLine,
    LogLocation,
    Selection,
    TailSource,
    locate,
    merge,
)
from nsupervisor.terminal.style import BOLD, FAINT, colorize, escape_control, has_colour
from nsupervisor.terminal.times import format_time, local_time

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsupervisor.cli.workload_output import Source


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
    """Show what NAME has written; without NAME, all workloads. The lines of several are merged by time, which is local.

    A workload's log file is read with its rotated and compressed files. If it has none, the file of the supervisor's
    stream is read; if that is no file, the supervisor keeps the latest lines (log.tail, 64 KiB).

    NAME is a workload ("web": all its instances), an instance ("web@2") or a glob in quotes ("web*"). A NAME with a
    slash in it is the path of a log file; then no supervisor is needed. With --json, the records are printed unchanged,
    one a line.

    Examples: nsupervisor logs -f web; nsupervisor logs --since 5min --grep 'error|warning' web db
    """
    wanted = Selection(
        since=_parse_time(since) if since else None, pattern=_parse_pattern(grep) if grep else None, as_json=as_json
    )
    count = number if number is not None else None if since else 100
    sources, without = _locate(socket_path, names, wanted)
    if without:
        print_message(_nothing_message(without))
    option = "--json" if as_json else "--since" if since else ""
    if option:
        sources = _without_raw(sources, option)
    has_others = len({name for source in sources for name in source.names or (source.path,)}) > 1
    printer = Printer(wanted, has_others)
    problem = not sources
    lines: list[LogLine] = []
    for source in sources:
        try:
            lines += source.last_lines(count, follow)
        except (OSError, EOFError, zlib.error) as error:  # gzip raises the last two, and OSError without an errno
            if isinstance(error, FileNotFoundError) and (follow or len(sources) > 1):
                continue  # it has written nothing yet
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            print_message(f"cannot read {source.path}: {reason}; {_hint(error)}")
            source.is_broken = problem = True
            source.close()
    for line in merge(lines, count):
        print(printer.format(line))
    while follow and (sources := [source for source in sources if not source.is_broken and not source.is_ended]):
        sys.stdout.flush()
        sleep_until_poll()
        for line in sorted((line for source in sources for line in source.new_lines()), key=LogLine.sort_key):
            print(printer.format(line))
    for source in sources:
        source.close()
    return 1 if problem else None


def _locate(socket_path: str, names: Sequence[str], wanted: Selection) -> tuple[list[Source], list[str]]:
    """Return where to read, each place once, and the instances of which nothing is kept."""
    files: dict[tuple[str, bool | None], dict[str, None]] = {}
    tails: dict[str, None] = {}
    without: dict[str, None] = {}
    client = Client(socket_path)
    for name in names or ["*"]:
        if "/" in name:
            files.setdefault((name, _is_raw_file(name)), {})
            continue
        for instance in client.history(name):
            locations, has_tail = locate(instance)
            for location in locations:
                files.setdefault((location.path, location.is_raw), {})[instance["name"]] = None
            if has_tail:
                tails[instance["name"]] = None
            elif not locations:
                without[instance["name"]] = None
    sources: list[Source] = [
        FileSource(LogLocation(path, tuple(found), is_raw), wanted) for (path, is_raw), found in files.items()
    ]
    return sources + ([TailSource(client, tuple(tails), wanted)] if tails else []), [*without]


def _is_raw_file(path: str) -> bool | None:
    try:
        with open_log(path) as file:
            return file.read(len(TIMESTAMP_START)) != TIMESTAMP_START
    except OSError:  # opening it again reports the error
        return None


def _nothing_message(names: Sequence[str]) -> str:
    """Explain that nothing is kept of what instances write."""
    workload = names[0].partition("@")[0]
    verb = "writes" if len(names) == 1 else "write"
    return (
        f"nothing is kept of what {', '.join(names)} {verb}; to change that, write "
        f'log = {{ stdout = "file", stderr = "file" }} under [workload.{workload}]'
    )


def _without_raw(sources: Sequence[Source], option: str) -> list[Source]:
    """Leave out raw files, which an option needs more of; say so, or refuse the option if there are no others."""
    raw = [source.path for source in sources if source.is_raw]
    if not raw:
        return list(sources)
    kind = "is raw: its lines have" if len(raw) == 1 else "are raw: their lines have"
    text = f"{', '.join(raw)} {kind} neither times nor fields, so {option}"
    if len(raw) == len(sources):
        raise click.UsageError(f"{text} is not available")
    print_message(f"{text} leaves {'it' if len(raw) == 1 else 'them'} out")
    return [source for source in sources if not source.is_raw]


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
        return self._with_name(
            line.name, f"{time}  {colorize(f'{mark}{escape_control(line.text)}{end}', line.colour, self._colour)}"
        )

    def _with_name(self, name: str, text: str) -> str:
        if not self.has_others:
            return text
        self._name_width = max(self._name_width, len(name))
        return f"{colorize(f'{escape_control(name):<{self._name_width}}', BOLD, self._colour)}  {text}"
