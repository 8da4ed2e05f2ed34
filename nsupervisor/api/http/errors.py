"""Errors of connections: count them for the metrics, and log each kind at most once a minute per listener."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import attrs
import trio

from nsupervisor.api.http.limits import LOG_INTERVAL_S

UNIX, TCP = "unix", "tcp"
"""Names of listeners in metrics and records."""
ERROR_KINDS: Mapping[str, str] = {
    "protocol": "the request is not HTTP/1.1, or not valid (400, 431, 501, 505)",
    "timeout": "a head or body was not complete in time (408), or the client did not read the response",
    "too_large": "the body was larger than allowed (413)",
    "limit": "too many connections, or too much in memory (503)",
    "refused": "the peer may not connect (403)",
    "host": "the Host field names another host (421)",
    "disconnect": "the client was gone before the request or the response was complete",
    "evicted": "a connection that waited for its client was closed to make room for a new one",
    "handler": "a defect: a handler failed (500)",
    "accept": "a connection could not be accepted, for instance because no descriptor was left",
    "internal": "a defect in the server itself",
}
"""The kinds of connection errors, each with its meaning."""
MESSAGE_LIMIT = 500
"""Characters of a message in a record."""

ReportError = Callable[[str, Mapping[str, Any]], None]
"""Writes a record: its level ("warning", "error") and its fields."""


def log_report(level: str, fields: Mapping[str, Any]) -> None:
    """Write a record with the standard library's logging; for servers without a journal."""
    text = ", ".join(f"{name}={value}" for name, value in fields.items())
    logging.getLogger("nsupervisor.api").log(logging.getLevelNamesMapping()[level.upper()], "%s", text)


@attrs.define(eq=False)
class ConnectionErrors:
    """The errors of all connections since the start. Must be used in a trio task: the clock is trio's."""

    report: ReportError = log_report
    counts: dict[tuple[str, str], int] = attrs.field(factory=dict)
    """The number of errors by (listener, kind)."""
    _logged: dict[tuple[str, str], tuple[float, int]] = attrs.field(factory=dict)
    """When the last record was written, and the count then."""

    def count(self, listener: str, kind: str, text: str, *, peer: str = "") -> None:
        """Count an error, and log it unless one of the same kind was logged within the last minute.

        `listener` is "unix" or "tcp", `kind` one of `ERROR_KINDS`, `peer` names the other end ("uid 0", "192.0.2.7").
        """
        assert kind in ERROR_KINDS, kind
        key = listener, kind
        total = self.counts[key] = self.counts.get(key, 0) + 1
        now = trio.current_time()
        logged_at, logged_total = self._logged.get(key, (-float("inf"), 0))
        if now - logged_at < LOG_INTERVAL_S:
            return
        self._logged[key] = now, total
        fields: dict[str, Any] = {"listener": listener, "kind": kind, "message": shorten(text)}
        if peer:
            fields["peer"] = peer
        if suppressed := total - logged_total - 1:
            fields["suppressed"] = suppressed
        self.report("error" if kind in ("handler", "internal") else "warning", fields)


def shorten(text: str) -> str:
    """Return at most `MESSAGE_LIMIT` characters of a text."""
    return text if len(text) <= MESSAGE_LIMIT else f"{text[:MESSAGE_LIMIT]}…"


def describe(error: BaseException) -> str:
    """Describe an exception in one line: its type, its text, and where it was raised, innermost call first.

    For a group of exceptions it describes the first one.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{PurePath(code.co_filename).name}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return f"{type(error).__name__}: {shorten(' '.join(str(error).split()))} (at {' < '.join(reversed(frames[-5:]))})"
