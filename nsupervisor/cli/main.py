"""The `nsupervisor` command: one module per subcommand, loaded when it is called.

Exit statuses: 0 done; 1 the thing asked for failed; 2 wrong usage or configuration; 3 no supervisor there; 4 not
permitted; 130 interrupted; 141 nobody reads the output any more, as a shell says of a program that SIGPIPE ended.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
import sys

import click

from nsupervisor import __version__
from nsupervisor.api.client import ClientError
from nsupervisor.cli.output import FAILED, say

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

INTERRUPTED = 130
BROKEN_PIPE = 141
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What writing to stdout may meet with."""
FEW_COLLECTIONS = 50_000
"""New objects that the garbage collector waits for, as gc.set_threshold() has it. What a command loads is no garbage,
and looking through it every 700 objects is a tenth of its time."""

COMMANDS = {
    "run": "run",
    "check": "check",
    "doctor": "doctor",
    "status": "status",
    "why": "why",
    "events": "events",
    "logs": "logs",
    "stats": "stats",
    "top": "top",
    "record": "record",
    "simulate": "simulate",
    "start": "control",
    "stop": "control",
    "restart": "control",
    "kill": "control",
    "freeze": "control",
    "thaw": "control",
    "signal": "control",
    "set": "set",
    "plan": "plan",
    "reload": "reload",
    "upgrade": "upgrade",
    "shell": "shell",
    "schema": "schema",
    "version": "version",
}
"""Each command's module below `nsupervisor.cli.commands`; it has a click command of the command's name."""


class Commands(click.Group):
    """A group that imports a command when it is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which help shows them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; None where there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name != "run":  # which has a heap to keep small
            gc.set_threshold(FEW_COLLECTIONS)
        module = importlib.import_module(f"nsupervisor.cli.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest name where there is no such command."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from nsupervisor.config.shown import did_you_mean

            ctx.fail(f'there is no command "{args[0]}"{did_you_mean(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def nsupervisor() -> None:
    """Supervise processes: namespaces isolate, cgroups limit and tell, policy acts.

    \b
    Begin with:  nsupervisor doctor          what this host can do
                 nsupervisor check CONFIG    whether a configuration is right
                 nsupervisor run CONFIG      run it; then, in another terminal:
                 nsupervisor status
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    _open_standard_streams()
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        _abandon_output()
        status = BROKEN_PIPE
    except OSError as error:
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        _abandon_output()
        say(f"cannot write the output: {error.strerror}")
        status = FAILED
    gc.freeze()  # the process ends: its last collection need not look through all that was loaded
    sys.exit(status)


def _run(arguments: list[str]) -> int | None:
    # Not click's own main(), which ends with status 1 for a broken pipe and prints a line at Ctrl-C.
    try:
        with nsupervisor.make_context("nsupervisor", arguments) as context:
            status: int | None = nsupervisor.invoke(context)
            return status
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ClientError as error:
        say(str(error))
        return error.exit_status


def _open_standard_streams() -> None:
    """Give what was started without its standard streams (`>&-`) the null device in their place: else the next file
    that is opened, such as a lock, gets number 1, and what is printed goes into it."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _abandon_output() -> None:
    """Let what is still buffered go nowhere: the interpreter flushes at its end, and would complain again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
