"""`nsupervisor status`."""

from __future__ import annotations

import shutil
import sys

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import (
    BLUE,
    BOLD,
    FAINT,
    GREEN,
    RED,
    YELLOW,
    coloured,
    duration,
    emit_json,
    has_colour,
    printable,
    size,
    table,
)

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

COLOURS = {
    "ready": GREEN,
    "running": GREEN,
    "failed": RED,
    "starting": YELLOW,
    "stopping": YELLOW,
    "backoff": YELLOW,
    "frozen": BLUE,
    "stopped": FAINT,
    "exited": FAINT,
}
HEADS = ("NAME", "STATE", "PID", "UPTIME", "RESTARTS", "MEMORY", "PIDS", "REASON")


@click.command(short_help="Show the workloads.")
@socket_option
@json_option
@click.argument("names", metavar="[NAME]...", nargs=-1)
def status(socket_path: str, as_json: bool, names: tuple[str, ...]) -> None:
    """Show all workloads in a table, or all that is known about some.

    NAME is a workload ("web": all its instances), an instance ("web@2") or a glob in quotes ("web*").
    """
    found = Client(socket_path).status(names)
    if as_json:
        emit_json(found)
    elif names:
        print("\n\n".join(details(one, has_colour(sys.stdout)) for one in found))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        for line in overview(found, width, has_colour(sys.stdout)):
            print(line)


def overview(found: Iterable[dict[str, Any]], width: int, colour: bool) -> list[str]:
    """The table's lines."""

    def paint(column: int, value: str, padded: str) -> str:
        if column == -1:
            return coloured(padded, FAINT, colour)
        return coloured(padded, COLOURS.get(value, "") if column == 1 else "", colour)

    rows = [
        (
            one["name"],
            one["state"],
            "-" if one["pid"] is None else str(one["pid"]),
            duration(one["uptime_sec"]),
            str(one["restarts"]),
            _of(size(one["memory_current"]), one["memory_max"] and size(one["memory_max"])),
            _of(_number(one["pids_current"]), one["pids_max"]),
            one["reason"],
        )
        for one in found
    ]
    return table(HEADS, rows, right=range(2, 7), width=width, paint=paint)


def details(one: dict[str, Any], colour: bool) -> str:
    """All about one instance."""
    uptime = f", for {duration(one['uptime_sec'])}" if one["uptime_sec"] is not None else ""
    ready = ", ready" if one["ready"] and one["state"] not in ("ready", "running") else ""
    cpu = "-" if one["cpu_usage_usec"] is None else f"{one['cpu_usage_usec'] / 1e6:.3f} s"
    lines = [
        ("state", coloured(one["state"], COLOURS.get(one["state"], ""), colour) + uptime + ready),
        ("reason", one["reason"]),
        ("pid", _number(one["pid"])),
        ("starts", f"{one['generation']}, {one['restarts']} of them restarts"),
        (
            "memory",
            _of(size(one["memory_current"]), size(one["memory_max"]) if one["memory_max"] else "no limit", " of "),
        ),
        ("processes", _of(_number(one["pids_current"]), one["pids_max"] or "no limit", " of ")),
        ("cpu time", cpu),
        ("last exit", exit_text(one["last_exit"])),
        ("last event", event_text(one["last_event"])),
        ("cgroup", one["cgroup"]),
    ]
    head = coloured(printable(one["name"]), BOLD, colour)
    shown = (f"  {name:<11} {text if name == 'state' else printable(text)}" for name, text in lines if text)
    return "\n".join([head, *shown])


def exit_text(last: dict[str, Any] | None) -> str:
    """How it ended, in words; "" where it has not."""
    if last is None:
        return ""
    if last.get("failure"):
        return f"could not be started: {last['failure']}"
    text = f"killed by {last['signal']}" if last["signal"] else f"status {last['code']}"
    if last.get("oom_killed"):
        text += ", by the kernel's OOM killer"
    return text + (", core dumped" if last.get("core_dumped") else "")


def event_text(event: dict[str, Any] | str | None) -> str:
    """An event as one line: when, what, and what belongs to it."""
    if not isinstance(event, dict):
        return event or ""
    others = {key: value for key, value in event.items() if key not in ("timestamp", "event")}
    rest = " ".join(f'{key}="{value}"' if " " in str(value) else f"{key}={value}" for key, value in others.items())
    return " ".join(part for part in (event.get("timestamp", ""), event.get("event", ""), rest) if part)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _of(current: str, limit: object, between: str = "/") -> str:
    return f"{current}{between}{limit}" if limit and current != "-" else current
