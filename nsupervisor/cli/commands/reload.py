"""The command `nsupervisor reload [CONFIG]`."""

from __future__ import annotations

import json
import sys

import click

from nsupervisor.api.client import Client, WrongFileError
from nsupervisor.cli.commands.control import run_command
from nsupervisor.cli.commands.plan import plan_lines, print_problems, read_source
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import DONE, FAILED, print_json, print_message
from nsupervisor.terminal.style import GREEN, colorize, escape_control, has_colour, terminal_width

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


@click.command(short_help="Apply a changed configuration.")
@socket_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as plan does.")
@json_option
@click.option(
    "--workload",
    "names",
    metavar="NAME",
    multiple=True,
    help="Have the program of this workload read its own configuration again; may be given several times.",
)
@click.argument("config", metavar="[CONFIG]", required=False)
def reload(socket_path: str, dry_run: bool, as_json: bool, names: tuple[str, ...], config: str | None) -> int:
    """Make the running service use CONFIG, or read its own file again, as SIGHUP does; wait until it is done.

    Only differences are applied, and only workloads that need a new process are restarted (see plan). A workload that
    an operator has stopped stays stopped. A file with any problem changes nothing. CONFIG is then the service's file,
    until it ends.

    With --workload, the configuration stays as it is, and the named programs are asked to read theirs again: by
    reload_signal or exec_reload. NAME is as for start. This waits for the commands, and for a program that reports when
    it is done (type = "notify-reload").

    Interrupted by Ctrl-C, this command ends; the service finishes the reload. With --json, one object a line.
    """
    if names:
        if config is not None or dry_run:
            raise click.UsageError("--workload goes with neither a file nor --dry-run")
        return run_command(socket_path, as_json, "reload", names)
    client = Client(socket_path)
    try:
        source = read_source(config) if config is not None else {}
        if dry_run:
            result = client.plan(source)
            if as_json:
                print_json(result)
            else:
                print("\n".join(plan_lines(result, has_colour(sys.stdout), terminal_width())))
            return DONE
        return follow_reload(client.reload(source), as_json)
    except WrongFileError as error:
        return print_problems(error, as_json)


def follow_reload(messages: Iterable[dict[str, Any]], as_json: bool) -> int:
    """Print each step of a reload as it is done; return the exit status."""
    try:
        for message in messages:
            if as_json:
                print(json.dumps(message), flush=True)
            else:
                _print_message(message)
            if message["event"] == "end":
                return DONE if message["ok"] else FAILED
    except KeyboardInterrupt:
        print_message("interrupted; the service finishes what it has begun: nsupervisor events -f")
        raise
    print_message("the supervisor ended before all was done")
    return FAILED


def _print_message(message: dict[str, Any]) -> None:
    colour = has_colour(sys.stdout)
    if message["event"] == "plan":
        print("\n".join(plan_lines(message, colour, terminal_width())), flush=True)
    elif message["event"] == "done":
        text = f"{message['name']}: {message['do']}: {message['state']}" + (
            f", {message['message']}" if message["message"] else ""
        )
        if message["ok"]:
            print(colorize(escape_control(text), GREEN, colour), flush=True)
        else:
            print_message(f"{text}; more with: nsupervisor why {message['name']}")
