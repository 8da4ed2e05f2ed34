"""Tables with aligned columns."""

from __future__ import annotations

from nsupervisor.terminal.style import escape_control

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


MIN_LAST_WIDTH = 10
"""The narrowest last column of text; a narrower table gives up other columns."""


def format_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[int] = (),
    width: int = 0,
    paint: Callable[[int, str, str], str] = lambda column, value, padded: padded,
) -> list[str]:
    """Return the lines of a table with aligned columns and heads.

    right: columns to align right. width: of the terminal, 0 if it is unknown. A wider table gives up the columns that
    have no value in any row, then those at its right, where "…" marks the heads; a last column of text is cut instead.
    paint(column, value, padded) colours a cell after it was measured; column -1 is a cell of the heads.
    """
    cells = [[escape_control(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max([len(head), *(len(row[column]) for row in cells)]) for column, head in enumerate(heads)]
    right_aligned = set(right)
    last_text = len(heads) - 1 if len(heads) - 1 not in right_aligned else None
    kept = _choose_columns(widths, cells, last_text, width) if width else list(range(len(heads)))
    mark = "  …" if kept[-1] != len(heads) - 1 else ""
    lines = []
    for number, row in enumerate([list(heads), *cells]):
        line, used = [], 0
        for column in kept:
            cell = displayed = row[column]
            room = max(width - used, 1)
            if width and len(cell) > room:
                displayed = cell[: room - 1] + "…"
            fill = widths[column] if column != last_text else 0
            padded = displayed.rjust(fill) if column in right_aligned else displayed.ljust(fill)
            line.append(paint(column if number else -1, cell, padded))
            used += len(padded) + 2
        lines.append(("  ".join(line) + ("" if number else mark)).rstrip())
    return lines


def _choose_columns(
    widths: Sequence[int], cells: Sequence[Sequence[str]], last_text: int | None, width: int
) -> list[int]:
    """Return the columns that fit; the first one always stays, and a last column of text stays as long as it can."""
    kept = list(range(len(widths)))
    if sum(widths) + 2 * len(widths) - 2 <= width:
        return kept

    def needed() -> int:
        fixed = sum(widths[column] + 2 for column in kept if column != last_text)
        return (
            fixed + min(widths[last_text], MIN_LAST_WIDTH) if last_text in kept and last_text is not None else fixed + 1
        )

    empty = [column for column in reversed(kept) if cells and all(row[column] in ("", "-") for row in cells)]
    for column in [*empty, *reversed(range(len(widths)))]:
        if needed() <= width:
            break
        if column in kept and column not in (0, last_text):
            kept.remove(column)
    return kept
