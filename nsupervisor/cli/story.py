"""Records put together to episodes: what began something, and what came of it. Pure; `why` tells them."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs an import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Record = dict[str, Any]
    Episode = list[Record]

_OVER = ("running", "ready", "exited", "failed", "stopped", "frozen")
"""States that end an episode: what comes after one of these has a cause of its own."""
_ENDS = ("exited", "not started")


def episodes(records: Iterable[Record]) -> list[Episode]:
    """Group the records about one instance, oldest first. Each episode begins with what caused it.

    That is a rule's action, somebody's wish, a start that waits for others, the end of a program that nobody had asked
    to end, or a state that the lifecycle took by itself ("not ready within 30 s"). What changes nothing by itself (a
    rule with action log, a signal) stands alone, and interrupts nothing; the same rule again and again is one episode.
    """
    found: list[Episode] = []
    current: Episode | None = None
    latest: Episode | None = None
    for record in records:
        kind = record["event"]
        if kind == "status":
            continue
        if stands_alone(record):
            if found and current is not found[-1] and _same(found[-1][-1], record):
                found[-1].append(record)
            else:
                found.append([record])
            continue
        if current is None and latest is not None and record.get("to") == "ready":
            latest.append(record)  # the program says so some time after its start was over
            continue
        if current is None or _begins(record, current):
            current = latest = []
            found.append(current)
        current.append(record)
        if (kind == "state" and record["to"] in _OVER) or (kind == "not started" and "generation" not in record):
            current = None  # the latter: what it requires cannot be had, so its start was not even tried
    return found


def stands_alone(record: Record) -> bool:
    """It changes nothing about the workload's life; what a program makes of a signal is its own affair."""
    if record["event"] != "action":
        return record["event"] not in ("state", "exited", "not started", "started", "waiting")
    return bool(record.get("dry_run")) or record["action"] in ("log", "exec", "set", "signal")


def _begins(record: Record, current: Episode) -> bool:
    """Whether it is a new cause, while the current episode has not come to its end."""
    if record["event"] == "action":
        if "rule" in record["cause"]:
            return True
        only_waited = all(earlier["event"] == "waiting" for earlier in current)
        return "by" in record["cause"] and not only_waited
    # An end after it had been decided to start again is the next one's.
    return record["event"] in _ENDS and any(_decided(earlier) for earlier in current)


def _decided(record: Record) -> bool:
    return record["event"] == "action" and "exit" in record["cause"]


def _same(one: Record, other: Record) -> bool:
    """The same rule did the same once more."""
    if one["event"] != "action" or other["event"] != "action":
        return False
    keys = ("rule", "line")
    alike = one["action"] == other["action"] and one.get("dry_run") == other.get("dry_run")
    return alike and "rule" in one["cause"] and all(one["cause"][key] == other["cause"].get(key) for key in keys)
