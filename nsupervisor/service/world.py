"""What all actors share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from nsupervisor.cgroups import Watcher
from nsupervisor.logs import Journal
from nsupervisor.metrics.measures import Measures
from nsupervisor.service.kept import Kept
from nsupervisor.service.seal import Seal
from nsupervisor.service.state import StateFile
from nsupervisor.service.thinker import Listener

if TYPE_CHECKING:
    from nsupervisor.core.grouping import News
    from nsupervisor.service.group import Group


@attrs.frozen
class World:
    """The service around one workload."""

    keeper: Kept
    watcher: Watcher
    journal: Journal
    nursery: trio.Nursery
    """Where log captures run: they outlive a generation until its pipes are empty."""
    directory: Path
    """The runtime directory."""
    state: StateFile
    seal: Seal
    log_directory: Path = Path("/var/log/nsupervisor")
    """Where the workloads' own log files are."""
    measures: Measures = attrs.field(factory=Measures)
    listeners: set[Listener] = attrs.field(factory=set)
    """Those that hear of all that any mind takes in."""
    group_listeners: set[Callable[[Group, News, float], None]] = attrs.field(factory=set)
    """Those that hear of all that any group goes through, and when."""
    told: set[str] = attrs.field(factory=set)
    """Warnings about the host, which are said once, not by each workload."""
    notes: dict[str, list[Path]] = attrs.field(factory=dict)
    """Of each instance the notes that captures of an earlier supervisor have left, until it takes them."""
