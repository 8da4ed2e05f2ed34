"""The route of a workload's stream: its destinations, and the numbering of its lines."""

from __future__ import annotations

import attrs

from nsupervisor.logs.journal import Journal
from nsupervisor.logs.rotated import LogFile


@attrs.frozen
class Route:
    """The destination of a stream's lines: the journal, the file, both or neither."""

    journal: Journal | None = None
    file: LogFile | None = None
    raw: bool = False
    """Whether the file gets the bytes unchanged, instead of records."""
    max_line: int = 16384
    parse_json: bool = False
    block: bool = True
    """If an output cannot be written: whether the workload waits. Otherwise its lines are dropped and counted."""


@attrs.define
class Sequence:
    """The number of a stream's next line; it continues across generations."""

    next: int = 0
