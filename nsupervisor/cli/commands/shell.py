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
@click.option("--root", metavar="PATH", help="A directory with a root file system of its own.")
@click.option("--overlay", "is_overlay", is_flag=True, help="Changes of that root go to a layer in memory.")
@click.option("--read-only", "is_read_only", is_flag=True, help="Its root is read-only.")
@click.option("--profile", metavar="PROFILE", help="The security profile: default, strict or none.")
@click.option("-v", "--volume", "volumes", metavar="SRC:DST[:ro]", multiple=True, help="Show a path, or a volume.")
@click.option("-u", "--uid", "run_user", metavar="USER", help='The user: "www-data", "33", "1000:1000".')
@click.option("-w", "--workdir", "directory", metavar="DIR", help="The working directory.")
@click.option("-e", "--env", "variables", metavar="NAME=VALUE", multiple=True, help="Set a variable.")
@click.option("--memory-max", metavar="SIZE", help='The most memory: "512M".')
@click.option("--pids-max", metavar="NUMBER", help="The most processes and threads.")
@click.option("--cpu-max", metavar="SHARE", help='The most processor time: "150%".')
@click.argument("command", metavar="[--] [COMMAND]...", nargs=-1, type=click.UNPROCESSED)
def shell(command: tuple[str, ...], hostname: str | None, **given: Any) -> int:
    """Run COMMAND ($SHELL without one) in new namespaces on this terminal; no supervisor is needed.

    With --root and the options below it, COMMAND is confined as a workload with these keys: in all namespaces that
    a workload has, with a clean environment, its security profile, and a cgroup with its limits.

    A user other than root becomes root in a user namespace around it. The exit status is the command's; 128 + N if
    signal N ended it; 127 if it is not found, 126 if it cannot be executed.

    \b
    Example: nsupervisor shell --root /srv/debian -v /srv/data:/data:ro --memory-max 1G -- bash
    """
    from nsupervisor.cli.namespace_shell import run_in_namespaces as run

    kinds = [OCI_NAMES.get(name, name) for name in NAMESPACE_HELP]
    wanted = [name for name in kinds if given.pop(name)]
    if hostname is not None:
        _check_hostname(hostname)
        if "uts" not in wanted:
            wanted.append("uts")
    if any(given.values()):
        from nsupervisor.cli.sandbox_shell import Options, run_in_sandbox

        return run_in_sandbox(Options(**given), wanted, list(command), hostname)
    return run(wanted, list(command), hostname=hostname)


def _check_hostname(hostname: str) -> None:
    from nsupervisor.config.kinds import HOSTNAME  # imported late, because few calls need it

    try:
        HOSTNAME.load(hostname)
    except ValueError as error:
        raise click.BadParameter(f'"{hostname}" {error}', param_hint="--hostname") from None
