"""The command `nsupervisor graph`."""

from __future__ import annotations

import sys

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.graph import dot_lines, make_graph, selected, tree_lines
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import print_json
from nsupervisor.terminal.style import has_colour, terminal_width

DEFAULT_WIDTH = 80


@click.command(short_help="Show which workload waits for which.")
@socket_option
@json_option
@click.option("--dot", "as_dot", is_flag=True, help="In the language of Graphviz, for dot(1).")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def graph(socket_path: str, as_json: bool, as_dot: bool, names: tuple[str, ...]) -> None:
    """Show the workloads as a tree: each above those that its start waits for, with their states.

    NAME is a workload: only this one and what it depends on. Lines of what is waited for now are coloured.

    Examples: nsupervisor graph web; nsupervisor graph --dot | dot -Tsvg
    """
    client = Client(socket_path)
    chosen = [status["name"].partition("@")[0] for status in client.status(names)] if names else []
    found = make_graph(client.status(()))
    roots = list(dict.fromkeys(chosen))
    part = selected(found, roots) if roots else found
    if as_json:
        print_json(list(part.values()))
    elif as_dot:
        print("\n".join(dot_lines(part)))
    else:
        width = terminal_width() or DEFAULT_WIDTH
        print("\n".join(tree_lines(part, roots, has_colour(sys.stdout), width)))
