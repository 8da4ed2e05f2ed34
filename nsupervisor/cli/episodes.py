"""Group records into episodes, each with its cause and its consequences. Pure; `why` renders them."""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Record = dict[str, Any]
    Episode = list[Record]

_FINAL_STATES = ("running", "ready", "exited", "failed", "stopped", "frozen")
"""States that end an episode: a record after one of these has a cause of its own."""
_END_EVENTS = ("exited", "not started")


def group_episodes(records: Iterable[Record]) -> list[Episode]:
    """Group the records about one instance, oldest first. Each episode begins with its cause.

    A cause is a rule's action, a command, a start that waits for others, an unrequested end of a program, or a state
    that the lifecycle entered by itself ("not ready within 30 s"). A record that changes nothing by itself (a rule with
    action log, a signal) stands alone, and interrupts no episode; repetitions of the same rule are one episode.
    """
    grouped: list[Episode] = []
    current: Episode | None = None
    latest: Episode | None = None
    for record in records:
        kind = record["event"]
        if kind in ("status", "probe", "program reloaded") or (kind == "timer" and record["do"] != "skip"):
            continue  # the start that a timer begins, and the state that a probe changes, have records of their own
        if is_standalone(record):
            if grouped and current is not grouped[-1] and _is_repetition(grouped[-1][-1], record):
                grouped[-1].append(record)
            else:
                grouped.append([record])
            continue
        if current is None and latest is not None and record.get("to") == "ready":
            latest.append(record)  # the program reports readiness some time after its start was complete
            continue
        if current is None or _begins_episode(record, current):
            current = latest = []
            grouped.append(current)
        current.append(record)
        if (kind == "state" and record["to"] in _FINAL_STATES) or (
            kind == "not started" and "generation" not in record
        ):
            current = None  # the latter: a requirement is not available, so the start was not even tried
    return grouped


def is_standalone(record: Record) -> bool:
    """Return whether the record changes no state of the workload. How a program handles a signal is not known."""
    if record["event"] != "action":
        return record["event"] not in ("state", "exited", "not started", "started", "waiting")
    is_of_program = record["action"] == "reload" and "changes" not in record
    return bool(record.get("dry_run")) or is_of_program or record["action"] in ("log", "exec", "set", "signal")


def _begins_episode(record: Record, current: Episode) -> bool:
    """Return whether the record is a new cause although the current episode has not ended."""
    if record["event"] in _END_EVENTS and not any(_leads_to_end(earlier) for earlier in current):
        return True
    if record["event"] == "action":
        if "rule" in record["cause"]:
            return True
        only_waited = all(earlier["event"] == "waiting" for earlier in current)
        return "by" in record["cause"] and not only_waited
    # An exit after the decision to restart belongs to the next episode.
    return record["event"] in _END_EVENTS and any(_is_restart_decision(earlier) for earlier in current)


def _leads_to_end(record: Record) -> bool:
    """Return whether a program that ends after this record may have ended because of it.

    A start of a workload that runs leads to nothing, so an exit after it has a cause of its own.
    """
    if record["event"] == "action":
        return record["action"] not in ("start", "thaw", "reload")
    return record["event"] != "state" or record["to"] in ("starting", "stopping")


def _is_restart_decision(record: Record) -> bool:
    return record["event"] == "action" and "exit" in record["cause"]


def _is_repetition(first: Record, second: Record) -> bool:
    """Return whether the same rule did the same again."""
    if first["event"] != "action" or second["event"] != "action":
        return False
    keys = ("rule", "line")
    is_same_action = first["action"] == second["action"] and first.get("dry_run") == second.get("dry_run")
    return (
        is_same_action
        and "rule" in first["cause"]
        and all(first["cause"][key] == second["cause"].get(key) for key in keys)
    )
