"""The command `nsupervisor events`."""

from __future__ import annotations

import json
import sys
from datetime import datetime

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import BOLD, FAINT, RED, YELLOW, colorize, escape_control, has_colour
from nsupervisor.cli.records import format_record, format_time, local_time

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

_COLOURS = {"warning": YELLOW, "error": RED, "critical": RED}
LEVELS = ("debug", "info", "warning", "error", "critical")
_FIRST_WIDTH = 10
_EVENT_WIDTH = len("not started")


@click.command(short_help="Show what the service has done.")
@socket_option
@click.option("-f", "--follow", is_flag=True, help="Continue with new records until the service ends.")
@click.option(
    "--event", "kinds", metavar="EVENT", multiple=True, help='Only these records: "action", "state", "exited", …'
)
@click.option("--action", "actions", metavar="ACTION", multiple=True, help='Only these actions: "restart", "kill", …')
@click.option("--level", type=click.Choice(list(LEVELS)), help="Only records of this level, and worse ones.")
@json_option
@click.argument("names", metavar="[NAME]...", nargs=-1)
def events(
    socket_path: str,
    follow: bool,
    kinds: tuple[str, ...],
    actions: tuple[str, ...],
    level: str | None,
    as_json: bool,
    names: tuple[str, ...],
) -> None:
    """Show the service's own records, oldest first: what happened, what it did, and why.

    NAME is a workload ("web": all its instances), an instance ("web@2"), a group ("group/batch": all in it) or a glob
    in quotes ("web*"); without one, all. The service keeps the latest; all of them are in its log. With --json, one
    object a line, as in the log.

    Examples: nsupervisor events -f; nsupervisor events --event action --event exited web
    """
    line = json.dumps if as_json else RecordLines(has_colour(sys.stdout)).format
    kinds = kinds or (("action",) if actions else ())
    levels = LEVELS[LEVELS.index(level) :] if level else LEVELS
    for record in Client(socket_path).events(names, kinds, follow):
        is_selected = record["level"] in levels and (not actions or record.get("action") in actions)
        if is_selected or record["event"] == "dropped":
            print(line(record), flush=follow)


class RecordLines:
    """Formats records as aligned lines. The column of names grows with the longest one so far."""

    def __init__(self, colour: bool) -> None:
        self.colour = colour
        self.width = _FIRST_WIDTH

    def format(self, record: dict[str, Any]) -> str:
        """Format a record for people."""
        name = record.get("workload") or record.get("group", "-")
        self.width = max(self.width, len(name))
        time = colorize(format_time(local_time(record), datetime.now().astimezone()), FAINT, self.colour)
        event = colorize(f"{record['event']:<{_EVENT_WIDTH}}", _COLOURS.get(record["level"], ""), self.colour)
        details = escape_control(format_record(record)).replace("\n", " ")
        return f"{time}  {colorize(f'{name:<{self.width}}', BOLD, self.colour)}  {event}  {details}".rstrip()
