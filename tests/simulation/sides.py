"""The two implementations of the seam behind one interface: the kernel of this host, and the simulated machine.

A conformance test makes the same calls on both. What takes the kernel a moment is waited for by an event: the end of a
process by waitid(2), a change of an event file by inotify(7). The simulated machine lets time pass instead.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from nsupervisor.cgroups.filesystem import KERNEL_FILES, CgroupFiles
from nsupervisor.cgroups.notifications import KernelNotifications, Notifications
from nsupervisor.linux import files as linux_files
from nsupervisor.linux import processes
from nsupervisor.linux.files import Files
from nsupervisor.linux.inotify import IN_MODIFY
from nsupervisor.logs import Pipe
from nsupervisor.notify_socket import NotifySocket, notify_socket
from nsupervisor.service.platform.kernel import Processes
from tests.needs import cgroup_directories, missing
from tests.simulation import seam
from tests.simulation.machine import ROOT, Machine
from tests.simulation.programs import Program
from tests.simulation.seam import Life
from tests.timing import deadline

SETTLING_S = 0.05
"""Longer than the simulated kernel withholds a notification."""
_EVENT_BYTES = 16
"""The size of struct inotify_event without a name."""
_numbers = itertools.count(1)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call returns, or the name of its errno."""
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Side(Protocol):
    """An operating system with a cgroup `root` of its own, a `directory` for files, and programs."""

    root: str
    directory: Path
    cgroups: CgroupFiles
    processes: Processes
    files: Files
    statuses_of_others: bool
    """Whether the kernel returns the exit status of a reaped process (Linux 6.15)."""

    def open_notifications(self) -> Notifications:
        """Return an inotify instance."""

    def start(self, cgroup: str, traps: str = "") -> int:
        """Start a program in a cgroup; return its pid. `traps`: "exit" exits with 7 at SIGTERM, "ignore" ignores it."""

    def wait_zombie(self, pid: int) -> None:
        """Wait until a program has ended; it is not reaped."""

    def wait_stopped(self, pid: int) -> None:
        """Wait until SIGSTOP has stopped a program."""

    def reap(self, pid: int) -> int:
        """Wait for the end of a program and reap it; return its wait status."""

    def wait_text(self, path: str, text: str) -> None:
        """Wait until an event file has this content."""

    def flush(self) -> None:
        """Let the kernel deliver every notification that is due."""

    def queued(self, notifications: Notifications, count: int) -> int:
        """Wait until `count` events are queued and no other is due; return the number of queued events."""

    def make_pipe(self) -> tuple[Any, Callable[[bytes], None], Callable[[], None]]:
        """Return the reading end of a pipe, and functions that write to it and close its only writing end."""

    def open_notify_socket(self, fd: int = -1) -> AbstractContextManager[NotifySocket]:
        """Open a notify socket in `directory`, or take over a descriptor."""

    def send(self, path: Path, data: bytes) -> int:
        """Send a datagram to a notify socket; return the sender's pid."""

    def call(self, name: str, *arguments: Any) -> Any:
        """Return the outcome of a method of `cgroups`."""


class _Calls:
    cgroups: CgroupFiles

    def call(self, name: str, *arguments: Any) -> Any:
        """Return the outcome of a method of `cgroups`."""
        return outcome(getattr(self.cgroups, name), *arguments)


class KernelSide(_Calls):
    """The kernel of this host; see `Side`."""

    def __init__(self, directory: Path) -> None:
        self.root = f"{cgroup_directories()['']}/seam-{os.getpid()}-{next(_numbers)}"
        self.directory = directory
        self.cgroups: CgroupFiles = KERNEL_FILES
        self.processes: Processes = processes
        self.files: Files = linux_files.KERNEL_FILES
        self.statuses_of_others = not missing("kernel:6.15")
        self._programs: dict[int, subprocess.Popen[bytes]] = {}
        self._notifications: list[KernelNotifications] = []
        self._sentinel = f"{self.root}-sentinel"
        os.mkdir(self.root)
        os.mkdir(self._sentinel)
        self._barrier = KernelNotifications()
        self._barrier.add(f"{self._sentinel}/cgroup.events", IN_MODIFY)

    def open_notifications(self) -> Notifications:
        notifications = KernelNotifications()
        self._notifications.append(notifications)
        return notifications

    def start(self, cgroup: str, traps: str = "") -> int:
        trap = {"": "", "exit": "trap 'exit 7' TERM; ", "ignore": "trap '' TERM; "}[traps]
        program = subprocess.Popen(
            ["/bin/sh", "-c", f'{trap}echo 0 > "$0/cgroup.procs"; echo; read line', cgroup],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert program.stdout is not None
        program.stdout.readline()
        self._programs[program.pid] = program
        return program.pid

    def wait_zombie(self, pid: int) -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

    def wait_stopped(self, pid: int) -> None:
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def reap(self, pid: int) -> int:
        returned = self._programs[pid].wait(deadline(10))
        return -returned if returned < 0 else returned << 8

    def wait_text(self, path: str, text: str) -> None:
        notifications = KernelNotifications()
        try:
            notifications.add(path, IN_MODIFY)
            while self.cgroups.read_text(path) != text:
                assert _is_readable(notifications.fd, deadline(10)), f"{path} does not become {text!r}"
                notifications.read()
        finally:
            notifications.close()

    def flush(self) -> None:
        """Change a file twice and wait for both notifications.

        The kernel withholds the second one for CGROUP_FILE_NOTIFY_MIN_INTV (10 ms), so all that it withheld before
        are due as well.
        """
        for value in ("1", "0"):
            self.cgroups.write(f"{self._sentinel}/cgroup.freeze", value)
            assert _is_readable(self._barrier.fd, deadline(10)), "no notification"
            self._barrier.read()

    def queued(self, notifications: Notifications, count: int) -> int:
        self.flush()
        assert isinstance(notifications, KernelNotifications)
        while (number := _queued_bytes(notifications.fd) // _EVENT_BYTES) < count:
            # The descriptor is readable as soon as one event is queued; the kernel notifies another waiter of each.
            time.sleep(0.001)
        return number

    def make_pipe(self) -> tuple[Any, Callable[[bytes], None], Callable[[], None]]:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        return Pipe(reader), lambda data: _write(writer, data), lambda: os.close(writer)

    def open_notify_socket(self, fd: int = -1) -> AbstractContextManager[NotifySocket]:
        return notify_socket(self.directory / "notify" / "token" / "socket", None, fd)

    def send(self, path: Path, data: bytes) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(data, str(path))
        return os.getpid()

    def close(self) -> None:
        """Kill the programs and remove the cgroups."""
        for program in self._programs.values():
            program.kill()
            program.wait()
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.close()
            program.stdout.close()
        for notifications in (self._barrier, *self._notifications):
            notifications.close()
        for root in (self.root, self._sentinel):
            for path, _, _ in os.walk(root, topdown=False):
                os.rmdir(path)


def _is_readable(fd: int, seconds: float) -> bool:
    """Wait until a descriptor is readable; select(2) cannot wait for one above 1023."""
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    return bool(waiter.poll(seconds * 1000))


def _queued_bytes(fd: int) -> int:
    buffer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, buffer)
    return int(struct.unpack("i", buffer)[0])


def _write(fd: int, data: bytes) -> None:
    os.write(fd, data)


class SimulatedSide(_Calls):
    """The simulated machine; see `Side`."""

    def __init__(self) -> None:
        self.machine = Machine(0)
        self.machine.speed = 0.0
        self.life = Life(self.machine)
        self.root = f"{ROOT}/seam"
        self.directory = Path("/sim/files")
        self.cgroups: CgroupFiles = seam.CgroupFiles(self.life)
        self.processes: Processes = seam.Processes(self.life)
        self.files: Files = seam.Files(self.life)
        self.statuses_of_others = self.machine.statuses_of_others = True
        self._kernel = seam.kernel(self.life, lambda path: "")
        self._behaviours = {"": ["program"], "exit": ["program", "term=7"], "ignore": ["program", "deaf"]}
        self.machine.make_cgroup(self.root)

    def open_notifications(self) -> Notifications:
        return seam.Notifications(self.life)

    def start(self, cgroup: str, traps: str = "") -> int:
        program = Program(self._behaviours[traps], {})
        process = self.machine.start_process(self.machine.find_cgroup(cgroup), "seam#1", program, os.getpid())
        process.is_leader = True  # its parent reaps it
        process.command = "sh"
        return process.pid

    def wait_zombie(self, pid: int) -> None:
        self.flush()
        assert self.machine.processes[pid].status is not None

    def wait_stopped(self, pid: int) -> None:
        self.flush()
        assert self.machine.processes[pid].is_stopped

    def reap(self, pid: int) -> int:
        self.flush()
        process = self.machine.processes[pid]
        assert process.status is not None
        self.machine.processes.pop(process.pid, None)
        return process.status

    def wait_text(self, path: str, text: str) -> None:
        self.flush()
        assert self.cgroups.read_text(path) == text

    def flush(self) -> None:
        self.machine.advance(SETTLING_S)

    def queued(self, notifications: Notifications, count: int) -> int:
        self.flush()
        assert isinstance(notifications, seam.Notifications)
        number = len(notifications._inotify.queue)
        assert number >= count
        return number

    def make_pipe(self) -> tuple[Any, Callable[[bytes], None], Callable[[], None]]:
        pipe = self.machine.new_pipe()
        writer = self.machine.start_process(self.machine.find_cgroup(self.root), "seam#1", Program(["program"], {}), 1)
        pipe.writers.add(writer.pid)
        reader = seam.OutputPipe(self.life, self.life.add_fd(pipe))
        return reader, lambda data: self.machine.write_output(writer, data), lambda: writer.end(signal.SIGKILL)

    def open_notify_socket(self, fd: int = -1) -> AbstractContextManager[NotifySocket]:
        return self._kernel.open_notify_socket(self.directory / "notify" / "token" / "socket", None, fd)

    def send(self, path: Path, data: bytes) -> int:
        self.machine.send_datagram(str(path), data, os.getpid())
        return os.getpid()


@contextmanager
def kernel_side(directory: Path) -> Iterator[KernelSide]:
    """Open the kernel's side, and leave nothing behind."""
    side = KernelSide(directory)
    try:
        yield side
    finally:
        side.close()
