"""The command `nsupervisor run`."""

from __future__ import annotations

import os

import click

from nsupervisor.linux.standard_descriptors import fill_standard_descriptors


@click.command(short_help="Run a configuration's workloads.")
@click.option("--supervise-self", is_flag=True, help="Let a small parent restart the supervisor when it is killed.")
@click.option("--trial", is_flag=True, hidden=True, help="Read configuration and state, and print the version.")
@click.argument("config", metavar="CONFIG")
def run(supervise_self: bool, trial: bool, config: str) -> int:
    """Run the workloads of CONFIG, in the foreground, until SIGTERM or Ctrl-C.

    The first signal stops them in order, a second one kills the rest. Works as the first process of a container.
    Workloads that a supervisor has left running when it died are taken over.
    """
    closed = fill_standard_descriptors()
    config = _absolute(config)
    if supervise_self:
        from nsupervisor.cli.supervise_self import respawn

        return respawn(["run", "--", config])
    from nsupervisor.service.run import main

    if trial:
        from nsupervisor.service.recovery.upgrade import run_trial as show

        return show(config)
    return main(config, closed)


def _absolute(path: str) -> str:
    """Return the path from the root, so that it names the same place after the working directory has been replaced.

    `..` stays as it is: after a link it is not the directory before.
    """
    try:
        return os.path.join(os.getcwd(), path)
    except FileNotFoundError:  # the working directory has been removed: then a relative path names nothing
        return path
