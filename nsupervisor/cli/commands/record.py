"""The command `nsupervisor record`."""

from __future__ import annotations

import json
import re
import signal
import sys
from contextlib import nullcontext

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.commands.stats import parse_interval
from nsupervisor.cli.options import socket_option
from nsupervisor.cli.output import DONE, FAILED, print_message
from nsupervisor.terminal.numbers import format_count, format_duration, format_size

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import IO

_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "": 1}
_DURATION_UNITS = {"s": 1, "min": 60, "h": 3600, "": 1}


def _parse_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Parse a length of time ("90s", "10min", "1h") to seconds."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|)", value, re.ASCII)
    if not match or not float(match[1]):
        raise click.BadParameter(f'"{value}" is not a length of time; write for example "10min" or "90s"')
    return float(match[1]) * _DURATION_UNITS[match[2]]


def _parse_size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Parse a size ("64M") to bytes."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", value, re.ASCII)
    if not match or not int(match[1]):
        raise click.BadParameter(f'"{value}" is not a size; write for example "64M"')
    return int(match[1]) * _SIZE_UNITS[match[2]]


def _open_output(file: str) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(sys.stdout.buffer) if file == "-" else open(file, "wb")


@click.command(short_help="Record a trace of what happens to workloads.")
@socket_option
@click.option("--for", "length", callback=_parse_duration, metavar="TIME", help="End after this time; else at Ctrl-C.")
@click.option(
    "--max-size",
    "most",
    callback=_parse_size,
    default="64M",
    show_default=True,
    metavar="SIZE",
    help="End at this size.",
)
@click.option(
    "--interval",
    callback=parse_interval,
    default="250ms",
    show_default=True,
    metavar="TIME",
    help="Time between two samples.",
)
@click.option(
    "--all/--seen",
    "everything",
    default=True,
    show_default="all",
    help="Sample every file that rules can use, or record only what the present rules read.",
)
@click.argument("file")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def record(
    socket_path: str,
    length: float | None,
    most: int,
    interval: float,
    everything: bool,
    file: str,
    names: tuple[str, ...],
) -> int:
    """Write to FILE what happens to workloads: kernel readings, exits, commands, and the service's actions.

    `nsupervisor simulate` then shows what other rules would have done. Recording ends at Ctrl-C or SIGTERM, with the
    service, or at its --max-size. FILE "-" is standard output.

    NAME is a workload ("web": all its instances), an instance ("web@2") or a glob in quotes ("web*"); without one, all.
    """
    lines = Client(socket_path).trace(names, interval if everything else 0.0, length, most)
    first = next(lines, b"")  # before the file is made: there may be no service
    count, written, last = 0, len(first) + 1, first
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _open_output(file) as out:
        out.write(first + b"\n")
        out.flush()
        if file != "-":
            print_message(
                f"recording {format_count(len(json.loads(first)['workloads']), 'instance')} to {file}; Ctrl-C ends it"
            )
        try:
            for line in lines:
                out.write(line + b"\n")
                count, written, last = count + 1, written + len(line) + 1, line
        except KeyboardInterrupt:
            now = json.loads(last).get("t", json.loads(first)["clock"]["monotonic"])
            last = json.dumps({"t": now, "end": "interrupted"}).encode()
            out.write(last + b"\n")
    end = json.loads(last)
    length = end.get("t", 0.0) - json.loads(first)["clock"]["monotonic"]
    reason = end.get("end", "")
    if file != "-":
        print_message(
            f"{file}: {format_count(count, 'line')}, {format_size(written)}, {format_duration(max(length, 0))}; "
            f"{reason or 'cut off'}"
        )
    return DONE if reason and reason != "the reader is too slow" else FAILED
