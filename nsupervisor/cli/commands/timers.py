"""The command `nsupervisor timers`."""

from __future__ import annotations

import sys
import time

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import print_json
from nsupervisor.cli.timers import next_times, timer_lines
from nsupervisor.terminal.style import has_colour, terminal_width


@click.command(short_help="Show when timers run next, and when they ran.")
@socket_option
@json_option
@click.option(
    "--check", "expression", metavar="EXPR", help="Print the next times of a calendar expression or cron line."
)
@click.option("--iterations", type=click.IntRange(1, 1000), default=5, show_default=True, help="How many, for --check.")
@click.option("--timezone", metavar="ZONE", help="The time zone of --check; else that of this host.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def timers(
    socket_path: str,
    as_json: bool,
    expression: str | None,
    iterations: int,
    timezone: str | None,
    names: tuple[str, ...],
) -> None:
    """Show the timers of all workloads, or of some: the next one first. Times are local.

    RESULT is how the last run ended, or why it did not begin. With --check the times of an expression, without a
    supervisor.

    Examples: nsupervisor timers; nsupervisor timers --check "Mon..Fri 06:00"; nsupervisor timers --check "*/5 * * * *"
    """
    if expression is not None:
        from nsupervisor.service.platform.timer_zones import find_zone, local_zone

        try:
            zone = find_zone(timezone) if timezone else local_zone()
            for line in next_times(expression, iterations, zone, time.time()):
                print(line)
        except ValueError as error:
            raise click.UsageError(f'"{expression}" {error}') from None
        except LookupError as error:
            raise click.UsageError(str(error.args[0])) from None
        return
    found = Client(socket_path).timers(names)
    if as_json:
        print_json(found)
    else:
        print("\n".join(timer_lines(found, terminal_width(), has_colour(sys.stdout))))
