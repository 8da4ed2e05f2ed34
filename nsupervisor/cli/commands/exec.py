"""The command `nsupervisor exec NAME -- COMMAND…`."""

from __future__ import annotations

import os

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import socket_option

HELP = """Execute COMMAND in a running workload, confined as its program is.

    It runs in all of the workload's namespaces and in its cgroup, so the workload's limits hold; with its user, limits,
    capabilities and seccomp filter, environment and working directory. NAME is a workload with one instance, or an
    instance ("web@2"). It is refused unless the workload runs, and while it is frozen.

    With --debug the workload must not run: COMMAND, by default /bin/sh, is started in a sandbox like that of its
    program, to find out why that fails. A start of the workload ends it.

    COMMAND ends when the workload's program ends, when this command ends, or when the supervisor does. Without -t
    signals to this command (SIGINT, SIGTERM, SIGQUIT, SIGHUP) are sent to it; a second Ctrl-C ends this command. Who
    executed what is in the records: nsupervisor events.

    \b
    Exit status: that of COMMAND; 128 + N if signal N ended it;
      126  it cannot be executed
      127  it is not found
      1    it was refused, or the workload cannot be entered
      2    wrong usage, or there is no such workload
      3    no supervisor answers, or it ended while COMMAND ran
      4    not permitted

    \b
    Examples: nsupervisor exec -it web -- sh
              nsupervisor exec web -- cat /etc/resolv.conf
              nsupervisor exec -i db -- psql < dump.sql
              nsupervisor exec --debug web
    """


@click.command(
    "exec",
    short_help="Execute a command in a workload.",
    help=HELP,
    context_settings={"allow_interspersed_args": False},
)
@socket_option
@click.option("-i", "--interactive", is_flag=True, help="Pass on standard input; otherwise it is empty.")
@click.option("-t", "--tty", "is_terminal", is_flag=True, help="Run it on a terminal of its own.")
@click.option("-u", "--user", metavar="USER", help='Another user: "www-data", "33", "1000:1000".')
@click.option("-e", "--env", "variables", metavar="NAME=VALUE", multiple=True, help="Set a variable.")
@click.option("-w", "--workdir", "directory", metavar="DIR", help="Another working directory.")
@click.option("--debug", "is_debug", is_flag=True, help="In place of the program of a workload that does not run.")
@click.argument("name", metavar="NAME")
@click.argument("command", metavar="[--] COMMAND...", nargs=-1, type=click.UNPROCESSED)
def exec(  # noqa: A001 - the command's name
    socket_path: str,
    interactive: bool,
    is_terminal: bool,
    user: str | None,
    variables: tuple[str, ...],
    directory: str | None,
    is_debug: bool,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Execute a command in a workload; `HELP` is the help."""
    from nsupervisor.cli.exec_client import check_terminal, execute

    if not command:
        if not is_debug:
            raise click.UsageError("Missing argument '[--] COMMAND...'.")
        command = ("/bin/sh",)
        interactive, is_terminal = True, is_terminal or os.isatty(0)
    if command[0] == "--":  # click leaves it, as it comes after the first argument
        command = command[1:]
        if not command:
            raise click.UsageError("there is no COMMAND after --")
    if is_terminal and interactive and (reason := check_terminal()):
        raise click.UsageError(reason)
    environment = {"TERM": os.environ.get("TERM", "xterm")} if is_terminal else {}
    for variable in variables:
        key, equals, value = variable.partition("=")
        if not key or not equals:
            raise click.BadParameter(f'"{variable}" is not NAME=VALUE', param_hint="--env")
        environment[key] = value
    if directory is not None and not directory.startswith("/"):
        raise click.BadParameter(f'"{directory}" is not an absolute path', param_hint="--workdir")
    wanted = {
        "argv": list(command),
        "input": interactive,
        "environment": environment,
        **({"debug": True} if is_debug else {}),
        **({} if user is None else {"user": user}),
        **({} if directory is None else {"directory": directory}),
    }
    return execute(Client(socket_path), name, wanted, is_terminal)
