"""The command `nsupervisor events`."""

from __future__ import annotations

import json
import sys
from collections import deque
from datetime import datetime
from itertools import takewhile

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.terminal.lines import RecordLines
from nsupervisor.terminal.style import has_colour, terminal_width

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

LEVELS = ("debug", "info", "warning", "error", "critical")


@click.command(short_help="Show what the service has done.")
@socket_option
@click.option("-f", "--follow", is_flag=True, help="Continue with new records until the service ends.")
@click.option("-n", "--number", type=click.IntRange(0), help="Only the last records; with -f, then new ones.")
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
    number: int | None,
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

    Examples: nsupervisor events -f -n 10; nsupervisor events --event action --event exited web
    """
    lines = RecordLines(has_colour(sys.stdout), terminal_width())
    kinds = kinds or (("action",) if actions else ())
    levels = LEVELS[LEVELS.index(level) :] if level else LEVELS

    def is_selected(record: dict[str, Any]) -> bool:
        is_wanted = record["level"] in levels and (not actions or record.get("action") in actions)
        return is_wanted or record["event"] == "dropped"

    def show(record: dict[str, Any]) -> None:
        text = json.dumps(record) if as_json else lines.format(record, datetime.now().astimezone())
        print(text, flush=follow)

    records = Client(socket_path).events(names, kinds, follow, mark=number is not None)
    if number is not None:
        stored = takewhile(lambda record: record["event"] != "new", records)
        for record in deque(filter(is_selected, stored), number):
            show(record)
    for record in filter(is_selected, records):
        show(record)
