"""The `nsupervisor` command: one module per subcommand, imported when the subcommand is called.

Exit statuses: 0 done; 1 the request failed; 2 wrong usage or configuration; 3 no supervisor running; 4 not permitted;
130 interrupted; 141 the reader of the output is gone (a shell reports this for a program that SIGPIPE ended).
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys

import click

from nsupervisor import __version__
from nsupervisor.api.client import ClientError
from nsupervisor.cli.output import FAILED, print_message

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

INTERRUPTED = 130
BROKEN_PIPE = 141
OUTPUT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors that writing to stdout may meet."""
GC_THRESHOLD = 50_000
"""The number of new objects before a garbage collection, as for gc.set_threshold().

The modules of a command are no garbage, and scanning them every 700 objects takes a tenth of the command's time.
"""

COMMANDS = {
    "run": "run",
    "check": "check",
    "doctor": "doctor",
    "security": "security",
    "status": "status",
    "graph": "graph",
    "why": "why",
    "events": "events",
    "logs": "logs",
    "stats": "stats",
    "top": "top",
    "timers": "timers",
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
    "scale": "scale",
    "upgrade": "upgrade",
    "exec": "exec",
    "shell": "shell",
    "image": "image",
    "schema": "schema",
    "version": "version",
}
"""The module of each command below `nsupervisor.cli.commands`; it has a click command of the command's name."""


class LazyGroup(click.Group):
    """A click group that imports a command when it is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order in which help shows them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name != "run":  # a long-running process must keep its heap small
            gc.set_threshold(GC_THRESHOLD)
        module = importlib.import_module(f"nsupervisor.cli.commands.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve like click, but suggest the nearest name for an unknown command."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from nsupervisor.config.quoting import did_you_mean

            ctx.fail(f'there is no command "{args[0]}"{did_you_mean(args[0], COMMANDS)}')
        return super().resolve_command(ctx, args)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
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
        if error.filename is not None or error.errno not in OUTPUT_ERRNOS:
            raise
        _abandon_output()
        print_message(f"cannot write the output: {error.strerror}")
        status = FAILED
    gc.freeze()  # the process ends: its last collection need not scan all modules
    sys.exit(status)


def _run(arguments: list[str]) -> int | None:
    # Not click's own main(), which exits with status 1 for a broken pipe and prints a line at Ctrl-C.
    try:
        with nsupervisor.make_context("nsupervisor", arguments) as context:
            status: int | None = nsupervisor.invoke(context)
            return status
    except click.exceptions.Exit as exit_request:  # --help and --version
        return exit_request.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ClientError as error:
        print_message(str(error))
        return error.exit_status


def _open_standard_streams() -> None:
    """Prepare the standard streams for any output.

    The null device is opened for each stream that was closed at the start (`>&-`). Otherwise the next file that is
    opened, such as a lock, would get number 1, and output would be written to it. A character that the encoding of a
    stream lacks is escaped.
    """
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding may lack our own characters, and those of programs
            stream.reconfigure(errors="backslashreplace")


def _abandon_output() -> None:
    """Discard buffered output: the interpreter flushes at exit, and would report the error again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
