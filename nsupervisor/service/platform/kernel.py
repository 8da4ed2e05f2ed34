"""The seam between the service and the operating system: what the service uses, and what a test replaces.

`Kernel` has everything except three objects that are opened before it and passed on with it: the keeper
(`nsupervisor.keeper.connection`), the hierarchies with their files (`Host`, `nsupervisor.cgroups.filesystem`), and the
journal. Time is trio's clock. `nsupervisor.service.run` opens the real ones and runs the service on them;
`tests/simulation` runs the same service on others.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from nsupervisor.cgroups.freezer import FrozenProcesses, release_frozen
from nsupervisor.cgroups.membership import is_part_of
from nsupervisor.cgroups.notifications import KernelNotifications, Notifications
from nsupervisor.config.compose import Find
from nsupervisor.config.files import find_included, reread_text
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.config.probes import ProbeConfig
from nsupervisor.core.probes import ProbeResult
from nsupervisor.core.start_conditions import StartCondition
from nsupervisor.linux import joining, processes
from nsupervisor.linux.files import KERNEL_FILES, Files
from nsupervisor.linux.privileges import Privileges, own_privileges
from nsupervisor.logs import Pipe
from nsupervisor.notify_socket import NotifySocket, notify_socket
from nsupervisor.service.platform.exec_streams import (
    AdoptExecOutputs,
    OpenExecStreams,
    OutputStreams,
    open_exec_streams,
)
from nsupervisor.service.platform.images import ResolveImages, forget_image_use, note_image_use, resolve_images
from nsupervisor.service.platform.isolation import Isolate, isolate
from nsupervisor.service.platform.listeners import LinuxListeners, Listeners
from nsupervisor.service.platform.pid_file import find_daemon
from nsupervisor.service.platform.program_directories import make_directories, remove_directories
from nsupervisor.service.platform.received_descriptors import LinuxReceivedDescriptors, ReceivedDescriptors
from nsupervisor.service.platform.roots import make_overlay_directory
from nsupervisor.service.platform.start_conditions import find_unmet_condition
from nsupervisor.service.platform.start_obstacle import StartObstacle, find_start_obstacle
from nsupervisor.service.platform.timer_host import LinuxTimerHost, TimerHost
from nsupervisor.service.platform.traffic import read_traffic

if TYPE_CHECKING:
    from nsupervisor.service.platform.path_watcher import OpenPathWatcher, PathWatcher


class Processes(Protocol):
    """Facts about processes, and their descriptors: the functions of `nsupervisor.linux.processes`."""

    def start_time(self, pid: int) -> int | None: ...
    def parent_pid(self, pid: int) -> int | None: ...
    def command_name(self, pid: int) -> str: ...
    def pid_in_namespace(self, pid: int) -> int | None: ...
    def find_numbered(self, number: int, sender: int, pids: Iterable[int], is_namespaced: bool) -> int | None: ...
    def pid_of(self, pidfd: int) -> int | None: ...
    def pin(self, pid: int) -> int: ...
    def open_pidfd(self, pid: int, start_ticks: int) -> int: ...
    def has_ended(self, pidfd: int) -> bool: ...
    def exit_status(self, pidfd: int, pid: int) -> int | None: ...
    def open_pipe(self, inode: int, pids: Iterable[int]) -> int: ...
    def open_ended_pipe(self) -> int: ...
    def pipe_inode(self, fd: int) -> int: ...
    def read_write_pipe_inode(self, pid: int, fd: int) -> int: ...
    def duplicate(self, fd: int) -> int: ...
    def close(self, fd: int) -> None: ...


OpenNotifySocket = Callable[[Path, tuple[int, int] | None, int], AbstractContextManager[NotifySocket]]
"""Opens a notify socket: its path, its owner, and the descriptor of one that exists or -1. Raises OSError."""
IsPartOf = Callable[[int, str, str], bool]
"""Whether a process is part of an instance, as `nsupervisor.cgroups.membership.is_part_of`."""


def _open_path_watcher() -> PathWatcher:
    from nsupervisor.service.platform.path_watcher import InotifyWatcher  # few configurations have path triggers

    return InotifyWatcher()


async def _probe(config: ProbeConfig, pidfd: int) -> ProbeResult:
    from nsupervisor.service.platform.probe_client import probe  # few configurations have probes

    return await probe(config, pidfd)


@attrs.frozen
class Kernel:
    """The operating system as the service uses it."""

    processes: Processes = processes
    files: Files = KERNEL_FILES
    """The files in the runtime directory that the next supervisor reads."""
    open_notifications: Callable[[], Notifications] = KernelNotifications
    open_pipe: Callable[[int], Pipe] = Pipe
    """Takes over the reading end of a program's output, a descriptor."""
    open_notify_socket: OpenNotifySocket = notify_socket
    open_exec_streams: OpenExecStreams = open_exec_streams
    """Opens the input and output of a command that is executed in a workload. Raises OSError."""
    adopt_exec_outputs: AdoptExecOutputs = OutputStreams
    is_part_of: IsPartOf = is_part_of
    release_frozen: Callable[[Collection[int]], FrozenProcesses | None] = release_frozen
    """Moves those of these processes that other programs have frozen to where they run, see `cgroups.freezer`."""
    read_config: Callable[[str], str] = reread_text
    """Reads the configuration file again. Raises ConfigError."""
    find_included: Find = find_included
    """Reads the files that the configuration includes. Raises ConfigError."""
    privileges: Callable[[], Privileges] = own_privileges
    find_daemon: Callable[[str, Collection[int], Sequence[int], bool], int] = find_daemon
    """Finds the process that a pid file names, see `platform.pid_file`."""
    find_start_obstacle: Callable[[Mapping[str, Any]], StartObstacle | None] = find_start_obstacle
    """Finds what would make a start with this specification fail; called in a thread."""
    find_unmet_condition: Callable[[tuple[StartCondition, ...]], StartCondition | None] = find_unmet_condition
    """Finds the first condition of a start that is not met; called in a thread."""
    make_directories: Callable[[Sequence[Mapping[str, Any]], tuple[int, int] | None], None] = make_directories
    """Makes the directories of a program, see `platform.program_directories`. Raises OSError."""
    remove_directories: Callable[[Sequence[Mapping[str, Any]]], None] = remove_directories
    """Removes the runtime directories among those of a program. Raises OSError."""
    make_overlay_directory: Callable[[Mapping[str, Any]], None] = make_overlay_directory
    """Makes the directory of the upper layer of a specification's root. Raises OSError."""
    open_namespace_of: Callable[[int, str], int] = joining.open_of_process
    """Opens the namespace of a kind of the process behind a pidfd, to join it. Raises OSError."""
    open_namespace_file: Callable[[str, str], int] = joining.open_file
    """Opens the namespace behind a file, which must be of this kind; called in a thread. Raises OSError."""
    resolve_images: ResolveImages = resolve_images
    """Finds the images of workloads, and loads them if asked to; called in a thread."""
    note_image_use: Callable[[str, str, WorkloadConfig], None] = note_image_use
    """Notes what an instance is started from; called in a thread. Raises OSError."""
    forget_image_use: Callable[[str, str], None] = forget_image_use
    """Notes that an instance does not run; called in a thread. Raises OSError."""
    keeps_networks: bool = True
    """Whether plugins can set up networks, of which there may be some from an earlier supervisor."""
    read_traffic: Callable[[int | None], Mapping[str, int | None]] = read_traffic
    """Reads the counters of the network devices that a process sees."""
    isolate: Isolate = isolate
    """Returns the isolation in force, also for a configuration that is loaded while the service runs."""
    instance_of: Callable[[int], str] | None = None
    """Returns the instance that a process is part of, or ""; None: the cgroup of the process says so."""
    probe: Callable[[ProbeConfig, int], Awaitable[ProbeResult]] = _probe
    """Sends a probe, in the network namespace of the process behind a pidfd, or for -1 in that of the service."""
    listeners: Listeners = attrs.field(factory=LinuxListeners)
    """Sockets that the service listens on for workloads."""
    descriptors: ReceivedDescriptors = attrs.field(factory=LinuxReceivedDescriptors)
    """Descriptors that programs have sent."""
    timers: TimerHost = attrs.field(factory=LinuxTimerHost)
    """The wall clock, time zones, and what is remembered of timers."""
    open_path_watcher: OpenPathWatcher = _open_path_watcher
    """Opens what looks at paths, and watches them."""
    random: Callable[[], float] = random.random
    """Returns a random number from [0, 1), for the jitter of delays."""


LINUX = Kernel()
"""The operating system of this host."""
