"""A simulated machine: processes, cgroups, pipes, sockets, files, and the keeper. It outlives simulated supervisors.

Everything is deterministic: there are no threads, no real files and no real processes, and each random choice comes
from the seed. What happens later is in one queue, by time. A supervisor uses the machine through the objects of
`tests.simulation.seam`; while none runs, `advance` lets the programs go on.
"""

from __future__ import annotations

import errno
import heapq
import os
import random
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import trio

from nsupervisor.linux.inotify import IN_MODIFY, IN_Q_OVERFLOW, InotifyEvent
from nsupervisor.linux.privileges import Privileges
from nsupervisor.service.platform.start_obstacle import StartObstacle
from tests.simulation import limits
from tests.simulation.limits import LIMIT_FILES

ROOT = "/sim"
"""The root of the cgroup hierarchy."""
NOTIFY_INTERVAL_S = 0.01
"""CGROUP_FILE_NOTIFY_MIN_INTV of kernel/cgroup/cgroup.c: the kernel notifies of one file at most this often."""
CONTROLLERS = ("memory", "pids", "cpu")
KNOWN_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc", "perf_event")
"""The controllers of Linux; one that the machine does not have cannot be enabled."""
ROOT_PRIVILEGES = Privileges(
    uid=0,
    gid=0,
    capabilities=-1,
    uid_map=((0, 2**32 - 1),),
    gid_map=(),
    hard_limits=MappingProxyType({"nice": 0}),
    niceness=0,
)
"""The privileges of a simulated supervisor, whoever runs the simulation."""
FIRST_FD = 1 << 20
"""The first simulated descriptor: no real one has such a number, so mixing the two up fails."""
CORE_FILES = (
    "cgroup.controllers",
    "cgroup.events",
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.procs",
    "cgroup.subtree_control",
    "cgroup.type",
    "cpu.stat",
)
"""The interface files that every cgroup has."""
CONTROLLER_FILES = ("memory.current", "memory.events", "memory.stat", "pids.current", "pids.events")
"""The read-only interface files that a cgroup with their controller has."""
INIT_PID = 1
"""The parent of the programs of a dead keeper: it reaps them at once."""
NOT_FATAL = frozenset({signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH})
"""Signals that a process ignores by default, signal(7)."""
DUMPS_CORE = frozenset(
    {
        signal.SIGQUIT,
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGSEGV,
        signal.SIGXCPU,
        signal.SIGXFSZ,
        signal.SIGSYS,
    }
)
"""Signals that end a process with a core dump by default, signal(7)."""


def failure(number: int, path: str = "") -> OSError:
    """Return the exception for an errno."""
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


@attrs.define(eq=False)
class Process:
    """A process. `leader`: the program that the keeper has started, in whose generation this one is."""

    machine: Machine
    pid: int
    start_ticks: int
    parent: int
    cgroup: Cgroup
    id: str
    """The generation that it belongs to: "web#3"."""
    behaviour: Behaviour
    command: str = "nsupervisor-new"
    status: int | None = None
    """The wait status; None while it lives."""
    anon: int = 1 << 20
    """Bytes of memory."""
    pending_signals: list[int] = attrs.field(factory=list)
    """Signals that wait until it is thawed or continued."""
    pending_work: list[Callable[[], None]] = attrs.field(factory=list)
    """Its timers that have run out while it was frozen or stopped."""
    is_leader: bool = False
    is_stopped: bool = False
    """Whether it has received SIGSTOP, and no SIGCONT since."""
    port: int | None = None
    """The port at which it answers probes; None: at none."""
    is_sick: bool = False
    """Whether its answers are errors."""
    listeners: list[Any] = attrs.field(factory=list)
    """The sockets that it was started with."""

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        """Let the process do something later, unless it has ended by then."""

        def run() -> None:
            if self.status is None:
                if self.cgroup.is_frozen or self.is_stopped:
                    self.pending_work.append(run)
                else:
                    work()

        self.machine.after(seconds, run)

    def receive(self, signum: int) -> None:
        """Receive a signal."""
        if self.status is not None:
            return
        for listener in self.machine.signal_listeners:
            listener(self, signum)
        if signum == signal.SIGKILL:
            self.end(signal.SIGKILL)
        elif signum in (signal.SIGSTOP, signal.SIGCONT):
            self.is_stopped = signum == signal.SIGSTOP
            self.resumed()
        elif self.is_stopped:
            self._queue_signal(signum)
        elif self.cgroup.is_frozen:
            # complete_signal of kernel/signal.c sends SIGKILL instead of a signal that terminates the process, unless
            # the process catches it, or it dumps core, or is stopped. So it ends a frozen process as well.
            if self.behaviour.handles(signum) or signum in NOT_FATAL | DUMPS_CORE:
                self._queue_signal(signum)
            else:
                self.end(signum)
        else:
            self.behaviour.on_signal(self, signum)

    def _queue_signal(self, signum: int) -> None:
        if signum not in self.pending_signals:
            self.pending_signals.append(signum)

    def resumed(self) -> None:
        """Handle what has waited while the process was frozen or stopped, unless it still is."""
        if self.cgroup.is_frozen or self.is_stopped:
            return
        signals, self.pending_signals = self.pending_signals, []
        for signum in signals:
            self.receive(signum)
        work, self.pending_work = self.pending_work, []
        for item in work:
            item()

    def end(self, status: int) -> None:
        """End with a wait status."""
        if self.status is not None:
            return
        self.status = status
        self.machine.log("ends", self.id, pid=self.pid, status=status)
        cgroup = self.cgroup
        del cgroup.processes[self.pid]
        cgroup.update_populated()
        self.machine.process_ended(self)


class Behaviour:
    """How a program behaves. The default one sleeps until SIGTERM ends it."""

    def on_start(self, process: Process) -> None:
        """Begin: the program has been executed."""

    def handles(self, signum: int) -> bool:
        """Return whether the program catches or ignores a signal."""
        return False

    def on_signal(self, process: Process, signum: int) -> None:
        """Handle a signal that is not SIGKILL."""
        if signum not in NOT_FATAL:
            process.end(signum)


@attrs.define(eq=False)
class Cgroup:
    """A cgroup of version 2."""

    machine: Machine
    path: str
    parent: Cgroup | None
    children: dict[str, Cgroup] = attrs.field(factory=dict)
    processes: dict[int, Process] = attrs.field(factory=dict)
    limits: dict[str, str] = attrs.field(factory=dict)
    subtree_control: list[str] = attrs.field(factory=list)
    memory_events: dict[str, int] = attrs.field(
        factory=lambda: dict.fromkeys(("low", "high", "max", "oom", "oom_kill", "oom_group_kill"), 0)
    )
    pids_max_hits: int = 0
    freeze_requested: bool = False
    was_killed: bool = False
    is_removed: bool = False
    was_populated: bool = False
    was_frozen: bool = False
    notified_at: dict[str, float] = attrs.field(factory=dict)
    pending_notifications: set[str] = attrs.field(factory=set)

    def subtree(self) -> Iterator[Cgroup]:
        """Yield this cgroup and those below it."""
        yield self
        for child in self.children.values():
            yield from child.subtree()

    def ancestors(self) -> Iterator[Cgroup]:
        """Yield this cgroup and those above it."""
        cgroup: Cgroup | None = self
        while cgroup is not None:
            yield cgroup
            cgroup = cgroup.parent

    @property
    def is_populated(self) -> bool:
        return bool(self.processes) or any(child.is_populated for child in self.children.values())

    @property
    def is_frozen(self) -> bool:
        cgroup: Cgroup | None = self
        while cgroup is not None:
            if cgroup.freeze_requested:
                return True
            cgroup = cgroup.parent
        return False

    def update_populated(self) -> None:
        """Notify of changes of `populated` and `frozen`, here and above."""
        for cgroup in self.ancestors():
            now = cgroup.is_populated, cgroup.is_frozen
            if now != (cgroup.was_populated, cgroup.was_frozen):
                cgroup.was_populated, cgroup.was_frozen = now
                cgroup.notify("cgroup.events")

    def notify(self, file: str) -> None:
        """Notify the watchers of a file, as seldom as the kernel does."""
        now = self.machine.now
        last = self.notified_at.get(file)
        if file in self.pending_notifications:
            return
        if last is not None and now < last + NOTIFY_INTERVAL_S:
            self.pending_notifications.add(file)
            self.machine.after(last + NOTIFY_INTERVAL_S - now, lambda: self._notify_now(file))
        else:
            self._notify_now(file)

    def _notify_now(self, file: str) -> None:
        self.pending_notifications.discard(file)
        self.notified_at[file] = self.machine.now
        if not self.is_removed:
            self.machine.file_changed(self, file)

    # ---- the interface files

    def read(self, file: str) -> str:
        """Return the text of an interface file. Raises OSError."""
        if self.is_removed:
            raise failure(errno.ENODEV)
        match file:
            case "cgroup.events":
                return f"populated {self.is_populated:d}\nfrozen {self.is_frozen:d}\n"
            case "cgroup.procs":
                return "".join(f"{pid}\n" for pid in self.processes)
            case "cgroup.controllers":
                parent = self.parent
                return " ".join(CONTROLLERS if parent is None else parent.subtree_control) + "\n"
            case "cgroup.subtree_control":
                return " ".join(self.subtree_control) + "\n"
            case "cgroup.freeze":
                return f"{self.freeze_requested:d}\n"
            case "cgroup.type":
                return "domain\n"
            case "cpu.stat":
                return "usage_usec 0\nuser_usec 0\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n"
        match file:
            case "memory.current":
                return f"{self.memory}\n"
            case "memory.stat":
                return f"anon {self.memory}\nfile 0\n"
            case "memory.events":
                return "".join(f"{key} {value}\n" for key, value in self.memory_events.items())
            case "pids.current":
                return f"{self.process_count}\n"
            case "pids.events":
                return f"max {self.pids_max_hits}\n"
        if file not in LIMIT_FILES:
            raise failure(errno.EINVAL)  # cgroup.kill can only be written
        return f"{self.limits.get(file, LIMIT_FILES[file])}\n"

    def check_file(self, file: str) -> None:
        """Raise OSError if the cgroup does not have an interface file."""
        if self.is_removed:
            raise failure(errno.ENODEV)
        if file in CORE_FILES:
            return
        enabled = () if self.parent is None else self.parent.subtree_control
        if file.partition(".")[0] not in enabled or (file not in CONTROLLER_FILES and file not in LIMIT_FILES):
            raise failure(errno.ENOENT)

    def write(self, file: str, text: str) -> None:
        """Write to an interface file. Raises OSError."""
        self.check_file(file)
        match file:
            case "cgroup.kill":
                limits.parse_switch(text, only=1)
                for listener in self.machine.kill_listeners:
                    listener(self)
                for cgroup in list(self.subtree()):
                    cgroup.was_killed = True
                    for process in list(cgroup.processes.values()):
                        self.machine.after(self.machine.delay(), lambda process=process: process.receive(9))
                return
            case "cgroup.freeze":
                freeze = bool(limits.parse_switch(text))
                self.machine.after(self.machine.delay(), lambda: self._set_frozen(freeze))
                return
            case "cgroup.subtree_control":
                self._check_subtree_control(text.split())
                for word in text.split():
                    if word[0] == "+" and word[1:] not in self.subtree_control:
                        self.subtree_control.append(word[1:])
                    elif word[0] == "-" and word[1:] in self.subtree_control:
                        self.subtree_control.remove(word[1:])
                return
        if file not in LIMIT_FILES:
            raise failure(errno.EINVAL)
        if text != self.machine.refused.get((self, file), text):
            raise failure(errno.EINVAL)
        self.limits[file] = limits.parse(file, text, {**LIMIT_FILES, **self.limits})
        if file == "memory.max":
            self.enforce_memory_limit()

    def _check_subtree_control(self, words: list[str]) -> None:
        """Raise OSError for a controller that does not exist, that is not offered, or that a cgroup below uses."""
        offered = CONTROLLERS if self.parent is None else self.parent.subtree_control
        for word in words:
            if word[0] not in "+-" or word[1:] not in KNOWN_CONTROLLERS:
                raise failure(errno.EINVAL)
        for word in words:
            if word[0] == "+" and word[1:] not in offered:
                raise failure(errno.ENOENT)
            if word[0] == "-" and any(word[1:] in child.subtree_control for child in self.children.values()):
                raise failure(errno.EBUSY)
        if self.parent is not None and self.processes and any(word[0] == "+" for word in words):
            raise failure(errno.EBUSY)  # "No Internal Process Constraint" of cgroup-v2.rst

    def _set_frozen(self, freeze: bool) -> None:
        if self.freeze_requested == freeze or self.is_removed:
            return
        self.freeze_requested = freeze
        for cgroup in self.subtree():
            cgroup.update_populated()
            if not cgroup.is_frozen:
                for process in list(cgroup.processes.values()):
                    process.resumed()

    # ---- resources

    @property
    def memory(self) -> int:
        return sum(process.anon for cgroup in self.subtree() for process in cgroup.processes.values())

    @property
    def process_count(self) -> int:
        return sum(len(cgroup.processes) for cgroup in self.subtree())

    def limit(self, file: str) -> float:
        """Return the number in a limit file."""
        text = self.limits.get(file, "max")
        return float("inf") if text == "max" else float(text)

    def may_fork(self) -> bool:
        """Return whether one more process fits; if not, count it."""
        full = next((one for one in self.ancestors() if one.process_count + 1 > one.limit("pids.max")), None)
        if full is None:
            return True
        for listener in self.machine.limit_listeners:
            listener(full, "pids.events")
        for cgroup in full.ancestors():
            cgroup.pids_max_hits += 1
            cgroup.notify("pids.events")
        return False

    def allocate(self, process: Process, size: int) -> None:
        """Let a process have more memory; the kernel kills one if a limit does not allow it."""
        process.anon += size
        self.enforce_memory_limit()

    def enforce_memory_limit(self) -> None:
        """Kill a process if a limit does not allow what the cgroup uses."""
        full = next((one for one in self.ancestors() if one.memory > one.limit("memory.max")), None)
        if full is None:
            return
        victims = [member for cgroup in full.subtree() for member in cgroup.processes.values()]
        victim = max(victims, key=lambda member: (member.anon, -member.pid))
        for cgroup in full.ancestors():
            cgroup.memory_events["max"] += 1
            cgroup.memory_events["oom"] += 1
            cgroup.notify("memory.events")
        for cgroup in victim.cgroup.ancestors():
            cgroup.memory_events["oom_kill"] += 1
            cgroup.notify("memory.events")
        victim.receive(signal.SIGKILL)


@attrs.define(eq=False)
class Pipe:
    """A pipe with the output of a generation."""

    inode: int
    data: bytearray = attrs.field(factory=bytearray)
    writers: set[int] = attrs.field(factory=set)
    """The pids that have it open for writing."""
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)


@attrs.define(eq=False)
class DatagramSocket:
    """A bound datagram socket: each datagram with the pid of its sender, and what it has sent along."""

    path: str
    queue: deque[tuple[bytes, int, Sequence[StoredFile]]] = attrs.field(factory=deque)
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)


@attrs.define(eq=False)
class ListeningSocket:
    """A socket that listens, with the number of connections that are not accepted yet."""

    address: str
    waiting: int = 0
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def connect(self) -> None:
        """Make a connection."""
        self.waiting += 1
        self.changed.unpark_all()

    def accept(self) -> int:
        """Accept all connections; return their number."""
        accepted, self.waiting = self.waiting, 0
        return accepted


@attrs.define(eq=False)
class StoredFile:
    """A file whose descriptor a program sends to the supervisor. `address`: it is not a socket that listens."""

    name: str
    is_harmless: bool = True
    is_hung_up: bool = False
    address: str = ""
    changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    def hang_up(self) -> None:
        """Close the other end."""
        self.is_hung_up = True
        self.changed.unpark_all()


class Inotify:
    """An inotify instance of a supervisor."""

    def __init__(self) -> None:
        self.watches: dict[int, tuple[Cgroup, str]] = {}
        """The cgroup and the file of each watch. A watch of a removed cgroup stays, without events."""
        self.queue: list[InotifyEvent] = []
        self.changed = trio.lowlevel.ParkingLot()
        self.last_wd = 0


class Machine:
    """The machine. `seed` determines everything that it decides by itself."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"machine {seed}")
        self.clock: trio.abc.Clock | None = None
        """The clock of the supervisor that runs now."""
        self._now = 1000.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = 0
        self.processes: dict[int, Process] = {}
        self.last_pid = 1000
        self.cgroups: dict[str, Cgroup] = {}
        self.make_cgroup(ROOT)
        self.files: dict[Path, bytearray] = {}
        self.sockets: dict[str, DatagramSocket] = {}
        self.pid_files: dict[str, int] = {}
        self.listeners: list[ListeningSocket] = []
        """All sockets that have ever listened."""
        self.holds: Callable[[ListeningSocket], bool] = lambda _listener: False
        """Whether the keeper that lives holds a socket."""
        self.locks: set[Cgroup] = set()
        self.inotify: list[Inotify] = []
        self.pipes: dict[int, Pipe] = {}
        self.last_inode = 1
        self.limit_listeners: list[Callable[[Cgroup, str], None]] = []
        self.signal_listeners: list[Callable[[Process, int], None]] = []
        self.kill_listeners: list[Callable[[Cgroup], None]] = []
        """Called before a cgroup is killed by its file."""
        self.write_listeners: list[Callable[[bytes], None]] = []
        self.unlink_listeners: list[Callable[[str], None]] = []
        self.started_listeners: list[Callable[[Process], None]] = []
        self.ended_listeners: list[Callable[[Process], None]] = []
        self.events: list[str] = []
        """All events, one line each: the same for the same seed."""
        self.speed = 1.0
        """0: the kernel and the keeper do everything at once."""
        self.privileges = ROOT_PRIVILEGES
        self.start_obstacle: StartObstacle | None = None
        """The cause that would make each start fail, as the service finds it before a restart."""
        self.disk_is_full = False
        self.refused: dict[tuple[Cgroup, str], str] = {}
        """By limit file: the only value that the kernel takes."""
        self.lose_notifications = False
        """Whether the inotify queue overflows."""
        self.wake_delay_s = 0.0
        """Seconds until a supervisor that is busy reads its inotify queue."""
        self.statuses_of_others = self.random.random() < 0.5
        """Whether the kernel tells the exit status of processes that are not one's children (Linux 6.15)."""

    def find_listener(self, address: str) -> ListeningSocket | None:
        """Return the socket that listens on an address: a program, or the keeper, has it open."""
        used = [listener for process in self.living() for listener in process.listeners]
        return next(
            (one for one in self.listeners if one.address == address and (one in used or self.holds(one))), None
        )

    # ---- time

    @property
    def now(self) -> float:
        return self._now if self.clock is None else self.clock.current_time()

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        """Do something later."""
        self.sequence += 1
        heapq.heappush(self.queue, (self.now + seconds, self.sequence, work))

    def delay(self) -> float:
        """Return how long the kernel or the keeper takes for something: mostly short, seldom long."""
        if not self.speed:
            return 0.0
        chance = self.random.random()
        return self.speed * (0.0 if chance < 0.3 else chance * 0.004 if chance < 0.95 else chance * 0.2)

    def next_at(self) -> float:
        """Return when the machine does something next; infinity if never."""
        return self.queue[0][0] if self.queue else float("inf")

    def run_due(self) -> None:
        """Do what is due by now."""
        while self.queue and self.queue[0][0] <= self.now:
            heapq.heappop(self.queue)[2]()

    def advance(self, seconds: float) -> None:
        """Let time pass while no supervisor runs."""
        end = self._now + seconds
        while self.queue and self.queue[0][0] <= end:
            self._now = max(self._now, self.queue[0][0])
            heapq.heappop(self.queue)[2]()
        self._now = end

    def attach(self, clock: trio.abc.Clock) -> None:
        """Use the clock of a supervisor that starts."""
        self.clock = clock

    def detach(self) -> None:
        """Go on without a supervisor: it is dead. The kernel has closed what it had open."""
        self._now = self.now
        self.clock = None
        self.locks.clear()
        self.inotify.clear()
        for waited_for in (*self.pipes.values(), *self.sockets.values(), *self.listeners):
            waited_for.changed = trio.lowlevel.ParkingLot()  # the tasks that wait belong to the dead supervisor

    def log(self, event: str, subject: str = "", **fields: Any) -> None:
        """Note what happened."""
        words = " ".join(f"{key}={value}" for key, value in fields.items())
        self.events.append(f"{self.now:10.4f} {event} {subject} {words}".rstrip())

    # ---- cgroups

    def make_cgroup(self, path: str) -> Cgroup:
        """Make one cgroup. Raises OSError."""
        if path in self.cgroups:
            raise failure(errno.EEXIST, path)
        parent = self.cgroups.get(os.path.dirname(path))
        if parent is None and path != ROOT:
            raise failure(errno.ENOENT, path)
        cgroup = self.cgroups[path] = Cgroup(self, path, parent)
        if parent is not None:
            parent.children[path] = cgroup
        cgroup.was_frozen = cgroup.is_frozen
        return cgroup

    def remove_cgroup(self, path: str) -> None:
        """Remove one cgroup. Raises OSError."""
        cgroup = self.find_cgroup(path)
        if cgroup.is_populated or cgroup.children:
            raise failure(errno.EBUSY, path)
        cgroup.is_removed = True
        del self.cgroups[path]
        assert cgroup.parent is not None
        del cgroup.parent.children[path]

    def find_cgroup(self, path: str) -> Cgroup:
        """Return a cgroup. Raises FileNotFoundError."""
        cgroup = self.cgroups.get(path)
        if cgroup is None:
            raise failure(errno.ENOENT, path)
        return cgroup

    def find_file(self, path: str) -> tuple[Cgroup, str]:
        """Return the cgroup and the name of an interface file. Raises FileNotFoundError."""
        directory, name = os.path.split(path)
        cgroup = self.find_cgroup(directory)
        cgroup.check_file(name)
        return cgroup, name

    def file_changed(self, cgroup: Cgroup, file: str) -> None:
        """Queue a notification for each inotify instance that watches the file."""
        for inotify in self.inotify:
            for wd, watched in inotify.watches.items():
                if watched == (cgroup, file):
                    event = InotifyEvent(-1, IN_Q_OVERFLOW) if self.lose_notifications else InotifyEvent(wd, IN_MODIFY)
                    if not inotify.queue or inotify.queue[-1] != event:
                        inotify.queue.append(event)
                    if self.wake_delay_s:
                        self.after(self.wake_delay_s, lambda inotify=inotify: self._wake_reader(inotify))
                    else:
                        inotify.changed.unpark_all()

    def _wake_reader(self, inotify: Inotify) -> None:
        if inotify in self.inotify:  # else its supervisor has died meanwhile
            inotify.changed.unpark_all()

    # ---- processes

    def start_process(self, cgroup: Cgroup, id_: str, behaviour: Behaviour, parent: int) -> Process:
        """Make a process in a cgroup."""
        self.last_pid += 1
        process = Process(self, self.last_pid, round(self.now * 100), parent, cgroup, id_, behaviour)
        self.processes[process.pid] = process
        cgroup.processes[process.pid] = process
        cgroup.update_populated()
        return process

    def fork(self, process: Process) -> Process | None:
        """Fork a process, if its cgroups allow one more."""
        if not process.cgroup.may_fork():
            return None
        child = self.start_process(process.cgroup, process.id, process.behaviour, process.pid)
        child.command = process.command
        for pipe in self.pipes.values():
            if process.pid in pipe.writers:
                pipe.writers.add(child.pid)
        return child

    def process_ended(self, process: Process) -> None:
        """Close what an ended process had open, and tell its parent."""
        for pipe in self.pipes.values():
            if process.pid in pipe.writers:
                pipe.writers.discard(process.pid)
                pipe.changed.unpark_all()
        for listener in self.ended_listeners:
            listener(process)
        if not process.is_leader or process.parent == INIT_PID:
            self.processes.pop(process.pid, None)

    def living(self) -> list[Process]:
        """Return all living processes."""
        return [process for process in self.processes.values() if process.status is None]

    def write_output(self, process: Process, data: bytes) -> None:
        """Write to standard output."""
        for pipe in self.pipes.values():
            if process.pid in pipe.writers:
                pipe.data += data
                pipe.changed.unpark_all()
                return

    def send_datagram(self, path: str, data: bytes, pid: int, files: Sequence[StoredFile] = ()) -> None:
        """Send a datagram to the socket at a path, if there is one."""
        socket = self.sockets.get(path)
        if socket is not None:
            socket.queue.append((data, pid, files))
            socket.changed.unpark_all()

    def new_pipe(self) -> Pipe:
        """Make a pipe."""
        self.last_inode += 1
        pipe = self.pipes[self.last_inode] = Pipe(self.last_inode)
        return pipe
