"""`nsupervisor run`."""

from __future__ import annotations

import click


@click.command(short_help="Run a configuration's workloads.")
@click.argument("config", metavar="CONFIG")
def run(config: str) -> int:
    """Run the workloads of CONFIG, in the foreground, until SIGTERM or Ctrl-C.

    The first signal stops them in order, a second one kills what is left. Works as the first process of a container.
    """
    from nsupervisor.service.run import main

    return main(config)
