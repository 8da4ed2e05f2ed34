"""The route of a workload's stream: its destinations, and the numbering of its lines."""

from __future__ import annotations

import attrs

from nsupervisor.logs.framing import Framing
from nsupervisor.logs.log_file import LogFile
from nsupervisor.logs.rate_limit import RateLimiter
from nsupervisor.logs.shared_stream import SharedStream
from nsupervisor.logs.tails import Tail


@attrs.frozen
class OutputRoute:
    """The destination of a stream's lines: a shared stream, a file, both or neither."""

    shared: SharedStream | None = None
    """The journal, or a standard stream of the service itself."""
    file: LogFile | None = None
    is_raw: bool = False
    """Whether the file gets the bytes unchanged, instead of records."""
    max_line: int = 16384
    parse_json: bool = False
    blocks: bool = True
    """If an output cannot be written: whether the workload waits. Otherwise its lines are dropped and counted."""
    tail: Tail | None = None
    """The place of the latest lines, if no file has them."""
    limiter: RateLimiter | None = None
    """Limits how much is recorded in a second; None: all."""

    def make_framing(self) -> Framing:
        """Return a new framing for this destination."""
        return Framing(
            self.max_line, keeps_carriage_returns=self.file is None and self.shared is not None and self.shared.is_raw
        )


@attrs.define
class LineSequence:
    """The number of a stream's next line; it continues across generations."""

    next_seq: int = 0

    def continue_from(self, seq: int) -> None:
        """Continue after lines that an earlier capture has numbered: the next line has at least this number."""
        self.next_seq = max(self.next_seq, seq)
