"""Where the lines of a workload's stream go, and how they are numbered."""

from __future__ import annotations

import attrs

from .journal import Journal
from .rotated import LogFile


@attrs.frozen
class Route:
    """Where the lines of a stream go: the journal, the file, both or neither."""

    journal: Journal | None = None
    file: LogFile | None = None
    raw: bool = False
    """The file gets the bytes as they come."""
    max_line: int = 16384
    parse_json: bool = False
    block: bool = True
    """Where something cannot be written, the workload waits; otherwise its lines are dropped and counted."""


@attrs.define
class Sequence:
    """The number of a stream's next line; it goes on over the generations."""

    next: int = 0
