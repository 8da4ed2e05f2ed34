"""The commands `nsupervisor start|stop|restart|kill|freeze|thaw|signal NAME…`."""

from __future__ import annotations

import sys

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import json_option, names_argument, socket_option
from nsupervisor.cli.output import DONE, FAILED, print_json, print_message
from nsupervisor.terminal.style import GREEN, colorize, escape_control, has_colour

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES_HELP = """

    NAME is a workload ("web": all its instances), an instance ("web@2"), a group ("group/batch": all in it) or a glob
    in quotes ("web*", "*").
    """


def run_command(socket_path: str, as_json: bool, verb: str, names: Iterable[str], **parameters: object) -> int:
    """Send the command, print the results, return the exit status."""
    results = Client(socket_path).command(verb, names, **parameters)
    if as_json:
        print_json(results)
    else:
        colour = has_colour(sys.stdout)
        for result in results:
            state = result["state"] or "done"
            text = f"{result['name']}: {state}" + (f", {result['message']}" if result["message"] else "")
            if result["ok"]:
                print(colorize(escape_control(text), GREEN, colour))
            else:
                reason = result["message"] or f"it is {result['state']}"
                print_message(
                    f"{result['name']}: {verb} failed: {reason}; more with: nsupervisor status {result['name']}"
                )
    return DONE if all(result["ok"] for result in results) else FAILED


def _make_command(verb: str, short_help: str, help_suffix: str) -> click.Command:
    @click.command(verb, short_help=short_help, help=f"{short_help[:-1]}{help_suffix}{NAMES_HELP}")
    @socket_option
    @json_option
    @names_argument
    def command(socket_path: str, as_json: bool, names: tuple[str, ...]) -> int:
        return run_command(socket_path, as_json, verb, names)

    return command


start = _make_command("start", "Start workloads.", ", each after all that it requires, and wait until they are up.")
stop = _make_command(
    "stop", "Stop workloads.", ", those that require them first, and wait until none of their processes is left."
)
restart = _make_command("restart", "Restart workloads.", ": stop them, start them again, and wait until they are up.")
kill = _make_command(
    "kill", "Kill workloads.", ": SIGKILL for all their processes. Their restart policy decides what is next."
)
freeze = _make_command("freeze", "Freeze workloads.", ": none of their processes gets processor time until thawed.")
thaw = _make_command("thaw", "Thaw frozen workloads.", ".")


@click.command(
    short_help="Send workloads' programs a signal.",
    help="Send workloads' programs a signal."
    + NAMES_HELP
    + '\n\n    Examples: nsupervisor signal -s HUP web; nsupervisor signal -s 10 "batch*"',
)
@socket_option
@json_option
@click.option(
    "-s",
    "--signal",
    "signame",
    metavar="SIGNAL",
    default="SIGTERM",
    show_default=True,
    help="SIGHUP, HUP, or a number.",
)
@names_argument
def signal(socket_path: str, as_json: bool, signame: str, names: tuple[str, ...]) -> int:
    """Send a signal; `NAMES_HELP` and the rest of the help are given above."""
    return run_command(socket_path, as_json, "signal", names, signal=int(signame) if signame.isdecimal() else signame)
