"""Output of workloads and the service: as JSON records on one stream, and in log files of the workloads."""

from nsupervisor.logs.capture import Capture
from nsupervisor.logs.framing import Framing
from nsupervisor.logs.journal import Journal, open_journal
from nsupervisor.logs.pipe import Pipe
from nsupervisor.logs.progress import Progress, last_number
from nsupervisor.logs.record import schema
from nsupervisor.logs.rotated import LogFile, Rotation
from nsupervisor.logs.route import Route, Sequence
from nsupervisor.logs.threads import in_thread

__all__ = [
    "Capture",
    "Framing",
    "Journal",
    "LogFile",
    "Pipe",
    "Progress",
    "Rotation",
    "Route",
    "Sequence",
    "in_thread",
    "last_number",
    "open_journal",
    "schema",
]
