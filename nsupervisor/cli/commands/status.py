"""The command `nsupervisor status`."""

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
    colorize,
    escape_control,
    format_duration,
    format_size,
    format_table,
    has_colour,
    print_json,
)

TYPE_CHECKING = False  # importing typing takes time
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
    """Show all workloads and groups in tables, or everything that is known about some.

    NAME is a workload ("web": all its instances), an instance ("web@2"), a group ("group/batch": all in it) or a glob
    in quotes ("web*").
    """
    client, colour = Client(socket_path), has_colour(sys.stdout)
    instances = [] if only_groups else client.status(names)
    group_names = names if only_groups else [name for name in names if name.startswith("group/")]
    needs_groups = only_groups or (not as_json and (group_names or not names))
    groups = client.groups(group_names) if needs_groups else []
    if as_json:
        print_json(groups if only_groups else instances)
    elif names:
        sections = [format_group_details(item, colour) for item in groups] + [
            format_details(item, colour) for item in instances
        ]
        print("\n\n".join(sections))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        lines = [] if only_groups else overview_lines(instances, width, colour)
        if groups:
            lines += ["" for _ in lines[:1]] + group_overview_lines(groups, width, colour)
        print("\n".join(lines))


def overview_lines(instances: Iterable[dict[str, Any]], width: int, colour: bool) -> list[str]:
    """Return the lines of the workloads' table."""

    def paint(column: int, value: str, padded: str) -> str:
        if column == -1:
            return colorize(padded, FAINT, colour)
        return colorize(padded, COLOURS.get(value, "") if column == 1 else "", colour)

    rows = [
        (
            instance["name"],
            instance["state"],
            "-" if instance["pid"] is None else str(instance["pid"]),
            format_duration(instance["uptime_sec"]),
            str(instance["restarts"]),
            _with_limit(
                format_size(instance["memory_current"]), instance["memory_max"] and format_size(instance["memory_max"])
            ),
            _with_limit(_number(instance["pids_current"]), instance["pids_max"]),
            instance["reason"],
        )
        for instance in instances
    ]
    return format_table(HEADS, rows, right=range(2, 7), width=width, paint=paint)


def group_overview_lines(groups: Iterable[dict[str, Any]], width: int, colour: bool) -> list[str]:
    """Return the lines of the groups' table."""

    def paint(column: int, value: str, padded: str) -> str:
        return colorize(padded, FAINT if column == -1 else "", colour)

    rows = [
        (
            group["name"],
            str(len(group["members"])),
            _with_limit(format_size(group["memory_current"]), group["memory_max"] and format_size(group["memory_max"])),
            _with_limit(_number(group["pids_current"]), group["pids_max"]),
            "-" if group["memory_pressure_avg10"] is None else f"{group['memory_pressure_avg10']:.1f}%",
            ", ".join(group["members"]),
        )
        for group in groups
    ]
    return format_table(GROUP_HEADS, rows, right=range(1, 5), width=width, paint=paint)


def format_group_details(group: dict[str, Any], colour: bool) -> str:
    """Format everything about one group."""
    cpu = "-" if group["cpu_usage_usec"] is None else f"{group['cpu_usage_usec'] / 1e6:.3f} s"
    pressure = group["memory_pressure_avg10"]
    lines = [
        ("what", group["text"]),
        ("in", group["group"] or ""),
        ("members", ", ".join(group["members"]) or "none"),
        (
            "memory",
            _with_limit(
                format_size(group["memory_current"]),
                format_size(group["memory_max"]) if group["memory_max"] else "no limit",
                " of ",
            ),
        ),
        ("pressure", "" if pressure is None else f"{pressure:.1f}% of the last 10 s all waited for memory"),
        ("processes", _with_limit(_number(group["pids_current"]), group["pids_max"] or "no limit", " of ")),
        ("cpu time", cpu),
        ("cgroup", group["cgroup"]),
    ]
    shown = (f"  {name:<11} {escape_control(text)}" for name, text in lines if text)
    return "\n".join([colorize(escape_control(group["name"]), BOLD, colour), *shown])


def format_details(instance: dict[str, Any], colour: bool) -> str:
    """Format everything about one instance."""
    uptime = ""
    if instance["uptime_sec"] is not None:  # the uptime of the program, even if the state has changed since
        since = format_duration(instance["uptime_sec"])
        uptime = f", for {since}" if instance["state"] in ("running", "ready") else f"; started {since} ago"
    ready = ", ready" if instance["ready"] and instance["state"] not in ("ready", "running") else ""
    cpu = "-" if instance["cpu_usage_usec"] is None else f"{instance['cpu_usage_usec'] / 1e6:.3f} s"
    lines = [
        ("state", colorize(instance["state"], COLOURS.get(instance["state"], ""), colour) + uptime + ready),
        ("reason", instance["reason"]),
        ("pid", _number(instance["pid"])),
        ("starts", f"{instance['generation']}, {instance['restarts']} of them restarts"),
        (
            "memory",
            _with_limit(
                format_size(instance["memory_current"]),
                format_size(instance["memory_max"]) if instance["memory_max"] else "no limit",
                " of ",
            ),
        ),
        ("processes", _with_limit(_number(instance["pids_current"]), instance["pids_max"] or "no limit", " of ")),
        ("cpu time", cpu),
        ("last exit", format_last_exit(instance["last_exit"])),
        ("last event", format_event(instance["last_event"])),
        ("cgroup", instance["cgroup"]),
    ]
    head = colorize(escape_control(instance["name"]), BOLD, colour)
    shown = (f"  {name:<11} {text if name == 'state' else escape_control(text)}" for name, text in lines if text)
    return "\n".join([head, *shown])


def format_last_exit(last: dict[str, Any] | None) -> str:
    """Describe how the last program ended; "" if none has."""
    if last is None:
        return ""
    if last.get("failure"):
        return f"could not be started: {last['failure']}"
    text = f"killed by {last['signal']}" if last["signal"] else f"status {last['code']}"
    if last.get("oom_killed"):
        text += ", by the kernel's OOM killer"
    return text + (", core dumped" if last.get("core_dumped") else "")


def format_event(event: dict[str, Any] | str | None) -> str:
    """Format an event as one line: time, event, and its other fields."""
    if not isinstance(event, dict):
        return event or ""
    fields = {key: value for key, value in event.items() if key not in ("timestamp", "event") and value is not None}
    field_text = " ".join(
        f'{key}="{value}"' if " " in str(value) else f"{key}={value}" for key, value in fields.items()
    )
    return " ".join(part for part in (event.get("timestamp", ""), event.get("event", ""), field_text) if part)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _with_limit(current: str, limit: object, between: str = "/") -> str:
    return f"{current}{between}{limit}" if limit and current != "-" else current
