"""The live screen of `top`: key presses in, a table with sparklines out. The only module that imports rich."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections import defaultdict, deque
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nsupervisor.cli.commands.status import COLOURS
from nsupervisor.cli.rates import HEADS, sort_instances, table_cells
from nsupervisor.terminal.numbers import format_count
from nsupervisor.terminal.style import BLUE, FAINT, GREEN, RED, YELLOW, escape_control

SPARKLINE_SAMPLES = 16
"""The number of samples that a sparkline shows."""
BARS = "▁▂▃▄▅▆▇█"
SORT_KEYS = {"c": "cpu", "m": "memory", "p": "processes", "i": "io", "t": "network", "w": "pressure", "n": "name"}
"""The sort order for each key."""
RUNNING_STATES = ("starting", "running", "ready", "stopping", "frozen")
"""States in which an instance may have processes."""
_ORDER_NAMES = {"cpu": "CPU", "io": "I/O"}
_STYLES = {GREEN: "green", RED: "red", YELLOW: "yellow", BLUE: "blue", FAINT: "dim", "": ""}
_SPARKLINE_COLUMNS = {"CPU%": "cpu_percent", "MEMORY": "memory_current"}
_OPTIONAL_COLUMNS = (
    *("SEND/S", "RECEIVE/S", "IO-WAIT%", "MEM-WAIT%", "CPU-WAIT%", "WRITE/S", "READ/S", "THROTTLED%"),
    *("MEMORY ", "CPU% ", "PIDS", "STATE"),
)
"""The columns that are dropped first if there is no room; the names of sparkline columns end with a space."""


_ESCAPE_SEQUENCE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|O.|)")
"""The sequences that cursor keys and other special keys send, ECMA-48."""


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

    def read_keys(self, timeout: float) -> str:
        """Return the keys typed so far, or the next one within `timeout` seconds; "q" also if the terminal is gone."""
        if self._fd is None:
            time.sleep(timeout)
            return ""
        if not select.select([self._fd], [], [], timeout)[0]:
            return ""
        typed = os.read(self._fd, 256)
        return _ESCAPE_SEQUENCE.sub(b"", typed).decode(errors="ignore").lower() if typed else "q"


class Screen:
    """The terminal while it shows the table; afterwards it is restored."""

    def __init__(self, order: str = "cpu") -> None:
        for name in ("COLUMNS", "LINES"):  # rich would use them instead of the size of the terminal, which may change
            os.environ.pop(name, None)
        self.console = Console()
        self._live = Live(Text("measuring …"), console=self.console, screen=True, auto_refresh=False)
        self._sort_order, self._is_reversed = order, False
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
        """Change the sort order according to the key."""
        if key == "r":
            self._is_reversed = not self._is_reversed
        elif key in SORT_KEYS:
            self._sort_order = SORT_KEYS[key]
        else:
            return
        self._draw()

    def show_sample(self, measured: list[dict[str, Any]]) -> None:
        """Show the next sample."""
        self._measured = measured
        for instance in measured:
            for column in _SPARKLINE_COLUMNS.values():
                self._history[instance["name"], column].append(instance[column] or 0)
        self._draw()

    def _draw(self) -> None:
        self._live.update(Group(self._header(), self._table()), refresh=True)

    def _header(self) -> Text:
        shown = min(len(self._measured), self._room)
        text = format_header(
            time.strftime("%H:%M:%S"),
            len(self._measured),
            shown,
            self._sort_order,
            self._is_reversed,
            self.console.width,
        )
        return Text(text, style="dim", no_wrap=True)

    @property
    def _room(self) -> int:
        """The number of rows below the header and the heads."""
        return max(self.console.height - 3, 1)

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
        for row, instance in list(zip(zip(*columns.values(), strict=True), ordered, strict=True))[: self._room]:
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


def format_header(time_: str, count: int, shown: int, order: str, is_reversed: bool, width: int) -> str:
    """Return the line above the table: what it shows, and as many keys as fit, the most important first."""
    instances = format_count(count, "instance") if shown == count else f"{shown} of {format_count(count, 'instance')}"
    by = _ORDER_NAMES.get(order, order) + (", reversed" if is_reversed else "")
    text = f"{time_}  {instances}, by {by}   q quit"
    for key, name in {**SORT_KEYS, "r": "reverse"}.items():
        longer = f"{text}, {key} {_ORDER_NAMES.get(name, name)}"
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
    """Drop columns until the rest fits into `width` characters."""
    for dispensable in _OPTIONAL_COLUMNS:
        if sum(max(map(len, [head, *values])) + 2 for head, values in columns.items()) - 2 <= width:
            return
        columns.pop(dispensable, None)
