"""The command `nsupervisor shell`."""

from __future__ import annotations

import click

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAMESPACE_HELP = {
    "pid": "Its own process numbers, and mounts with a /proc that shows them.",
    "mount": "Its own mounts.",
    "uts": "Its own host name.",
    "net": "Its own network: nothing but a loopback interface.",
    "ipc": "Its own System V IPC and message queues.",
    "user": "Its own users.",
    "cgroup": "Its own cgroup is the root of those it sees.",
    "time": "Its own monotonic and boot-time clocks.",
}
OCI_NAMES = {"net": "network"}
"""The OCI names of namespaces whose option has another name."""


def _namespace_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in reversed(NAMESPACE_HELP.items()):
        function = click.option(f"--{name}", OCI_NAMES.get(name, name), is_flag=True, help=text)(function)
    return function


@click.command(short_help="Run a command in new namespaces.", context_settings={"allow_interspersed_args": False})
@_namespace_options
@click.option("--hostname", metavar="NAME", help="Its host name; brings --uts.")
@click.argument("command", metavar="[--] [COMMAND]...", nargs=-1, type=click.UNPROCESSED)
def shell(command: tuple[str, ...], hostname: str | None, **kinds: bool) -> int:
    """Run COMMAND ($SHELL without one) in new namespaces on this terminal; no supervisor is needed.

    A user other than root becomes root in a user namespace around it. The exit status is the command's; 128 + N if
    signal N ended it; 127 if it is not found, 126 if it cannot be executed.
    """
    from nsupervisor.cli.namespace_shell import run_in_namespaces as run

    wanted = [name for name, chosen in kinds.items() if chosen]
    if hostname is not None:
        _check_hostname(hostname)
        if "uts" not in wanted:
            wanted.append("uts")
    return run(wanted, list(command), hostname=hostname)


def _check_hostname(hostname: str) -> None:
    from nsupervisor.config.kinds import HOSTNAME  # imported late, because few calls need it

    try:
        HOSTNAME.load(hostname)
    except ValueError as error:
        raise click.BadParameter(f'"{hostname}" {error}', param_hint="--hostname") from None
