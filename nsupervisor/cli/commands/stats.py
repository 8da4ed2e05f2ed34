"""The command `nsupervisor stats`."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.commands.status import COLOURS
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import print_json
from nsupervisor.cli.rates import HEADS, SORT_COLUMNS, compute_rates, sort_instances, table_cells
from nsupervisor.terminal.style import FAINT, colorize, has_colour
from nsupervisor.terminal.table import format_table

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from typing import Any

_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "min": 60.0}


def parse_interval(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Parse a length of time ("1s", "500ms", "2min", "1.5") to seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|min|)", value, re.ASCII)
    number = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0.01 <= number <= 86400:
        raise click.BadParameter(f'"{value}" is not a time from 10ms to 1440min; write for example "1s" or "500ms"')
    return number


interval_option = click.option(
    "--interval",
    callback=parse_interval,
    default="1s",
    show_default=True,
    metavar="TIME",
    help="Time between two samples.",
)


@click.command(short_help="Show what the workloads use.")
@socket_option
@json_option
@click.option("--follow", is_flag=True, help="Repeat until Ctrl-C.")
@interval_option
@click.option("--sort", "by", type=click.Choice(list(SORT_COLUMNS)), help="The largest first; else as configured.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def stats(
    socket_path: str, as_json: bool, follow: bool, interval: float, by: str | None, names: tuple[str, ...]
) -> None:
    """Show the resources that the workloads use now, measured between two samples.

    CPU% is of one processor. THROTTLED% is the share of the periods with runnable tasks that the CPU limit cut short.
    CPU-WAIT%, MEM-WAIT% and IO-WAIT% are the share of time in which a task waited for the resource (pressure).

    NAME is a workload ("web": all its instances), an instance ("web@2"), a group ("group/batch": all in it) or a glob
    in quotes ("web*").
    """
    client = Client(socket_path)
    before = client.stats(names)
    first = True
    while first or follow:
        time.sleep(interval)
        after = client.stats(names)
        measured = compute_rates(before, after)
        measured = sort_instances(measured, by) if by else measured
        before = after
        if as_json and follow:
            print(json.dumps(measured), flush=True)
        elif as_json:
            print_json(measured)
        else:
            print("\n".join([*([] if first else [""]), *table_lines(measured)]), flush=follow)
        first = False


def table_lines(measured: list[dict[str, Any]]) -> list[str]:
    """Return the table, as wide as standard output permits."""
    colour = has_colour(sys.stdout)

    def paint(column: int, value: str, padded: str) -> str:
        return colorize(padded, FAINT if column == -1 else COLOURS.get(value, "") if column == 1 else "", colour)

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    return format_table(HEADS, map(table_cells, measured), right=range(2, len(HEADS)), width=width, paint=paint)
