"""Records as aligned lines: of `events`, and of the service's own output on a terminal."""

from __future__ import annotations

import re
from datetime import datetime

from nsupervisor.terminal.records import format_record
from nsupervisor.terminal.style import BOLD, FAINT, MAGENTA, RED, colorize, escape_control
from nsupervisor.terminal.times import format_time, local_time

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_COLOURS = {"warning": MAGENTA, "error": RED, "critical": RED}
_MIN_NAME_WIDTH = 10
_MAX_NAME_WIDTH = 40
_EVENT_WIDTH = len("not started")
_MIN_DETAILS_WIDTH = 30
"""The narrowest column of details; on a narrower terminal they continue below the time."""
_NARROW_INDENT = 4
_WORD_BEGIN = re.compile(r"(?<=\s)(?=\S)")
_COLOUR_CODE = re.compile("\x1b\\[[0-9;]*m")


class RecordLines:
    """Formats records as lines of time, name, event and details. The column of names grows with the longest so far.

    width: continue the details on further lines of at most this length, below each other; 0: one line for each record.
    """

    def __init__(self, colour: bool, width: int = 0) -> None:
        self.colour = colour
        self.width = width
        self.name_width = _MIN_NAME_WIDTH

    def format(self, record: Mapping[str, Any], today: datetime | None = None) -> str:
        """Format a record; without `today` the date is left out. A traceback follows on lines of its own."""
        time = local_time(record)
        details = escape_control(format_record(record)).replace("\n", " ")
        lines = self.format_columns(
            format_time(time, today or time),
            record.get("workload") or record.get("group") or "-",
            record["event"],
            details,
            _COLOURS.get(record["level"], ""),
        )
        traceback = record.get("exception")
        return lines if traceback is None else "\n    ".join([lines, *escape_control(str(traceback)).split("\n")])

    def format_columns(self, time: str, name: str, event: str, details: str, colour: str = "") -> str:
        """Format the columns of a line; `colour` is that of the event."""
        name, event = escape_control(name), escape_control(event)
        self.name_width = max(self.name_width, min(len(name), _MAX_NAME_WIDTH))
        head = [
            colorize(time, FAINT, self.colour),
            colorize(f"{name:<{self.name_width}}", BOLD, self.colour),
            colorize(f"{event:<{_EVENT_WIDTH}}", colour, self.colour),
        ]
        indent = len(time) + max(self.name_width, len(name)) + max(_EVENT_WIDTH, len(event)) + 6
        shown = self._wrapped(details, indent)
        if shown.startswith("\n"):
            return "  ".join(head).rstrip() + shown
        return f"{'  '.join(head)}  {shown}".rstrip()

    def _wrapped(self, details: str, indent: int) -> str:
        if not self.width or indent + len(details) <= self.width:
            return details
        if self.width - indent >= _MIN_DETAILS_WIDTH:
            return f"\n{' ' * indent}".join(wrap(details, self.width - indent))
        further = f"\n{' ' * _NARROW_INDENT}"
        return further + further.join(wrap(details, max(self.width - _NARROW_INDENT, _MIN_DETAILS_WIDTH)))


def fold(text: str, width: int, indent: int) -> str:
    """Break a text, which may have colours, between words; lines after the first begin with `indent` spaces.

    width: of the terminal; 0: unknown, so the text stays as it is. A word that is longer stays whole.
    """
    if not width or _visible_length(text) <= width:
        return text
    lines = [""]
    for word in _WORD_BEGIN.split(text):
        if _visible_length(lines[-1] + word.rstrip()) > width and lines[-1].strip():
            lines.append(" " * indent)
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def _visible_length(text: str) -> int:
    return len(_COLOUR_CODE.sub("", text))


def wrap(text: str, width: int) -> list[str]:
    """Break a text between words into lines of at most `width` characters; longer words are broken."""
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + 1 + len(word) <= width and lines[-1]:
            lines[-1] += f" {word}"
            continue
        pieces = [word[start : start + width] for start in range(0, len(word), width)] or [""]
        lines[-1:] = [lines[-1], *pieces] if lines[-1] else pieces
    return lines
