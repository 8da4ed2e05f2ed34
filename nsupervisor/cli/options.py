"""Options and arguments that several commands share."""

from __future__ import annotations

import click

from nsupervisor.api.client import DEFAULT_SOCKET

socket_option = click.option(
    "--socket",
    "socket_path",
    metavar="PATH",
    envvar="NSUPERVISOR_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    show_envvar=True,
    help="The supervisor's socket, <runtime_directory>/api.sock.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
names_argument = click.argument("names", metavar="NAME...", nargs=-1, required=True)
