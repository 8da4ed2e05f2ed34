"""Tables with aligned columns."""

from __future__ import annotations

from nsupervisor.terminal.style import escape_control

TYPE_CHECKING = False  # importing typing takes time
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


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
