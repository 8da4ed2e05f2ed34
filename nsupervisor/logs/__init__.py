"""What workloads and the service say: as JSON records on one stream, and in files of the workloads' own."""

from .capture import Capture
from .framing import Framing
from .journal import Journal, open_journal
from .pipe import Pipe
from .progress import Progress, last_number
from .record import schema
from .rotated import LogFile, Rotation
from .route import Route, Sequence
from .threads import in_thread

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
