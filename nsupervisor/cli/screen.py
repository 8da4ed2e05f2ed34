"""The live screen of `top`: key presses in, a table with sparklines out. The only module that imports rich."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections import Counter, defaultdict, deque
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nsupervisor.cli.commands.status import COLOURS
from nsupervisor.cli.rates import HEADS, STATE_ORDER, sort_instances, table_cells
from nsupervisor.terminal.numbers import format_count
from nsupervisor.terminal.style import FAINT, GREEN, MAGENTA, RED, escape_control

SPARKLINE_SAMPLES = 16
"""The number of samples that a sparkline shows."""
BARS = "▁▂▃▄▅▆▇█"
SORT_KEYS = {
    "c": "cpu",
    "m": "memory",
    "p": "processes",
    "i": "io",
    "t": "network",
    "w": "pressure",
    "s": "state",
    "n": "name",
}
"""The sort order for each key."""
RUNNING_STATES = ("starting", "running", "ready", "stopping", "frozen")
"""States in which an instance may have processes."""
_ORDER_NAMES = {"cpu": "CPU", "io": "I/O"}
_STYLES = {GREEN: "green", RED: "red", MAGENTA: "magenta", FAINT: "dim", "": ""}
_SPARKLINE_COLUMNS = {"CPU%": "cpu_percent", "MEMORY": "memory_current"}
_OPTIONAL_COLUMNS = (
    *("SEND/S", "RECEIVE/S", "IO-WAIT%", "MEM-WAIT%", "CPU-WAIT%", "WRITE/S", "READ/S", "THROTTLED%"),
    *("MEMORY ", "CPU% ", "PIDS", "STATE"),
)
"""The columns that are dropped first if there is no room; the names of sparkline columns end with a space."""


_KEYS = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|)|[^\x1b]", re.DOTALL)
"""One key press: a character, or the sequence that a cursor key or another special key sends, ECMA-48."""
_SPECIAL_KEYS = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"\x1b[4~": "end",
}
"""The keys that scroll, by the sequence that xterm, the Linux console and tmux send."""


class Keyboard:
    """The keyboard: single key presses without an echo. If standard input is not a terminal, no key is ever pressed."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._saved_attributes: list[Any] = []

    def __enter__(self) -> Keyboard:
        if self._fd is not None:
            self._saved_attributes = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved_attributes)

    def read_keys(self, timeout: float) -> list[str]:
        """Return the keys typed so far, or the next one within `timeout` seconds; "q" also if the terminal is gone.

        A key is a lower-case letter, or the name of one that scrolls: "up", "page down", ….
        """
        if self._fd is None:
            time.sleep(timeout)
            return []
        if not select.select([self._fd], [], [], timeout)[0]:
            return []
        typed = os.read(self._fd, 256)
        return parse_keys(typed) if typed else ["q"]


def parse_keys(typed: bytes) -> list[str]:
    """Return the key presses among the bytes that a terminal sends; keys without a meaning here are left out."""
    presses: list[bytes] = _KEYS.findall(typed)
    return [
        _SPECIAL_KEYS.get(press) or press.decode().lower()
        for press in presses
        if press in _SPECIAL_KEYS or (press.isascii() and press.isalpha())
    ]


class Screen:
    """The terminal while it shows the table; afterwards it is restored."""

    def __init__(self, order: str = "cpu") -> None:
        for name in ("COLUMNS", "LINES"):  # rich would use them instead of the size of the terminal, which may change
            os.environ.pop(name, None)
        self.console = Console()
        self._live = Live(Text("measuring …"), console=self.console, screen=True, auto_refresh=False)
        self._sort_order, self._is_reversed = order, False
        self._offset = 0
        self._measured: list[dict[str, Any]] = []
        self._history: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=SPARKLINE_SAMPLES))

    def __enter__(self) -> Screen:
        self._live.__enter__()
        self._live.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def handle_key(self, key: str) -> None:
        """Change the sort order, or scroll, according to the key."""
        if (offset := self._scrolled(key)) is not None:
            self._offset = offset
        elif key == "r":
            self._is_reversed = not self._is_reversed
        elif key in SORT_KEYS:
            self._sort_order = SORT_KEYS[key]
        else:
            return
        self._draw()

    def _scrolled(self, key: str) -> int | None:
        """Return the first row to show after this key; None if it does not scroll."""
        steps = {"up": -1, "down": 1, "page up": -self._room, "page down": self._room, "home": -self._offset}
        last = len(self._measured) - self._room
        return last if key == "end" else self._offset + steps[key] if key in steps else None

    def show_sample(self, measured: list[dict[str, Any]]) -> None:
        """Show the next sample."""
        self._measured = measured
        for instance in measured:
            for column in _SPARKLINE_COLUMNS.values():
                self._history[instance["name"], column].append(instance[column] or 0)
        self._draw()

    def _draw(self) -> None:
        self._offset = max(min(self._offset, len(self._measured) - self._room), 0)
        self._live.update(Group(self._header(), self._keys(), self._table()), refresh=True)

    def _header(self) -> Text:
        order = _ORDER_NAMES.get(self._sort_order, self._sort_order) + (", reversed" if self._is_reversed else "")
        rows = range(self._offset, min(self._offset + self._room, len(self._measured)))
        text = Text(f"{time.strftime('%H:%M:%S')}  {format_rows(len(self._measured), rows)}, by {order}", no_wrap=True)
        counts = Counter(instance["state"] for instance in self._measured)
        for number, state in enumerate(state for state in STATE_ORDER if counts[state]):
            text.append(", " if number else ": ")
            text.append(f"{counts[state]} {state}", style=_STYLES[COLOURS[state]])
        text.overflow = "ellipsis"
        return text

    def _keys(self) -> Text:
        return Text(format_keys(self.console.width, len(self._measured) > self._room), style="dim", no_wrap=True)

    @property
    def _room(self) -> int:
        """The number of rows below the header, the keys and the heads."""
        return max(self.console.height - 4, 1)

    def _table(self) -> Table:
        ordered = sort_instances(self._measured, self._sort_order, self._is_reversed)
        # Columns by their heads: those of `stats`, some followed by a sparkline.
        columns: dict[str, list[str]] = {}
        for head, values in zip(
            HEADS, zip(*map(table_cells, ordered), strict=True) if ordered else [()] * len(HEADS), strict=True
        ):
            columns[head] = [escape_control(value) for value in values]
            if head in _SPARKLINE_COLUMNS:
                columns[f"{head} "] = [self._spark(instance, _SPARKLINE_COLUMNS[head]) for instance in ordered]
        drop_columns_to_fit(columns, self.console.width)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
        for head in columns:
            is_left = head in ("NAME", "STATE") or head.endswith(" ")
            table.add_column("" if head.endswith(" ") else head, justify="left" if is_left else "right", no_wrap=True)
        shown = slice(self._offset, self._offset + self._room)
        for row, instance in list(zip(zip(*columns.values(), strict=True), ordered, strict=True))[shown]:
            style = _STYLES[COLOURS.get(instance["state"], "")]
            table.add_row(*(Text(cell, style=style if i == 1 else "") for i, cell in enumerate(row)))
        return table

    def _spark(self, instance: dict[str, Any], column: str) -> str:
        """Draw the latest samples of an instance that runs.

        They are scaled to its limit; without one to a processor, or to the largest memory of any instance.
        """
        if instance["state"] not in RUNNING_STATES:
            return ""
        if column == "memory_current":
            limit = instance["memory_max"] or max(other[column] or 0 for other in self._measured)
        else:
            limit = instance["cpu_max_percent"] or 100.0
        return sparkline(self._history[instance["name"], column], limit).rjust(SPARKLINE_SAMPLES)


def format_rows(count: int, rows: range) -> str:
    """Describe how many instances there are, and which rows of them are shown if that is not all."""
    if len(rows) == count:
        return format_count(count, "instance")
    return f"{rows.start + 1}-{rows.stop} of {format_count(count, 'instance')}"


def format_keys(width: int, scrolls: bool) -> str:
    """Return the line of the keys: as many as fit, the most important first."""
    scroll = {"↑ ↓ page up, page down": "scroll"} if scrolls else {}
    keys = {"q": "quit", **scroll, "s": "state", **SORT_KEYS, "r": "reverse"}
    text = ""
    for key, name in keys.items():
        longer = f"{text}{', ' if text else ''}{key} {_ORDER_NAMES.get(name, name)}"
        if len(longer) > width - 3:
            return f"{text}, …"[:width]
        text = longer
    return text


def sparkline(samples: deque[float] | list[float], limit: float | None) -> str:
    """Draw bars of the latest samples, scaled to `limit`, or without one to the largest sample."""
    maximum = max([*samples, limit or 0.0])
    if not maximum:
        return BARS[0] * len(samples)
    return "".join(BARS[min(int(value / maximum * len(BARS)), len(BARS) - 1)] for value in samples)


def drop_columns_to_fit(columns: dict[str, list[str]], width: int) -> None:
    """Drop columns until the rest fits into `width` characters: first those without any value."""
    empty = [head for head in _OPTIONAL_COLUMNS if columns.get(head) and all(v in ("", "-") for v in columns[head])]
    for dispensable in (*empty, *_OPTIONAL_COLUMNS):
        if sum(max(map(len, [head, *values])) + 2 for head, values in columns.items()) - 2 <= width:
            return
        columns.pop(dispensable, None)
