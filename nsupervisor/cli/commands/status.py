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

GROUP_HEADS = ("GROUP", "MEMBERS", "MEMORY", "PIDS", "STALLED", "WHO")


@click.command(short_help="Show the workloads.")
@socket_option
@json_option
@click.option("--groups", "only_groups", is_flag=True, help="Show the groups alone, and what they use together.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def status(socket_path: str, as_json: bool, only_groups: bool, names: tuple[str, ...]) -> None:
    """Show all workloads and groups in tables, or all that is known about some.

    NAME is a workload ("web": all its instances), an instance ("web@2"), a group ("group/batch": all in it) or a glob
    in quotes ("web*").
    """
    client, colour = Client(socket_path), has_colour(sys.stdout)
    found = [] if only_groups else client.status(names)
    of_groups = names if only_groups else [name for name in names if name.startswith("group/")]
    wanted = only_groups or (not as_json and (of_groups or not names))
    groups = client.groups(of_groups) if wanted else []
    if as_json:
        emit_json(groups if only_groups else found)
    elif names:
        all_of_it = [group_details(one, colour) for one in groups] + [details(one, colour) for one in found]
        print("\n\n".join(all_of_it))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        lines = [] if only_groups else overview(found, width, colour)
        if groups:
            lines += ["" for _ in lines[:1]] + group_overview(groups, width, colour)
        print("\n".join(lines))


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


def group_overview(groups: Iterable[dict[str, Any]], width: int, colour: bool) -> list[str]:
    """The lines of the groups' table."""

    def paint(column: int, value: str, padded: str) -> str:
        return coloured(padded, FAINT if column == -1 else "", colour)

    rows = [
        (
            one["name"],
            str(len(one["members"])),
            _of(size(one["memory_current"]), one["memory_max"] and size(one["memory_max"])),
            _of(_number(one["pids_current"]), one["pids_max"]),
            "-" if one["memory_pressure_avg10"] is None else f"{one['memory_pressure_avg10']:.1f}%",
            ", ".join(one["members"]),
        )
        for one in groups
    ]
    return table(GROUP_HEADS, rows, right=range(1, 5), width=width, paint=paint)


def group_details(one: dict[str, Any], colour: bool) -> str:
    """All about one group."""
    cpu = "-" if one["cpu_usage_usec"] is None else f"{one['cpu_usage_usec'] / 1e6:.3f} s"
    pressure = one["memory_pressure_avg10"]
    lines = [
        ("what", one["text"]),
        ("in", one["group"] or ""),
        ("members", ", ".join(one["members"]) or "none"),
        (
            "memory",
            _of(size(one["memory_current"]), size(one["memory_max"]) if one["memory_max"] else "no limit", " of "),
        ),
        ("pressure", "" if pressure is None else f"{pressure:.1f}% of the last 10 s all waited for memory"),
        ("processes", _of(_number(one["pids_current"]), one["pids_max"] or "no limit", " of ")),
        ("cpu time", cpu),
        ("cgroup", one["cgroup"]),
    ]
    shown = (f"  {name:<11} {printable(text)}" for name, text in lines if text)
    return "\n".join([coloured(printable(one["name"]), BOLD, colour), *shown])


def details(one: dict[str, Any], colour: bool) -> str:
    """All about one instance."""
    uptime = ""
    if one["uptime_sec"] is not None:  # which is the program's, whatever its state has become since
        since = duration(one["uptime_sec"])
        uptime = f", for {since}" if one["state"] in ("running", "ready") else f"; started {since} ago"
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
    others = {key: value for key, value in event.items() if key not in ("timestamp", "event") and value is not None}
    rest = " ".join(f'{key}="{value}"' if " " in str(value) else f"{key}={value}" for key, value in others.items())
    return " ".join(part for part in (event.get("timestamp", ""), event.get("event", ""), rest) if part)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _of(current: str, limit: object, between: str = "/") -> str:
    return f"{current}{between}{limit}" if limit and current != "-" else current
