"""`nsupervisor reload [CONFIG]`."""

from __future__ import annotations

import json
import sys

import click

from nsupervisor.api.client import Client, WrongFileError
from nsupervisor.cli.commands.plan import lines, read, refuse
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import DONE, FAILED, GREEN, coloured, emit_json, has_colour, printable, say

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from typing import Any


@click.command(short_help="Go over to a changed configuration.")
@socket_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as plan does.")
@json_option
@click.argument("config", metavar="[CONFIG]", required=False)
def reload(socket_path: str, dry_run: bool, as_json: bool, config: str | None) -> int:
    """Have the running service go over to CONFIG, or read its own file again, as SIGHUP does; wait until it is done.

    Only what differs is changed, and only what needs a new process is restarted (see plan). What somebody has stopped
    stays stopped. A file with any problem changes nothing. CONFIG is then the service's file, until it ends.

    Interrupted by Ctrl-C, this command ends; the service finishes what it has begun. With --json, one object a line.
    """
    client = Client(socket_path)
    try:
        source = read(config) if config is not None else {}
        if dry_run:
            found = client.plan(source)
            emit_json(found) if as_json else print("\n".join(lines(found, has_colour(sys.stdout))))
            return DONE
        return _follow(client, source, as_json)
    except WrongFileError as error:
        return refuse(error, as_json)


def _follow(client: Client, source: dict[str, str], as_json: bool) -> int:
    try:
        for told in client.reload(source):
            if as_json:
                print(json.dumps(told), flush=True)
            else:
                _show(told)
            if told["event"] == "end":
                return DONE if told["ok"] else FAILED
    except KeyboardInterrupt:
        say("interrupted; the service finishes what it has begun: nsupervisor events -f")
        raise
    say("the supervisor ended before all was done")
    return FAILED


def _show(told: dict[str, Any]) -> None:
    colour = has_colour(sys.stdout)
    if told["event"] == "plan":
        print("\n".join(lines(told, colour)), flush=True)
    elif told["event"] == "done":
        text = f"{told['name']}: {told['do']}: {told['state']}" + (f", {told['message']}" if told["message"] else "")
        if told["ok"]:
            print(coloured(printable(text), GREEN, colour), flush=True)
        else:
            say(f"{text}; more with: nsupervisor why {told['name']}")
