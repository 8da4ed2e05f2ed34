"""The seam of one simulated supervisor: what it sees of the machine, until it dies.

Each call of the seam is counted. At the number that the seed has chosen the supervisor dies: that call, and each later
one, raises `SupervisorDiedError` and has no effect. So clean-up code that Python still runs changes nothing, as after
SIGKILL.
"""

from __future__ import annotations

import errno
import os
import signal
import socket as stdlib_socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from nsupervisor.cgroups import Host
from nsupervisor.cgroups.host import Controller
from nsupervisor.cgroups.mounts import Hierarchy
from nsupervisor.config.probes import ProbeConfig
from nsupervisor.config.sockets import SocketConfig
from nsupervisor.core.probes import ProbeResult
from nsupervisor.core.start_conditions import HostFacts, find_unmet
from nsupervisor.linux.inotify import IN_IGNORED, InotifyEvent
from nsupervisor.logs import Pipe as PipeEnd
from nsupervisor.logs.target import Target
from nsupervisor.notify_socket import Datagram, NotifySocket, ancillary_bytes
from nsupervisor.service.platform.kernel import Kernel
from nsupervisor.service.platform.listeners import ListenError
from nsupervisor.service.platform.pid_file import PidFileError
from nsupervisor.service.platform.traffic import NO_TRAFFIC
from tests.simulation import machine as machines
from tests.simulation.machine import FIRST_FD, ROOT, Machine, Process, failure

_UCRED = struct.Struct("iII")


class SupervisorDiedError(BaseException):
    """The supervisor has been killed; not an Exception, so that no code of it handles this."""


class Life:
    """One supervisor, from its start to its death."""

    def __init__(self, machine: Machine, dies_at_call: int | None = None) -> None:
        self.machine = machine
        self.dies_at_call = dies_at_call
        self.calls = 0
        self.is_dead = False
        self.fds: dict[int, Any] = {}
        self._last_fd = FIRST_FD

    def call(self, name: str) -> None:
        """Count a call of the seam; die if it is the one."""
        if self.is_dead:
            raise SupervisorDiedError
        self.calls += 1
        if self.calls == self.dies_at_call:
            self.machine.log("supervisor dies", f"at {name}")
            self.is_dead = True
            raise SupervisorDiedError

    def die(self) -> None:
        """Die now."""
        if not self.is_dead:
            self.machine.log("supervisor dies")
            self.is_dead = True

    def add_fd(self, file: Any) -> int:
        """Return a new descriptor of an open file."""
        self._last_fd += 1
        self.fds[self._last_fd] = file
        return self._last_fd

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        if self.is_dead:
            return
        if fd not in self.fds:
            raise failure(errno.EBADF)
        del self.fds[fd]

    def file(self, fd: int) -> Any:
        """Return the open file of a descriptor. Raises OSError (EBADF)."""
        if fd not in self.fds:
            raise failure(errno.EBADF)
        return self.fds[fd]

    def pid_in_namespace(self, pid: int) -> int | None:
        return None if self._find(pid) is None else pid

    def pin(self, pid: int) -> int:
        """Return a pidfd, pidfd_open(2). Raises OSError (ESRCH, EINVAL)."""
        if pid <= 0:
            raise failure(errno.EINVAL)
        process = self.machine.processes.get(pid)
        if process is None:
            raise failure(errno.ESRCH)
        return self.add_fd(process)


class CgroupFiles:
    """`nsupervisor.cgroups.filesystem.CgroupFiles` of the simulated machine."""

    def __init__(self, life: Life) -> None:
        self._life, self._machine = life, life.machine

    def open(self, path: str) -> int:
        self._life.call("open")
        return self._life.add_fd(self._machine.find_file(path))

    def read(self, fd: int) -> bytes:
        if self._life.is_dead:
            raise SupervisorDiedError
        cgroup, name = self._life.file(fd)
        return cgroup.read(name).encode()

    def close(self, fd: int) -> None:
        file = self._life.fds.get(fd)
        self._life.close(fd)
        if isinstance(file, machines.Cgroup):
            self._machine.locks.discard(file)

    def read_text(self, path: str) -> str:
        self._life.call("read")
        cgroup, name = self._machine.find_file(path)
        return cgroup.read(name)

    def write(self, path: str, text: str) -> None:
        self._life.call(f"write {path}")
        cgroup, name = self._machine.find_file(path)
        self._machine.log("writes", path, text=text)
        cgroup.write(name, text)

    def exists(self, path: str) -> bool:
        self._life.call("exists")
        if path in self._machine.cgroups:
            return True
        try:
            self._machine.find_file(path)
        except OSError:
            return False
        return True

    def make_directory(self, path: str) -> None:
        self._life.call(f"mkdir {path}")
        self._machine.make_cgroup(path)

    def make_directories(self, path: str) -> None:
        self._life.call(f"mkdir {path}")
        missing = []
        while path not in self._machine.cgroups:
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            self._machine.make_cgroup(directory)

    def remove_directory(self, path: str) -> None:
        self._life.call(f"rmdir {path}")
        self._machine.remove_cgroup(path)

    def restrict_devices(self, path: str, rules: object) -> None:
        pass

    def list_directories(self, path: str) -> list[str]:
        self._life.call("scandir")
        return [os.path.basename(child) for child in self._machine.find_cgroup(path).children]

    def has_directories(self, path: str) -> bool:
        return bool(self.list_directories(path))

    def lock(self, path: str) -> int:
        self._life.call(f"lock {path}")
        cgroup = self._machine.find_cgroup(path)
        if cgroup in self._machine.locks:
            raise failure(errno.EAGAIN)
        self._machine.locks.add(cgroup)
        return self._life.add_fd(cgroup)

    def open_pidfd(self, pid: int) -> int:
        self._life.call("pidfd_open")
        return self._life.pin(pid)

    def send_signal(self, pidfd: int, signum: int) -> None:
        self._life.call(f"signal {signum}")
        process: Process = self._life.file(pidfd)
        if not 0 <= signum < signal.NSIG:
            raise failure(errno.EINVAL)
        if self._machine.processes.get(process.pid) is not process:  # a zombie receives signals without effect
            raise failure(errno.ESRCH)
        self._machine.log("signal", process.id, pid=process.pid, signum=signum)
        if signum:
            process.receive(signum)

    def sleep(self, seconds: float) -> None:
        """Do nothing: a simulated cgroup is released at once."""

    def track(self, path: str, pid: int) -> None:
        """Do nothing: a simulated cgroup knows its processes."""

    def search(self) -> None:
        """Do nothing, likewise."""


class Processes:
    """`nsupervisor.service.platform.kernel.Processes` of the simulated machine."""

    def __init__(self, life: Life) -> None:
        self._life, self._machine = life, life.machine

    def _find(self, pid: int) -> Process | None:
        self._life.call("stat")
        return self._machine.processes.get(pid)

    def start_time(self, pid: int) -> int | None:
        process = self._find(pid)
        return None if process is None else process.start_ticks

    def parent_pid(self, pid: int) -> int | None:
        process = self._find(pid)
        return None if process is None else process.parent

    def command_name(self, pid: int) -> str:
        process = self._find(pid)
        return "" if process is None else process.command

    def find_numbered(self, number: int, sender: int, pids: Iterable[int], is_namespaced: bool) -> int | None:
        self._life.call("stat")
        return number if number in pids else None

    def pid_of(self, pidfd: int) -> int | None:
        process = self._life.file(pidfd)
        return process.pid if isinstance(process, Process) else None

    def pin(self, pid: int) -> int:
        self._life.call("stat")
        return self._life.pin(pid)

    def open_pidfd(self, pid: int, start_ticks: int) -> int:
        process = self._find(pid)
        return -1 if process is None or process.start_ticks != start_ticks else self._life.add_fd(process)

    def has_ended(self, pidfd: int) -> bool:
        self._life.call("poll")
        process: Process = self._life.file(pidfd)
        return process.status is not None

    def exit_status(self, pidfd: int, pid: int) -> int | None:
        self._life.call("exit status")
        process: Process = self._life.file(pidfd)
        is_zombie = self._machine.processes.get(pid) is process  # /proc has its status
        return process.status if is_zombie or self._machine.statuses_of_others else None

    def open_pipe(self, inode: int, pids: Iterable[int]) -> int:
        self._life.call("open pipe")
        pipe = self._machine.pipes.get(inode)
        return -1 if pipe is None or not pipe.writers & set(pids) else self._life.add_fd(pipe)

    def open_ended_pipe(self) -> int:
        self._life.call("pipe")
        return self._life.add_fd(machines.Pipe(0))

    def pipe_inode(self, fd: int) -> int:
        self._life.call("fstat")
        pipe: machines.Pipe = self._life.file(fd)
        return pipe.inode

    def read_write_pipe_inode(self, pid: int, fd: int) -> int:
        self._life.call("fdinfo")
        inodes = [pipe.inode for pipe in self._machine.pipes.values() if pid in pipe.writers]
        return inodes[fd - 1] if len(inodes) >= fd else 0

    def duplicate(self, fd: int) -> int:
        self._life.call("dup")
        return self._life.add_fd(self._life.file(fd))

    def close(self, fd: int) -> None:
        self._life.close(fd)


class Listeners:
    """`nsupervisor.service.platform.listeners.Listeners` of the simulated machine."""

    def __init__(self, life: Life) -> None:
        self._life, self._machine = life, life.machine

    def listen(self, config: SocketConfig) -> int:
        self._life.call("listen")
        if self._machine.find_listener(config.text) is not None:
            raise ListenError(config, "Address already in use", errno.EADDRINUSE)
        listener = machines.ListeningSocket(config.text)
        self._machine.listeners.append(listener)
        return self._life.add_fd(listener)

    def configure(self, fd: int, config: SocketConfig) -> None:
        self._life.call("configure a socket")

    def is_intact(self, fd: int, config: SocketConfig) -> bool:
        return True

    def find(self, config: SocketConfig, pids: Iterable[int]) -> int:
        self._life.call("find a socket")
        for pid in pids:
            process = self._machine.processes.get(pid)
            for listener in process.listeners if process is not None and process.status is None else ():
                if listener.address == config.text:
                    return self._life.add_fd(listener)
        return -1

    def remove(self, config: SocketConfig) -> None:
        self._life.call("remove a socket")

    def duplicate(self, fd: int) -> int:
        self._life.call("dup")
        return self._life.add_fd(self._life.file(fd))

    def close(self, fd: int) -> None:
        self._life.close(fd)

    async def wait_readable(self, fd: int) -> None:
        self._life.call("wait for a connection")
        listener: machines.ListeningSocket = self._life.file(fd)
        while not listener.waiting:
            await listener.changed.park()


class Hangups:
    """`nsupervisor.service.platform.received_descriptors.Hangups` of the simulated machine."""

    def __init__(self, life: Life) -> None:
        self._life, self._watched, self._changed = life, set[int](), trio.lowlevel.ParkingLot()
        self._is_closed = False

    def add(self, fd: int) -> None:
        self._watched.add(fd)
        self._life.file(fd).changed = self._changed
        self._changed.unpark_all()

    def remove(self, fd: int) -> None:
        self._watched.discard(fd)

    async def wait(self) -> list[int]:
        while not self._is_closed:
            if found := [fd for fd in self._watched if self._life.file(fd).is_hung_up]:
                return found
            await self._changed.park()
        return []

    def close(self) -> None:
        self._is_closed = True
        self._changed.unpark_all()


class ReceivedDescriptors:
    """`nsupervisor.service.platform.received_descriptors.ReceivedDescriptors` of the simulated machine."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def find_refusal(self, fd: int) -> str:
        return "" if self._life.file(fd).is_harmless else "it is a file"

    def is_same(self, one: int, other: int) -> bool:
        return self._life.file(one) is self._life.file(other)

    def discard(self, fds: Sequence[int]) -> int:
        for fd in fds:
            self._life.close(fd)
        return 0

    def open_hangups(self) -> Hangups:
        return Hangups(self._life)


class Files:
    """`nsupervisor.linux.files.Files` of the simulated machine: what write(2) has taken survives a death."""

    def __init__(self, life: Life) -> None:
        self._life, self._files = life, life.machine.files

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._life.call(f"open {path.name}")
        if path not in self._files and not flags & os.O_CREAT:
            raise failure(errno.ENOENT, str(path))
        if path in self._files and flags & os.O_EXCL:
            raise failure(errno.EEXIST, str(path))
        if path not in self._files:
            self._files[path] = bytearray()
        elif flags & os.O_TRUNC:
            self._files[path].clear()
        return self._life.add_fd(self._files[path])

    def write(self, fd: int, data: bytes | memoryview) -> int:
        machine = self._life.machine
        try:
            self._life.call("write")
        except SupervisorDiedError:
            if fd in self._life.fds and len(data) > os.sysconf("SC_PAGESIZE") and self._life.calls:
                # SIGKILL may interrupt a long write(2) between two pages.
                self._life.file(fd).extend(data[: os.sysconf("SC_PAGESIZE")])
            raise
        file: bytearray = self._life.file(fd)
        if machine.disk_is_full:
            room = machine.random.choice((0, 0, len(data) // 2))
            if not room:
                raise failure(errno.ENOSPC)
            data = data[:room]
        file.extend(data)
        for listener in machine.write_listeners:
            listener(bytes(data))
        return len(data)

    def close(self, fd: int) -> None:
        self._life.close(fd)

    def read(self, path: Path) -> bytes:
        self._life.call(f"read {path.name}")
        if path not in self._files:
            raise failure(errno.ENOENT, str(path))
        return bytes(self._files[path])

    def rename(self, source: Path, target: Path) -> None:
        self._life.call(f"rename {source.name}")
        if source not in self._files:
            raise failure(errno.ENOENT, str(source))
        self._files[target] = self._files.pop(source)

    def unlink(self, path: Path) -> None:
        self._life.call(f"unlink {path.name}")
        self._files.pop(path, None)
        for listener in self._life.machine.unlink_listeners:
            listener(path.name)

    def exists(self, path: Path) -> bool:
        self._life.call(f"exists {path.name}")
        return path in self._files


class Notifications:
    """`nsupervisor.cgroups.notifications.Notifications` of the simulated machine."""

    def __init__(self, life: Life) -> None:
        life.call("inotify_init")
        self._life, self._inotify = life, machines.Inotify()
        life.machine.inotify.append(self._inotify)

    def add(self, path: str, mask: int) -> int:
        self._life.call("inotify_add_watch")
        file = self._life.machine.find_file(path)
        inotify = self._inotify
        for wd, watched in inotify.watches.items():
            if watched == file:
                return wd
        inotify.last_wd += 1
        inotify.watches[inotify.last_wd] = file
        return inotify.last_wd

    def remove(self, wd: int) -> None:
        if self._inotify.watches.pop(wd, None) is not None:
            self._inotify.queue.append(InotifyEvent(wd, IN_IGNORED))
            self._inotify.changed.unpark_all()

    def read(self) -> list[InotifyEvent]:
        self._life.call("read inotify")
        events, self._inotify.queue = self._inotify.queue, []
        return events

    def close(self) -> None:
        if not self._life.is_dead:
            self._life.machine.inotify.remove(self._inotify)

    async def wait(self) -> None:
        if self._inotify.queue:
            await trio.lowlevel.checkpoint()
        while not self._inotify.queue:
            await self._inotify.changed.park()


class OutputPipe(PipeEnd):
    """The reading end of a simulated pipe."""

    def __init__(self, life: Life, fd: int) -> None:
        self.fd = fd
        self._life = life
        self._pipe: machines.Pipe = life.fds[fd]
        self.inode = self._pipe.inode

    def peek(self, max_bytes: int = 65536) -> bytes:
        self._life.call("tee")
        if not self._pipe.data and self._pipe.writers:
            raise failure(errno.EAGAIN)
        return bytes(self._pipe.data[:max_bytes])

    def discard(self, count: int) -> None:
        self._life.call("splice")
        del self._pipe.data[:count]

    def available_bytes(self) -> int:
        return len(self._pipe.data)

    def enlarge(self) -> bool:
        return False

    async def wait_readable(self) -> None:
        if self._pipe.data or not self._pipe.writers:
            await trio.lowlevel.checkpoint()
        while not self._pipe.data and self._pipe.writers:
            await self._pipe.changed.park()

    def stop_waiting(self) -> None:
        """Do nothing: waiting costs a simulated program nothing."""

    def close(self) -> None:
        self._life.close(self.fd)


class _Socket:
    """A datagram socket, as far as `nsupervisor.service.instance.readiness` uses it."""

    def __init__(self, life: Life, fd: int) -> None:
        self._life, self._fd = life, fd
        self._socket: machines.DatagramSocket = life.fds[fd]

    def fileno(self) -> int:
        return self._fd

    async def recvmsg(
        self, size: int, ancillary_size: int, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        await trio.lowlevel.checkpoint()
        while not self._socket.queue:
            await self._socket.changed.park()
        return self.receive_now(size, ancillary_size, flags)

    def receive_now(
        self, size: int, ancillary_size: int, _flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        if not self._socket.queue:
            raise BlockingIOError
        self._life.call("recvmsg")
        data, pid, files = self._socket.queue.popleft()
        ancillary = [(stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_CREDENTIALS, _UCRED.pack(pid, 0, 0))]
        flags = stdlib_socket.MSG_TRUNC if len(data) > size else 0
        room = max((ancillary_size - ancillary_bytes(0) - stdlib_socket.CMSG_LEN(0)) // 4, 0)
        if len(files) > room:
            flags |= stdlib_socket.MSG_CTRUNC
        if fds := [self._life.add_fd(file) for file in files[:room]]:
            rights = struct.pack(f"{len(fds)}i", *fds)
            ancillary.append((stdlib_socket.SOL_SOCKET, stdlib_socket.SCM_RIGHTS, rights))
        return data[:size], ancillary, flags, None


class RecordTarget(Target):
    """The output of the journal. A supervisor that dies loses what it has not written."""

    def __init__(self, life: Life, stream: bytearray) -> None:
        def write(data: bytes | memoryview) -> int:
            life.call("write records")
            if life.machine.disk_is_full:
                raise failure(errno.ENOSPC)
            stream.extend(data)
            return len(data)

        super().__init__(-1, write)

    @property
    def is_terminal(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing: there is no descriptor."""


def host(life: Life) -> Host:
    """Return the cgroup hierarchies of the simulated machine: pure version 2."""
    core = Hierarchy(2, frozenset(), ROOT, ROOT, False)
    controllers = {name: Controller(name, core) for name in machines.CONTROLLERS}
    return Host("unified", core, ROOT, True, controllers, False, CgroupFiles(life))


def kernel(life: Life, read_config: Any) -> Kernel:
    """Return `nsupervisor.service.platform.kernel.Kernel` of the simulated machine."""
    machine = life.machine

    @contextmanager
    def open_notify_socket(path: Path, owner: tuple[int, int] | None, fd: int = -1) -> Iterator[NotifySocket]:
        life.call("open notify socket")
        backlog: deque[Datagram] = deque()
        if fd >= 0:
            ours: machines.DatagramSocket = life.fds[fd]
            for data, pid, files in ours.queue:
                backlog.append(Datagram(data, tuple(life.add_fd(file) for file in files), pid))
            ours.queue.clear()
        else:
            ours = machine.sockets[str(path)] = machines.DatagramSocket(str(path))
            fd = life.add_fd(ours)
        try:
            socket = _Socket(life, fd)
            yield NotifySocket(Path(ours.path), socket, socket.receive_now, backlog)  # type: ignore[arg-type]
        finally:
            if not life.is_dead:
                if machine.sockets.get(ours.path) is ours:
                    del machine.sockets[ours.path]
                life.close(fd)

    def is_part_of(pid: int, instance: str, _tree: str) -> bool:
        process = machine.processes.get(pid)
        return process is None or process.id.rpartition("#")[0] == instance

    async def probe(config: ProbeConfig, _pidfd: int) -> ProbeResult:
        life.call("probe")
        target = config.http_get or config.tcp_socket
        assert target is not None
        answers = [process for process in machine.living() if process.port == target.port]
        if not answers:
            await trio.sleep(machine.delay())
            return ProbeResult(False, "Connection refused")
        if answers[0].cgroup.is_frozen or answers[0].is_stopped:
            await trio.sleep(config.timeout_sec)
            return ProbeResult(False, "no answer")
        await trio.sleep(machine.delay())
        return ProbeResult(False, "HTTP 503") if answers[0].is_sick else ProbeResult(True, "HTTP 200")

    def find_daemon(path: str, owners: Collection[int], pids: Sequence[int], is_namespaced: bool) -> int:
        life.call("pid file")
        if path not in machine.pid_files:
            raise FileNotFoundError(path)
        if machine.pid_files[path] not in pids:
            raise PidFileError(f"{path} names process {machine.pid_files[path]}, which is not part of this workload")
        return machine.pid_files[path]

    return Kernel(
        processes=Processes(life),
        files=Files(life),
        open_notifications=lambda: Notifications(life),
        open_pipe=lambda fd: OutputPipe(life, fd),
        open_notify_socket=open_notify_socket,
        is_part_of=is_part_of,
        release_frozen=lambda pids: None,
        read_config=read_config,
        privileges=lambda: machine.privileges,
        find_daemon=find_daemon,
        find_start_obstacle=lambda spec: machine.start_obstacle,
        probe=probe,
        find_unmet_condition=lambda conditions: find_unmet(conditions, HOST_FACTS),
        listeners=Listeners(life),
        descriptors=ReceivedDescriptors(life),
        random=machine.random.random,
        keeps_networks=False,
        read_traffic=lambda pid: NO_TRAFFIC,
    )


HOST_FACTS = HostFacts("simulated", {}, lambda path: path == "/", lambda path: False)
"""The facts that conditions of starts are about."""


class Signals:
    """The signals that a simulated supervisor receives, as an asynchronous iterator."""

    def __init__(self) -> None:
        self._sender, self._receiver = trio.open_memory_channel[int](float("inf"))

    def send(self, signum: int) -> None:
        """Send a signal to the supervisor."""
        self._sender.send_nowait(signal.Signals(signum))

    def __aiter__(self) -> AsyncIterator[int]:
        return self._receiver
