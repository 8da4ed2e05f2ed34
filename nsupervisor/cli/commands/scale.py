"""The command `nsupervisor scale NAME=NUMBER`."""

from __future__ import annotations

import click

from nsupervisor.api.client import Client, WrongFileError
from nsupervisor.cli.commands.plan import print_problems
from nsupervisor.cli.commands.reload import follow_reload
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import USAGE, print_message


@click.command(short_help="Run another number of instances.")
@socket_option
@json_option
@click.argument("numbers", metavar="NAME=NUMBER…", nargs=-1, required=True)
def scale(socket_path: str, as_json: bool, numbers: tuple[str, ...]) -> int:
    """Run NUMBER instances of the workload NAME; wait until it is done.

    The instances with the highest numbers stop, or new ones start; the others do not notice. The file does not change,
    and is not read. The number holds until `instances` in the file changes, also after the service was killed or
    upgraded; an ordered stop of the service ends it. With --json, one object a line, as reload prints.
    """
    counts: dict[str, int] = {}
    for text in numbers:
        name, _, number = text.partition("=")
        if not name or not (number.isascii() and number.isdecimal()) or len(number) > 9:
            print_message(f'"{text}" is no number of instances; write for example web=6')
            return USAGE
        counts[name] = int(number)
    try:
        return follow_reload(Client(socket_path).scale(counts), as_json)
    except WrongFileError as error:
        return print_problems(error, as_json)
