"""Records for people: aligned, in the words of `nsupervisor events`, and coloured on a terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import attrs

from nsupervisor.logs.record import Line, decode_line
from nsupervisor.terminal.lines import RecordLines
from nsupervisor.terminal.style import RED

# Characters that move the cursor, change the colours or ring the bell of the reader's terminal; tabs are kept.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@attrs.frozen
class ConsoleFormat:
    """Makes lines such as `12:00:00.123  web         started      pid 12`, times in the local zone."""

    colour: bool = False
    _lines: RecordLines = attrs.field(
        init=False, default=attrs.Factory(lambda self: RecordLines(self.colour), takes_self=True)
    )

    @classmethod
    def for_terminal(cls, is_terminal: bool) -> ConsoleFormat:
        """Return a format with colours on a terminal, unless NO_COLOR or TERM=dumb asks for none.

        Source: https://no-color.org.
        """
        return cls(is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")

    def render_record(self, timestamp: str, level: str, event: str, fields: Mapping[str, Any]) -> bytes:
        """Render one record of the service; a traceback follows on separate lines.

        Fields with the names of the first three parameters are left out.
        """
        return _encode(self._lines.format({**fields, "timestamp": timestamp, "level": level, "event": event}) + "\n")

    def render_lines(
        self,
        timestamp: str,
        labels: Mapping[str, Any],
        stream: str,
        lines: Iterable[Line],
        seq: int | None = None,
        parse_json: bool = False,
    ) -> list[bytes]:
        """Render lines of a workload; `…` marks where a line was cut."""
        time = datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S.%f")[:-3]
        name, colour = labels.get("workload", "-"), RED if stream == "stderr" else ""
        return [
            _encode(
                self._lines.format_columns(
                    time, name, stream, _escape_control(decode_line(line)) + ("…" if partial else ""), colour
                )
                + "\n"
            )
            for line, partial in lines
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


def _escape_control(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
