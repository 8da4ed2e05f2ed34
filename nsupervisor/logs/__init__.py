"""What workloads and the service say, as JSON records on one stream."""

from .capture import capture
from .framing import Framing
from .journal import Journal, open_journal
from .record import schema

__all__ = ["Framing", "Journal", "capture", "open_journal", "schema"]
