"""Output of workloads and the service: as JSON records on one stream, and in log files of the workloads."""

from nsupervisor.logs.blockage import Blockage
from nsupervisor.logs.capture import Capture
from nsupervisor.logs.framing import Framing
from nsupervisor.logs.journal import Journal, open_journal
from nsupervisor.logs.line_watch import LineWatch
from nsupervisor.logs.log_file import LogFile, LogFiles, Rotation
from nsupervisor.logs.logger import FilteringBoundLogger
from nsupervisor.logs.offsets import OffsetFile, read_next_seq
from nsupervisor.logs.own_streams import OwnStreams, open_own_streams
from nsupervisor.logs.pipe import Pipe
from nsupervisor.logs.rate_limit import RateLimiter
from nsupervisor.logs.record import schema, timestamp_now
from nsupervisor.logs.route import LineSequence, OutputRoute
from nsupervisor.logs.shared_stream import SharedStream
from nsupervisor.logs.tails import Tail, Tails
from nsupervisor.logs.threads import THREAD_RUNNER, call_in_thread, run_in_thread

__all__ = [
    "THREAD_RUNNER",
    "Blockage",
    "Capture",
    "FilteringBoundLogger",
    "Framing",
    "Journal",
    "LineSequence",
    "LineWatch",
    "LogFile",
    "LogFiles",
    "OffsetFile",
    "OutputRoute",
    "OwnStreams",
    "Pipe",
    "RateLimiter",
    "Rotation",
    "SharedStream",
    "Tail",
    "Tails",
    "call_in_thread",
    "open_journal",
    "open_own_streams",
    "read_next_seq",
    "run_in_thread",
    "schema",
    "timestamp_now",
]
