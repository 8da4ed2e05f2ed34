"""The command `nsupervisor top`."""

from __future__ import annotations

import os
import sys
import time

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.commands.stats import interval_option, table_lines
from nsupervisor.cli.options import socket_option
from nsupervisor.cli.rates import SORT_COLUMNS, compute_rates, sort_instances


@click.command(short_help="Watch what the workloads use.")
@socket_option
@interval_option
@click.option(
    "--sort", "by", type=click.Choice(list(SORT_COLUMNS)), default="cpu", show_default=True, help="The largest first."
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
def top(socket_path: str, interval: float, by: str, names: tuple[str, ...]) -> None:
    """Watch the resources that the workloads use: a live table with the columns of `stats`.

    \b
    Keys:  c  sort by processor time     m  by memory
           p  by processes               i  by bytes from and to disks
           t  by network traffic         w  by waiting (pressure)
           s  by state, problems first   n  by name
           r  the other way round        q  quit
           arrows, page up, page down, home, end  scroll

    If standard output is not a terminal, the table is printed once.
    """
    client = Client(socket_path)
    before = client.stats(names)
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        time.sleep(interval)
        print("\n".join(table_lines(sort_instances(compute_rates(before, client.stats(names)), by))))
        return
    from nsupervisor.cli.screen import Keyboard, Screen  # imported late, because rich takes longer than all the rest

    with Keyboard() as keys, Screen(by) as screen:
        wait = min(interval, 0.2)  # show the first numbers soon
        while True:
            deadline = time.monotonic() + wait
            while (remaining := deadline - time.monotonic()) > 0:
                for key in keys.read_keys(remaining):
                    if key == "q":
                        return
                    screen.handle_key(key)
            after = client.stats(names)
            screen.show_sample(compute_rates(before, after))
            before, wait = after, interval
