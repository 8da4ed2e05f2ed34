"""The service as an `Output` sees it, with the real kernel and a real journal."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import trio

from nsupervisor.logs import Journal, LogFiles
from nsupervisor.service.platform.kernel import LINUX


def output_context(directory: Path, journal: Journal, nursery: trio.Nursery, **others: Any) -> SimpleNamespace:
    """Return a context whose files are all in `directory`, without latest output and without own streams.

    others: attributes to set in place of these.
    """
    attributes = {
        "journal": journal,
        "kernel": LINUX,
        "nursery": nursery,
        "runtime_directory": directory,
        "log_directory": directory,
        "log_files": LogFiles(),
        "offset_files": {},
        "tails": None,
        "has_records_file": False,
        "own_streams": None,
        "made_directories": set(),
    }
    return SimpleNamespace(**attributes | others)
