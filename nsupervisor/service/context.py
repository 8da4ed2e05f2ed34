"""The objects that all workload instances and groups share."""

from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from nsupervisor.cgroups import Watcher
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.decider import Transition, WorkloadInput, WorkloadState
from nsupervisor.core.lifecycle import Instant
from nsupervisor.core.rules.group_policy import GroupEvent
from nsupervisor.keeper.reconnecting import ReconnectingKeeper
from nsupervisor.logs import Journal, LogFiles, OwnStreams, Tails
from nsupervisor.logs.written_callbacks import WrittenCallbacks
from nsupervisor.metrics.measures import Measures
from nsupervisor.service.platform.descriptor_stores import DescriptorStores
from nsupervisor.service.platform.kernel import LINUX, Kernel
from nsupervisor.service.platform.name_files import NameFiles
from nsupervisor.service.platform.networks import Networks
from nsupervisor.service.platform.sockets import Sockets
from nsupervisor.service.state.digest import KeyedDigest
from nsupervisor.service.state.dynamic_users import DynamicUsers
from nsupervisor.service.state.file import StateFile
from nsupervisor.service.state.later import LaterSaves
from nsupervisor.service.state.uid_ranges import STATE_DIRECTORY, UidRanges

TransitionListener = Callable[[str, WorkloadConfig, WorkloadState, WorkloadInput, Instant, Transition], None]
"""Called after each transition of an instance: its name, its workload in force afterwards, the state before, the input,
its instant, and the transition."""
GroupListener = Callable[[str, GroupEvent, float], None]
"""Called for each event of a group: its full name, the event, and its time."""


MAX_PROBES = 64
"""How many probes are on their way at the same time."""


@attrs.frozen
class ServiceContext:
    """The objects that the service provides to each workload instance and group."""

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
    uid_ranges: UidRanges | None = None
    dynamic_users: DynamicUsers | None = None
    """The ranges of ids for user namespaces without mappings; None without the privilege to use them."""
    state_directory: str = STATE_DIRECTORY
    """The directory of what outlives a stop of the service."""
    log_files: LogFiles = attrs.field(factory=LogFiles)
    """The log files of all workloads."""
    tails: Tails | None = None
    """The latest output that no file has; None: it is not kept."""
    has_records_file: bool = False
    """Whether a file has the records of the journal, so that the output in them need not be kept elsewhere."""
    own_streams: OwnStreams | None = None
    """The standard output and standard error of the service itself; None: what goes there is discarded."""
    sockets: Sockets = attrs.field(
        default=attrs.Factory(lambda self: Sockets(self.keeper, self.journal, self.kernel, self.nursery), True)
    )
    """The sockets that the service listens on for workloads."""
    stores: DescriptorStores = attrs.field(
        default=attrs.Factory(lambda self: DescriptorStores(self.keeper, self.kernel, self.nursery), True)
    )
    """The descriptors that programs have stored."""
    measures: Measures = attrs.field(factory=Measures)
    later_saves: LaterSaves = attrs.field(
        init=False, default=attrs.Factory(lambda self: LaterSaves(self.nursery), takes_self=True)
    )
    when_written: WrittenCallbacks = attrs.field(
        init=False, default=attrs.Factory(lambda self: WrittenCallbacks(self.journal, self.nursery), takes_self=True)
    )
    listeners: set[TransitionListener] = attrs.field(factory=set)
    group_listeners: set[GroupListener] = attrs.field(factory=set)
    networks: Networks = attrs.field(factory=lambda: Networks("", "", lambda instance, message: None))
    """The networks that plugins have set up."""
    name_files: NameFiles = attrs.field(factory=lambda: NameFiles("", "", list, lambda instance, message: None))
    """The files by which programs resolve names."""
    find_network_owner: Callable[[str], str] = lambda name: name
    """Returns the workload whose network an instance joins, maybe through others; itself if it joins none."""
    find_pidfd: Callable[[str], int] = lambda name: -1
    """Returns the pidfd of the program that an instance runs, which stays its own; -1: none."""
    probe_slots: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_PROBES))
    """One for each probe that is on its way."""
    warnings_logged: set[str] = attrs.field(factory=set)
    """Warnings about the host that have been logged; each is logged once, not once per workload."""
    made_directories: set[Path] = attrs.field(factory=set)
    """Directories below the runtime directory that exist, so that no instance has to look."""
    offset_files: dict[str, list[Path]] = attrs.field(factory=dict)
    """By instance, the offset files of an earlier supervisor's captures, until a capture takes them over."""
