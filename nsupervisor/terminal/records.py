"""Format the service's records for people, for `events` and `why`. `nsupervisor schema log` describes the records."""

from __future__ import annotations

from nsupervisor.terminal.numbers import format_count, format_size, format_span

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_BYTE_FILES = (
    "memory.current",
    "memory.peak",
    "memory.swap.current",
    "memory.zswap.current",
    "memory.max",
    "host.meminfo",
)
_EVENTS_IN_MEMORY_STAT = ("pg", "workingset_", "thp_", "numa_", "zsw")
_SHOWN_FIELDS = frozenset(
    ("timestamp", "level", "event", "workload", "group", "instance", "generation", "message", "exception", "uptime_sec")
)
_SIZE_KEYS = ("memory_max", "memory_high", "memory_low", "memory_min", "memory_swap_max", "memory_zswap_max")


def initiator_text(cause: Mapping[str, Any]) -> str:
    """Return the initiator of a command, as its record has it: "operator (uid 0, pid 4711)", "with postgres"."""
    return f"{cause['by']} ({cause['detail']})" if "detail" in cause else str(cause["by"])


def initiator_phrase(cause: Mapping[str, Any]) -> str:
    """Return the initiator for a sentence: "by operator (uid 0, pid 4711)"; "with postgres", which it requires."""
    text = initiator_text(cause)
    is_relation = cause.get("kind") == "dependency" or text.startswith("with ")  # version 0.1.0 has no kind
    return text if is_relation else f"by {text}"


def format_exit(record: Mapping[str, Any]) -> str:
    """Describe how a program ended, in the same words as the reasons of states."""
    if record.get("unknown"):
        return "exit status unknown, because it was not supervised when it ended"
    if record["signal"] is None:
        return f"exit code {record['code']}"
    text = f"killed by {record['signal']}"
    return (
        text + (", out of memory" if record["oom_killed"] else "") + (", core dumped" if record["core_dumped"] else "")
    )


def format_values(cause: Mapping[str, Any]) -> str:
    """Format the values that fired a rule: "0 → 1", or "15 → 16, threshold 14.4, held for 0.31 s"."""
    in_bytes = cause["file"] in _BYTE_FILES or (
        cause["file"] == "memory.stat" and not cause["key"].startswith(_EVENTS_IN_MEMORY_STAT)
    )

    def number(value: float) -> str:
        if in_bytes:
            return format_size(round(value))
        return str(int(value)) if value == int(value) else f"{value:.6g}"

    before, after = number(cause["before"]), number(cause["after"])
    text = after if before == after else f"{before} → {after}"
    if "threshold" in cause:
        text += f", threshold {number(cause['threshold'])}"
    return text + (f", held for {format_span(cause['held'])}" if cause.get("held") else "")


def format_reading(cause: Mapping[str, Any]) -> str:
    """Format the file and the values that fired a rule: "memory.events oom_kill: 0 → 1"."""
    return f"{cause['file']} {cause['key']}".rstrip() + f": {format_values(cause)}"


def format_start_limit(record: Mapping[str, Any]) -> str:
    """Format the position of a restart in the start limit: "start 2 of 5 within 60 s"; "" without a start limit."""
    if not record.get("start_limit_burst"):
        return ""
    return f"start {record['start']} of {record['start_limit_burst']} within {format_span(record['interval_sec'])}"


def format_command(record: Mapping[str, Any]) -> str:
    """Format a command with its arguments: "set memory_max 64M → 32M", "signal SIGHUP", "stop"."""
    words = [record["action"], record.get("signal", "")]
    if record["action"] == "set" and "after" in record:
        before, after = record["before"], record["after"]
        words.append(
            ", ".join(
                f"{key} {_format_limit(key, before.get(key))} → {_format_limit(key, after[key])}" for key in after
            )
        )
    if record["action"] == "reload" and "changes" in record:  # otherwise the program itself was to reload
        words.append(f"({STEP_WORDS[record['do']]}: {', '.join(change['key'] for change in record['changes'])})")
    return " ".join(word for word in words if word)


def _format_limit(key: str, value: Any) -> str:
    if value is None or value in ([], {}):
        return "max"
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):  # a list by device, as in the file
        return ", ".join(_format_limit(key, entry) for entry in value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {entry}" for name, entry in value.items() if entry is not None) + " }"
    return format_size(value) if key in _SIZE_KEYS and isinstance(value, int) else str(value)


def format_choice(cause: Mapping[str, Any]) -> str:
    """Describe why a group's rule chose this workload: "first of 3 by largest-memory (memory 150.2M)"."""
    candidates = cause["candidates"]
    return f"first of {len(candidates)} by {cause['victim']} ({candidates[0]['why']})"


def format_record(record: Mapping[str, Any]) -> str:
    """Format everything in a record except time, name and event, as part of a line."""
    match record["event"]:
        case "action" if "cause" in record:
            return _format_action(record)
        case "probe" if "passes" in record:
            verdict = "passes" if record["passes"] else f"fails ({record['in_a_row']} in a row)"
            return f"{record['probe']} {verdict}: {record['message']} ({format_span(record['took_sec'])})"
        case "exec" if "command" in record and "cause" in record:
            user = f" as {record['user']}" if "user" in record else ""
            return f"{record['command']}{user} {initiator_phrase(record['cause'])}"
        case "state" if "to" in record:
            return f"{record['from']} → {record['to']}: {record['reason']}"
        case "exited" if "pid" in record:
            after = f" after {format_span(record['uptime_sec'])}" if "uptime_sec" in record else ""
            repetition = ", may have been recorded before" if record.get("duplicate") else ""
            return f"{format_exit(record)}{after}, pid {record['pid']}{repetition}"
        case "dropped" if "dropped" in record:
            count = format_count(record["dropped"], "record")
            return f"{count} {'is' if record['dropped'] == 1 else 'are'} missing here: {record['reason']}"
        case "supervisor started" if "config" in record:
            pids = f"pid {record['pid']}, keeper {record['keeper_pid']}"
            return f"version {record['version']} runs {record['config']}, {pids}"
        case "supervisor stopping" if "signal" in record:
            why = f": {record['message']}" if "message" in record else ""
            return f"after {record['signal']}{why}{', killing what is left' if record.get('hurry') else ''}"
        case "reload" if "cause" in record:
            return f"{format_steps(record)}; requested by {initiator_text(record['cause'])}"
        case "program reloaded" if "took_sec" in record:
            return f"took {format_span(record['took_sec'])}"
        case "program reload failed" if "took_sec" in record:
            return f"{record['message']} (after {format_span(record['took_sec'])}); it runs on"
        case "reloaded" if "ok" in record:
            return "done" if record["ok"] else "not all of it is up"
        case "groups reloaded" if "changes" in record:
            return "; ".join(format_change(change) for change in record["changes"])
    fields = ", ".join(f"{key} {_format_field(value)}" for key, value in record.items() if key not in _SHOWN_FIELDS)
    if "message" not in record:
        return fields
    message = str(record["message"]).removeprefix(f"workload {record.get('workload')}: ")  # the line has the name
    return f"{message} ({fields})" if fields else message


def _format_field(value: Any) -> str:
    """Format the value of an unknown field in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_format_field, value)) or "none"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_format_field(item)}" for key, item in value.items()) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


STEP_WORDS = {
    "restart": "to restart",
    "start": "to start",
    "stop": "to stop",
    "live": "changed in place",
    "none": "unchanged",
}
"""The words for the steps of a plan, in the order of a summary."""


def format_steps(counts: Mapping[str, Any]) -> str:
    """Format how many workloads a plan restarts, starts, stops, changes in place and leaves unchanged."""
    parts = [f"{counts[step]} {words}" for step, words in STEP_WORDS.items() if counts.get(step)]
    return ", ".join(parts) or "no workloads"


def format_change(change: Mapping[str, Any]) -> str:
    """Format one changed key: `resources.memory_max: "64M" → "128M"`, `environment.TOKEN: changed`."""
    if change["how"] == "contents":
        return f"{change['key']}: the contents differ"
    if change["before"] is None or change["how"] == "reordered":
        return f"{change['key']}: {change['how']}"
    if change["before"] == change["after"]:
        return f"{change['key']}: changed, in the part that is not shown"
    return f"{change['key']}: {change['before']} → {change['after']}"


def _format_action(record: Mapping[str, Any]) -> str:
    cause = record["cause"]
    if "rule" in cause:
        suffix = " (dry run)" if record.get("dry_run") else ""
        file = f"{cause['file']} {cause['key']}".rstrip()
        observed = format_values(cause) if cause["when"].startswith(file) else format_reading(cause)
        if "message" in record:
            suffix += f", {record['message']}"
        choice = f", {format_choice(cause)}" if "victim" in cause else ""
        line = f", line {cause['line']}" if cause["line"] else ""  # a rule of an included file has the line 0
        rule = f"{cause['rule']}{line}: {cause['when']}"
        return f"{format_command(record)}{suffix} by {rule}: {observed}{choice}"
    if "by" in cause:
        return f"{format_command(record)} {initiator_phrase(cause)}"
    parts = [
        f"restart in {format_span(record.get('delay_sec', 0))}",
        format_start_limit(record),
        f"after {cause['exit']}",
    ]
    return ", ".join(part for part in parts if part)
