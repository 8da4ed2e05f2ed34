"""What workloads and the service say: as JSON records on one stream, and in files of the workloads' own."""

from .capture import Capture, Route, Sequence
from .framing import Framing
from .journal import Journal, open_journal
from .pipe import Pipe
from .progress import Progress, last_number
from .record import schema
from .rotated import LogFile, Rotation

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
    "last_number",
    "open_journal",
    "schema",
]
