"""Records for people: aligned, and coloured on a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import attrs

from nsupervisor.logs.record import Line, decode_line

_COLOURS = {
    "debug": "2",
    "info": "32",
    "warning": "33",
    "error": "31",
    "critical": "1;31",
    "stdout": "36",
    "stderr": "35",
}
# Characters that move the cursor, change the colours or ring the bell of the reader's terminal; tabs are kept.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


_HEAD = ("timestamp", "level", "event")


@attrs.frozen
class ConsoleFormat:
    """Makes lines such as `12:00:00.123 info     web           started pid=12`, times in the local zone."""

    colour: bool = False

    @classmethod
    def for_terminal(cls, is_terminal: bool) -> ConsoleFormat:
        """Return a format with colours on a terminal, unless NO_COLOR or TERM=dumb asks for none.

        Source: https://no-color.org.
        """
        return cls(is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")

    def render_record(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> bytes:
        """Render one record of the service; a traceback follows on separate lines.

        Fields that are None are left out (an exit code if a signal has ended the program), and those with the names of
        the first three parameters.
        """
        remaining = {key: value for key, value in fields.items() if value is not None and key not in _HEAD}
        exception = remaining.pop("exception", None)
        line = self._render_head(
            timestamp, level, remaining.pop("workload", None) or remaining.pop("group", "")
        ) + _escape_control(event)
        line += "".join(f" {_escape_control(str(key))}={_format_value(value)}" for key, value in remaining.items())
        if exception is not None:
            line += "".join(f"\n    {_escape_control(part)}" for part in str(exception).split("\n"))
        return _encode(line + "\n")

    def render_lines(
        self,
        timestamp: str,
        labels: Mapping[str, Any],
        stream: str,
        lines: Iterable[Line],
        seq: int | None = None,
        parse_json: bool = False,
    ) -> list[bytes]:
        """Render lines of a workload, after its name; `…` marks where a line was cut."""
        head = self._render_head(timestamp, stream, labels.get("workload", "")) + "| "
        return [
            _encode(f"{head}{_escape_control(decode_line(line))}{'…' if partial else ''}\n") for line, partial in lines
        ]

    def render_text(
        self,
        timestamp: str,
        labels: Mapping[str, Any],
        stream: str,
        text: bytes,
        seq: int,
        count: int,
    ) -> bytes:
        """Render complete lines that are separated by newlines."""
        return b"".join(
            self.render_lines(timestamp, labels, stream, [(line, False) for line in text.split(b"\n")], seq)
        )

    def _render_head(self, timestamp: str, kind: str, workload: Any) -> str:
        time = datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S.%f")[:-3]
        word = f"{kind:<8}"
        if self.colour:
            time, word = f"\x1b[2m{time}\x1b[0m", f"\x1b[{_COLOURS.get(kind, '0')}m{word}\x1b[0m"
        return f"{time} {word} {_escape_control(str(workload)):<15} "


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{_escape_control(str(key))}={_format_value(item)}" for key, item in value.items()) + "}"
        )
    text = value if isinstance(value, str) else str(value)
    return (
        repr(text) if isinstance(value, str) and (not text or re.search(r"[\s\"'=]", text)) else _escape_control(text)
    )


def _escape_control(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
