"""The objects that all actors share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from nsupervisor.cgroups import Watcher
from nsupervisor.keeper.reconnecting import ReconnectingKeeper
from nsupervisor.logs import Journal, LogFiles
from nsupervisor.metrics.measures import Measures
from nsupervisor.service.instance.decisions import Listener
from nsupervisor.service.kernel import LINUX, Kernel
from nsupervisor.service.state.digest import KeyedDigest
from nsupervisor.service.state.file import StateFile

if TYPE_CHECKING:
    from nsupervisor.core.rules.group_policy import GroupEvent
    from nsupervisor.service.group.group import Group


@attrs.frozen
class ServiceContext:
    """The objects that the service provides to each workload instance."""

    keeper: ReconnectingKeeper
    watcher: Watcher
    journal: Journal
    nursery: trio.Nursery
    """The nursery of log captures: a capture outlives its generation until the pipes are empty."""
    runtime_directory: Path
    """The runtime directory of the service."""
    state: StateFile
    digest: KeyedDigest
    kernel: Kernel = LINUX
    """The seam to the operating system."""
    log_directory: Path = Path("/var/log/nsupervisor")
    """The directory of the workloads' own log files."""
    log_files: LogFiles = attrs.field(factory=LogFiles)
    """The log files of all workloads."""
    measures: Measures = attrs.field(factory=Measures)
    listeners: set[Listener] = attrs.field(factory=set)
    """Called for every input of every workload instance."""
    group_listeners: set[Callable[[Group, GroupEvent, float], None]] = attrs.field(factory=set)
    """Called for every event of every group, with its time."""
    warnings_logged: set[str] = attrs.field(factory=set)
    """Warnings about the host that have been logged; each is logged once, not once per workload."""
    offset_files: dict[str, list[Path]] = attrs.field(factory=dict)
    """By instance, the offset files of an earlier supervisor's captures, until a capture takes them over."""
