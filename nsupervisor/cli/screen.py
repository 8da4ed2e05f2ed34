"""The live screen of `top`: keys in, a table with sparklines out. The only module that loads rich."""

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
from nsupervisor.cli.output import BLUE, FAINT, GREEN, RED, YELLOW, printable
from nsupervisor.cli.rates import HEADS, cells, sort

SAMPLES = 16
"""How many a sparkline shows."""
BARS = "▁▂▃▄▅▆▇█"
KEYS = {"c": "cpu", "m": "memory", "p": "processes", "i": "io", "t": "network", "w": "pressure", "n": "name"}
"""What a key sorts by."""
_WORDS = {"cpu": "CPU", "io": "I/O"}
_STYLES = {GREEN: "green", RED: "red", YELLOW: "yellow", BLUE: "blue", FAINT: "dim", "": ""}
_SPARKS = {"CPU%": "cpu_percent", "MEMORY": "memory_current"}
_DISPENSABLE = (
    *("SEND/S", "RECEIVE/S", "IO-WAIT%", "MEM-WAIT%", "CPU-WAIT%", "WRITE/S", "READ/S", "THROTTLED%"),
    *("MEMORY ", "CPU% ", "PIDS", "STATE"),
)
"""Columns that go first where there is no room; those of sparklines end with a space."""


_ESCAPE = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|O.|)")
"""What cursor keys and the like send, ECMA-48."""


class Keys:
    """What is typed, key by key, without an echo. Where standard input is no terminal nothing is ever typed."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[Any] = []

    def __enter__(self) -> Keys:
        if self._fd is not None:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def get(self, patience: float) -> str:
        """The keys typed so far, or the next one within `patience` seconds; "q" too when the terminal is gone."""
        if self._fd is None:
            time.sleep(patience)
            return ""
        if not select.select([self._fd], [], [], patience)[0]:
            return ""
        typed = os.read(self._fd, 256)
        return _ESCAPE.sub(b"", typed).decode(errors="ignore").lower() if typed else "q"


class Screen:
    """The terminal while it shows the table; it is as it was before afterwards."""

    def __init__(self, order: str = "cpu") -> None:
        for name in ("COLUMNS", "LINES"):  # rich would believe them, and not the terminal, which may be resized
            os.environ.pop(name, None)
        self.console = Console()
        self._live = Live(Text("measuring …"), console=self.console, screen=True, auto_refresh=False)
        self._order, self._reverse = order, False
        self._measured: list[dict[str, Any]] = []
        self._past: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=SAMPLES))

    def __enter__(self) -> Screen:
        self._live.__enter__()
        self._live.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def press(self, key: str) -> None:
        """Sort as the key says."""
        if key == "r":
            self._reverse = not self._reverse
        elif key in KEYS:
            self._order = KEYS[key]
        else:
            return
        self._draw()

    def show(self, measured: list[dict[str, Any]]) -> None:
        """The next sample."""
        self._measured = measured
        for one in measured:
            for column in _SPARKS.values():
                self._past[one["name"], column].append(one[column] or 0)
        self._draw()

    def _draw(self) -> None:
        self._live.update(Group(self._head(), self._table()), refresh=True)

    def _head(self) -> Text:
        by = _WORDS.get(self._order, self._order) + (", reversed" if self._reverse else "")
        text = f"{time.strftime('%H:%M:%S')}  {len(self._measured)} instances, by {by}   keys: "
        keys = ", ".join(
            f"{key} {_WORDS.get(name, name)}" for key, name in {**KEYS, "r": "reverse", "q": "quit"}.items()
        )
        return Text(text + keys, style="dim", no_wrap=True)

    def _table(self) -> Table:
        room = max(self.console.height - 3, 1)
        ordered = sort(self._measured, self._order, self._reverse)
        # Columns by their heads: those of `stats`, and sparklines behind some.
        columns: dict[str, list[str]] = {}
        for head, values in zip(
            HEADS, zip(*map(cells, ordered), strict=True) if ordered else [()] * len(HEADS), strict=True
        ):
            columns[head] = [printable(value) for value in values]
            if head in _SPARKS:
                columns[f"{head} "] = [self._spark(one, _SPARKS[head]) for one in ordered]
        fit(columns, self.console.width)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
        for head in columns:
            left = head in ("NAME", "STATE") or head.endswith(" ")
            table.add_column("" if head.endswith(" ") else head, justify="left" if left else "right", no_wrap=True)
        for row, one in list(zip(zip(*columns.values(), strict=True), ordered, strict=True))[:room]:
            style = _STYLES[COLOURS.get(one["state"], "")]
            table.add_row(*(Text(cell, style=style if i == 1 else "") for i, cell in enumerate(row)))
        return table

    def _spark(self, one: dict[str, Any], column: str) -> str:
        limit = one["memory_max"] if column == "memory_current" else one["cpu_max_percent"] or 100.0
        return sparkline(self._past[one["name"], column], limit).rjust(SAMPLES)


def sparkline(samples: deque[float] | list[float], limit: float | None) -> str:
    """Bars of the latest samples, of at most `limit`; without one, of the largest of them."""
    most = max([*samples, limit or 0.0])
    if not most:
        return BARS[0] * len(samples)
    return "".join(BARS[min(int(value / most * len(BARS)), len(BARS) - 1)] for value in samples)


def fit(columns: dict[str, list[str]], width: int) -> None:
    """Take columns away until the rest has room in `width` characters."""
    for dispensable in _DISPENSABLE:
        if sum(max(map(len, [head, *values])) + 2 for head, values in columns.items()) - 2 <= width:
            return
        columns.pop(dispensable, None)
