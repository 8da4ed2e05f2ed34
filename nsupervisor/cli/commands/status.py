"""The command `nsupervisor status`."""

from __future__ import annotations

import sys
from collections import Counter
from datetime import datetime, timedelta

import click

from nsupervisor.api.client import Client
from nsupervisor.cli.options import json_option, socket_option
from nsupervisor.cli.output import print_json
from nsupervisor.terminal.lines import RecordLines, fold
from nsupervisor.terminal.numbers import format_count, format_duration, format_size, format_span
from nsupervisor.terminal.records import format_exit
from nsupervisor.terminal.style import (
    BOLD,
    FAINT,
    GREEN,
    MAGENTA,
    RED,
    colorize,
    escape_control,
    has_colour,
    terminal_width,
)
from nsupervisor.terminal.table import format_table
from nsupervisor.terminal.times import format_time, local_time

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from nsupervisor.cli.workload_output import LogLine

COLOURS = {
    "ready": GREEN,
    "running": GREEN,
    "failed": RED,
    "starting": MAGENTA,
    "stopping": MAGENTA,
    "backoff": MAGENTA,
    "frozen": MAGENTA,
    "stopped": FAINT,
    "exited": FAINT,
}
HEADS = ("NAME", "STATE", "PID", "UPTIME", "RESTARTS", "MEMORY", "PIDS", "DETAIL")
MIN_COMMAND_WIDTH = 24
"""The room from which a wide terminal also shows the commands."""
PROBLEM_STATES = ("failed", "backoff")
GROUP_HEADS = ("GROUP", "MEMBERS", "MEMORY", "PIDS", "STALLED", "WHO")
SUMMARY_FROM = 10
"""The number of instances from which the table is followed by the number in each state."""
_NO_CGROUP = "none: it is only a process tree, without limits"
MAX_COMMAND_LENGTH = 1000
_LABEL_INDENT = 14
"""The column in which the values of details begin."""
SHOWN_RECORDS = 5
"""The number of latest records in the details of an instance."""
SHOWN_OUTPUT = 10
"""The number of latest lines of output that the details of an instance end with."""


@click.command(short_help="Show the workloads.")
@socket_option
@json_option
@click.option("--groups", "only_groups", is_flag=True, help="Show the groups alone, and what they use together.")
@click.option(
    "--state",
    "states",
    type=click.Choice(list(COLOURS)),
    multiple=True,
    help="Only workloads in this state; may be repeated.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
def status(socket_path: str, as_json: bool, only_groups: bool, states: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Show all workloads and groups in tables, or everything that is known about some.

    NAME is a workload ("web": all its instances), an instance ("web@2"), a group ("group/batch": all in it) or a glob
    in quotes ("web*"). Times are local.

    Examples: nsupervisor status web; nsupervisor status --state failed --state backoff
    """
    client, colour = Client(socket_path), has_colour(sys.stdout)
    instances = [] if only_groups else client.status(names)
    if states:
        instances = [instance for instance in instances if instance["state"] in states]
    group_names = names if only_groups else [name for name in names if name.startswith("group/")]
    needs_groups = only_groups or (not as_json and not states and (group_names or not names))
    groups = client.groups(group_names) if needs_groups else []
    if as_json:
        print_json(groups if only_groups else instances)
        return
    width = terminal_width()
    if names:
        now = datetime.now().astimezone()
        # By the full name: each is the history of one instance.
        histories = [history for instance in instances for history in client.history(instance["name"])]
        sections = [format_group_details(group, colour, width) for group in groups]
        from nsupervisor.cli.workload_output import last_output  # only here, since importing it takes time

        for history in histories:
            rows = output_rows(last_output(client, history, SHOWN_OUTPUT), now, colour, width)
            sections.append("\n".join([format_details(history, colour, now, width), *rows]))
        print("\n\n".join(sections))
        return
    lines = [] if only_groups else overview_lines(instances, width, colour, datetime.now().astimezone())
    if groups:
        lines += ["" for _ in lines[:1]] + group_overview_lines(groups, width, colour)
    print("\n".join(lines))


def overview_lines(instances: Sequence[dict[str, Any]], width: int, colour: bool, now: datetime) -> list[str]:
    """Return the lines of the workloads' table; for many workloads, also how many are in each state.

    width: of the terminal, 0 if there is none. A terminal with room for them also shows the commands.
    """

    def paint(column: int, value: str, padded: str) -> str:
        if column == -1:
            return colorize(padded, FAINT, colour)
        return colorize(padded, COLOURS.get(value, "") if column == 1 else "", colour)

    rows = [
        [
            instance["name"],
            instance["state"],
            _number(instance["pid"]),
            format_duration(instance["uptime_sec"]),
            str(instance["restarts"]),
            *usage_cells(instance),
            format_detail(instance, now),
        ]
        for instance in instances
    ]
    heads = [*HEADS]
    if width - sum(max(map(len, column)) + 2 for column in zip(heads, *rows, strict=True)) >= MIN_COMMAND_WIDTH:
        heads.append("COMMAND")
        for row, instance in zip(rows, instances, strict=True):
            row.append(format_command_line(instance.get("command", ())))
    lines = format_table(heads, rows, right=range(2, 7), width=width, paint=paint)
    if len(instances) >= SUMMARY_FROM:
        counts = Counter(instance["state"] for instance in instances)
        parts = (colorize(f"{counts[state]} {state}", COLOURS[state], colour) for state in COLOURS if counts[state])
        lines += ["", f"{format_count(len(instances), 'instance')}: {', '.join(parts)}"]
        problems = [state for state in PROBLEM_STATES if counts[state]]
        if problems and len(problems) < len(counts):
            lines += [f"Only these: nsupervisor status {' '.join(f'--state {state}' for state in problems)}"]
    return lines


def usage_cells(instance: dict[str, Any]) -> tuple[str, str]:
    """Return memory and processes with their limits. What a cgroup without a program still holds is not shown."""
    if instance["pid"] is None:
        return "-", "-"
    memory_max = instance["memory_max"] and format_size(instance["memory_max"])
    return (
        _with_limit(format_size(instance["memory_current"]), memory_max),
        _with_limit(_number(instance["pids_current"]), instance["pids_max"]),
    )


def format_detail(instance: dict[str, Any], now: datetime) -> str:
    """Return what blocks its output, what it says of itself, or why and since when it is in its state."""
    if blocked := format_blockage(instance):
        return f"output {blocked}"
    if phase := instance.get("phase"):
        return str(phase)
    if instance["state"] in ("running", "ready") and (text := instance.get("status_text")):
        return str(text)
    detail = str(instance["reason"])
    if (seconds := instance.get("next_start_sec")) is not None:
        detail += f"; next start in {format_span(seconds)}"
    last = instance["last_event"]
    if instance["state"] in ("failed", "exited", "stopped") and last is not None and last["event"] == "state":
        detail += f" ({_ago(last, now)})"
    return detail


def _ago(record: dict[str, Any], now: datetime) -> str:
    return f"{format_duration(max((now - local_time(record)).total_seconds(), 0))} ago"


def format_blockage(instance: dict[str, Any]) -> str:
    """Return for how long the output cannot be written, and why; "" if it can."""
    if (seconds := instance.get("output_blocked_sec")) is None:  # or a supervisor of version 0.1.0
        return ""
    return f"blocked for {format_span(int(seconds))}: {instance['output_blocked_by']}"


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


def format_group_details(group: dict[str, Any], colour: bool, width: int = 0) -> str:
    """Format everything about one group. width: of the terminal, 0 if there is none."""
    pressure = group["memory_pressure_avg10"]
    lines = [
        ("description", group["text"]),
        ("in", group["group"] or ""),
        ("members", ", ".join(group["members"]) or "none"),
        (
            "memory",
            _limited(format_size(group["memory_current"]), group["memory_max"] and format_size(group["memory_max"])),
        ),
        ("pressure", "" if pressure is None else f"{pressure:.1f}% of the last 10 s all waited for memory"),
        ("processes", _limited(_number(group["pids_current"]), group["pids_max"])),
        ("cpu time", _cpu_time(group["cpu_usage_usec"])),
        ("cgroup", group["cgroup"] or _NO_CGROUP),
    ]
    return "\n".join([colorize(escape_control(group["name"]), BOLD, colour), *_labelled(lines, colour, width)])


def format_details(instance: dict[str, Any], colour: bool, now: datetime, width: int = 0) -> str:
    """Format everything about one instance: an object `History` of the API, with its latest records.

    now: with the time zone of the output. width: of the terminal, 0 if there is none.
    """
    is_alive = instance["pid"] is not None
    records = instance["records"]
    text = instance.get("status_text") or latest_status_text(instance)
    memory_max = instance["memory_max"] and format_size(instance["memory_max"])
    restarts = f", {instance['restarts']} of them restarts" if instance["restarts"] else ""
    lines = [
        ("description", instance.get("description", "")),  # "": or a supervisor of version 0.1.0
        ("state", f"{colorize(_state(instance), COLOURS.get(instance['state'], ''), colour)}{_since(instance, now)}"),
        ("reason", instance["reason"]),
        ("status", f'"{text}"' if text and is_alive else ""),
        ("error", instance.get("error_text", "")),
        *((probe, _format_probe(state)) for probe, state in instance.get("probes", {}).items()),
        *(("listens on", _format_socket(socket)) for socket in instance.get("sockets", ())),
        ("stored", _format_store(instance)),
        ("output", format_blockage(instance)),
        ("next start", _next_start(instance, now)),
        ("timer", _timer(instance)),
        *(("path", format_path_trigger(path)) for path in instance.get("paths", ())),
        ("command", format_command_line(instance.get("command", ()))),
        ("root", instance.get("root", "")),
        ("pid", str(instance["pid"]) if is_alive else ""),
        ("starts", f"{instance['generation']}{restarts}"),
        ("memory", _limited(format_size(instance["memory_current"]), memory_max) if is_alive else ""),
        ("processes", _limited(_number(instance["pids_current"]), instance["pids_max"]) if is_alive else ""),
        ("cpu time", _cpu_time(instance["cpu_usage_usec"])),
        ("last exit", format_last_exit(instance["last_exit"])),
        ("log", _log_files(instance["log"])),
        ("cgroup", instance["cgroup"] or _NO_CGROUP),
    ]
    shown = [colorize(escape_control(instance["name"]), BOLD, colour), *_labelled(lines, colour, width)]
    if records:
        record_lines = RecordLines(colour, width)
        shown += ["", *(record_lines.format(record, now) for record in records[-SHOWN_RECORDS:])]
    return "\n".join(shown)


def _format_probe(state: dict[str, Any]) -> str:
    """Return the verdict of a probe and its latest result: "passes: HTTP 200 (0.003 s)"."""
    verdict = {True: "passes", False: "fails", None: "open"}[state["passes"]]
    result = f"{state['detail']} ({format_span(state['took_sec'])})"
    if state["success"] is None:
        return f"{verdict}, but the latest could not be sent: {result}"
    if state["success"] is state["passes"]:
        return f"{verdict}: {result}"
    return f"{verdict}, but the latest {'succeeded' if state['success'] else 'failed'}: {result}"


def _format_socket(socket: dict[str, Any]) -> str:
    """Return the address of a socket of the service: "127.0.0.1:80 (stream)", or why it is not open."""
    shown = f"{socket['address']} ({socket['type'].replace('_', ' ')})"
    if socket["is_open"]:
        return f"{shown}: {socket['problem']}" if socket["problem"] else shown
    return f"{shown}: not open: {socket['problem'] or 'it is opened at the next start'}"


def format_path_trigger(path: dict[str, Any]) -> str:
    """Return what a path trigger waits for: "path_changed /etc/web.toml: reload", or why it does not act."""
    shown = f"{path['condition']} {path['path']}: {path['action']}"
    if path["is_suspended"]:
        return f"{shown}, suspended: {path['problem']}"
    if path["problem"]:
        return f"{shown}: {path['problem']}"
    if not path["is_watched"]:
        return f"{shown}, not watched yet"
    return f"{shown}, as soon as it can" if path["is_pending"] else shown


def _format_store(instance: dict[str, Any]) -> str:
    """Return what is in the descriptor store: "2 of 8 descriptors: listener, session"; "" if it may store none."""
    names, most = instance.get("stored_descriptors", ()), instance.get("stored_descriptors_max", 0)
    if not names and not most:
        return ""
    shown = Counter(names)
    listed = ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in shown.items())
    return f"{len(names)} of {format_count(most, 'descriptor')}{f': {listed}' if listed else ''}"


def output_rows(lines: Sequence[LogLine], now: datetime, colour: bool, width: int) -> list[str]:
    """Return an empty line and the lines of output, cut off at `width` (0: not); nothing if there are none."""
    rows = [""] if lines else []
    for line in lines:
        time = format_time(local_time(line.record), now) + "  " if line.timestamp else ""
        text = escape_control(line.text)
        if width and len(time) + len(text) > width:
            text = text[: max(width - len(time) - 1, 0)] + "…"
        rows.append(f"{colorize(time, FAINT, colour)}{colorize(text, line.colour, colour)}")
    return rows


def latest_status_text(instance: dict[str, Any]) -> str:
    """Return the last text that the present program has reported with STATUS=, sd_notify(3); or ""."""
    for record in reversed(instance["records"]):
        if record["event"] == "status" and record["generation"] == instance["generation"]:
            return str(record["message"])
    return ""


def format_last_exit(last: dict[str, Any] | None) -> str:
    """Describe how the last program ended; "" if none has."""
    if last is None:
        return ""
    if last.get("failure"):
        return f"could not be started: {last['failure']}"
    if last.get("unknown"):
        return "unknown: it was not supervised when it ended"
    return format_exit({"oom_killed": False, "core_dumped": False, **last})


def format_command_line(command: Sequence[str]) -> str:
    """Return a command as a line of a shell; it is cut after `MAX_COMMAND_LENGTH` characters."""
    from shlex import join  # only here, since importing it takes time

    text = join(command)
    return text if len(text) <= MAX_COMMAND_LENGTH else f"{text[:MAX_COMMAND_LENGTH]}…"


def _state(instance: dict[str, Any]) -> str:
    """Return the state with what is done in it: "ready (reloading)"."""
    phase = instance.get("phase")
    return f"{instance['state']} ({phase})" if phase else str(instance["state"])


def _since(instance: dict[str, Any], now: datetime) -> str:
    """Return since when the program runs, after which the state may have changed; or since when it does not."""
    if instance["uptime_sec"] is None:
        if (last := next((r for r in reversed(instance["records"]) if r["event"] == "state"), None)) is None:
            return ""
        return f" since {format_time(local_time(last), now)}, {_ago(last, now)}"
    started = now - timedelta(seconds=instance["uptime_sec"])
    length = format_duration(instance["uptime_sec"])
    since = format_time(started, now)
    if instance["state"] in ("running", "ready"):
        return f" for {length}, since {since}"
    ready = ", ready" if instance["ready"] else ""
    return f"{ready}; started {length} ago, at {since}"


def _timer(instance: dict[str, Any]) -> str:
    if not (timer := instance.get("timer")):  # or a supervisor of version 0.1.0
        return ""
    from nsupervisor.cli.timers import describe_timer  # only here, since few workloads have a timer

    return describe_timer(timer)


def _log_files(log: dict[str, Any]) -> str:
    """Return the paths of the instance's own log files; "" if it has none."""
    paths = [log["file"]] if log.get("files") is None else log["files"].values()  # version 0.1.0 has one file
    return ", ".join(dict.fromkeys(path for path in paths if path))


def _next_start(instance: dict[str, Any], now: datetime) -> str:
    if instance["state"] != "backoff":
        return ""
    if (seconds := instance.get("next_start_sec")) is None:  # a supervisor of version 0.1.0
        decided = next((record for record in reversed(instance["records"]) if "delay_sec" in record), None)
        if decided is None:
            return ""
        seconds = (local_time(decided) + timedelta(seconds=decided["delay_sec"]) - now).total_seconds()
    return f"in {format_span(max(seconds, 0))}"


def _labelled(lines: Iterable[tuple[str, str]], colour: bool, width: int) -> list[str]:
    """Return the rows that have a text. What is longer than the terminal continues below itself."""
    rows = []
    for label, text in lines:
        if text:
            safe = text if label == "state" else escape_control(text).replace("\n", f"\n{' ' * _LABEL_INDENT}")
            row = f"  {colorize(f'{label:<11}', FAINT, colour)} {safe}"
            rows.append("\n".join(fold(line, width, _LABEL_INDENT) for line in row.split("\n")))
    return rows


def _cpu_time(microseconds: int | None) -> str:
    return "" if microseconds is None else format_span(microseconds / 1e6)


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _with_limit(current: str, limit: object) -> str:
    return f"{current}/{limit}" if limit and current != "-" else current


def _limited(current: str, limit: object) -> str:
    """Format a value with its limit in words: "9.8M of 128M", "9.8M, no limit"; "" for an unknown value."""
    if current == "-":
        return ""
    return f"{current} of {limit}" if limit else f"{current}, no limit"
