"""Helpers that the commands share: exit statuses, formatting for people, tables, JSON."""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TextIO

DONE, FAILED, USAGE = 0, 1, 2  # the client's errors define the others

RED, GREEN, YELLOW, BLUE, FAINT, BOLD = "31", "32", "33", "34", "2", "1"


def print_message(text: str) -> None:
    """Print a message for people to stderr."""
    print(escape_control(text), file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value for programs to stdout."""
    print(json.dumps(value, indent=2))


def has_colour(stream: TextIO) -> bool:
    """Return whether to use colours: on terminals, unless NO_COLOR is set (no-color.org) or they are dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colorize(text: str, colour: str, is_enabled: bool) -> str:
    """Return the text in a colour (an SGR parameter of ECMA-48); unchanged without `is_enabled` or a colour."""
    return f"\033[{colour}m{text}\033[0m" if is_enabled and colour else text


def escape_control(text: str) -> str:
    """Return the text without control characters, which could move the cursor; newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def format_size(number: int | None) -> str:
    """Format bytes for people, in powers of 1024: 12939428 → "12.3M"; None → "-"."""
    if number is None:
        return "-"
    value = float(number)
    for unit in ("B", "K", "M", "G", "T", "P", "E"):
        if value < 1023.95 or unit == "E":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + (unit if number else "")


def format_duration(seconds: float | None) -> str:
    """Format seconds for people, in the two largest units: 93784 → "1d 2h"; 4.2 → "4s"; None → "-"."""
    if seconds is None:
        return "-"
    remaining = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, remaining = divmod(remaining, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        elif parts:
            break  # "1d" rather than "1d 5min"
    return " ".join(parts[:2])


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun: "1 workload", "2 workloads"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[int] = (),
    width: int = 0,
    paint: Callable[[int, str, str], str] = lambda column, value, padded: padded,
) -> list[str]:
    """Return the lines of a table with aligned columns and heads.

    right: columns to align right. width: cut lines at it, 0 for never. paint(column, value, padded) colours a cell
    after it was measured; column -1 is a cell of the heads.
    """
    cells = [[escape_control(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max([len(head), *(len(row[column]) for row in cells)]) for column, head in enumerate(heads)]
    right_aligned = set(right)
    lines = []
    for number, row in enumerate([list(heads), *cells]):
        line, used = [], 0
        for column, cell in enumerate(row):
            displayed = cell
            if width and used + len(cell) > width:
                displayed = cell[: max(width - used - 1, 0)] + "…"
            last = column == len(heads) - 1 and column not in right_aligned
            fill = widths[column] if not last else 0
            padded = displayed.rjust(fill) if column in right_aligned else displayed.ljust(fill)
            line.append(paint(column if number else -1, cell, padded))
            used += len(padded) + 2
        lines.append("  ".join(line).rstrip())
    return lines
