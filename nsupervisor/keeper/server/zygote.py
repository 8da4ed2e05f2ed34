"""The zygote: a copy of the keeper with still memory. It forks the inits, one of each kind in advance.

**Processes.** Each start with an init uses a chain of forks:

    keeper ── forks once ──► zygote ── clones ──► init ── clones ──► standby ── hands off to ──► program
                             still memory         new namespaces     ready to run                in its cgroup
              └────────────── in advance, before a program is requested ─────────────┘

**Why a copy.** After fork(2) the kernel copies a page when either side writes to it. The keeper writes to about a
megabyte of its memory with each spawn, as Python writes to the objects it looks at, so it would soon share little with
the processes forked from it. The zygote does next to nothing between two forks. It is forked from the keeper when it is
first needed, and clones with CLONE_PARENT: a new process is the keeper's child, not the zygote's.

**Two kinds of init.** If possible, an init runs without Python (native_init.py) and shares its memory with its standby,
so that each start copies the zygote's memory once. Otherwise it is a Python process (init.py): on other processors, and
if the standby must enter a user or time namespace, which a process that shares its memory may not.

**Why in advance.** Creating namespaces is the most expensive part of a start for the kernel, and does not depend on the
program; nor does much of the set-up within them. So after each start the zygote creates another init with the same
kinds of new namespaces, and a standby that waits for a program (standby.py). The standby already has its ends of the
log pipes and sockets, and the keeper talks to it directly. Neither is in a workload's cgroup, and the init never joins
it: limits and kills apply only to the program and the processes it starts.

**A waiting init shows old mounts.** A mount namespace shows what was mounted when it was created. So when a file system
is mounted or unmounted on the host, waiting inits are discarded: at once, since they would keep an unmounted file
system busy; and again before each start, since the keeper may not have seen the event yet.

All these forks are bare system calls, without the interpreter's own preparations (PyOS_AfterFork_Child): those write to
many pages, and are for processes with threads.
"""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import mmap
import os
import select
import signal
import socket
import struct
import time

from nsupervisor.keeper.native import handoff
from nsupervisor.keeper.setup import init, standby
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.keeper.setup.descriptors import (
    EXITS_FD,
    FIRST_FREE_FD,
    REPORT_FD,
    STARTED_FD,
    STDERR_FD,
    STDOUT_FD,
    Descriptors,
)
from nsupervisor.keeper.setup.errors import StepError
from nsupervisor.keeper.setup.native_init import NAME, STARTED, SmallInit
from nsupervisor.keeper.setup.spec import Spec
from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import CLONE_NEWTIME, CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_ORDER_MESSAGE = struct.Struct(
    "Q"
)  # message to the zygote: the clone flags; sent with the child's ends of its descriptors
_CHILD_FDS = (REPORT_FD, STARTED_FD, STDOUT_FD, STDERR_FD)
_CONNECTION_FD = FIRST_FREE_FD  # in the zygote
_ERRNO = struct.Struct("i")  # sent on `started_fd` in place of STARTED if there is no init
_NAME = syscalls.make_process_name(NAME)
_NEEDS_OWN_MEMORY = CLONE_NEWUSER | CLONE_NEWTIME  # a process that shares its memory may not enter these
_SIGCHLD = int(signal.SIGCHLD)
_URGENT_INTERVAL_S = 0.02  # a few times as long as it takes to create an init and its standby
_TIMEOUT_S = 10.0  # an init starts within a millisecond unless the zygote has been stopped

_CONNECTION_LOST = (BrokenPipeError, ConnectionError, EOFError, TimeoutError)


class Zygote:
    """The keeper's handle of the zygote process and of the inits that wait."""

    def __init__(self, exits: int) -> None:
        """Create the handle; the zygote is forked when it is first needed.

        `exits` is the socket to which each init writes its program's wait status; it stays the caller's.
        """
        self._exits = exits
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._waiting: dict[int, Descriptors] = {}  # by clone flags: an init, started or not, with its standby
        self._last_start = 0.0
        self.is_urgent = False
        """The last start followed the previous one so soon that the next may come before another init is ready."""
        self._mounts = _MountMonitor()
        self.mounts_fd = os.open(_MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        """For the keeper's epoll: on EPOLLPRI it must call `discard_outdated`."""

    def start(self, flags: int, spec: Spec, cgroup: int) -> tuple[int, Descriptors]:
        """Start a program in the standby of an init; return the pid of the init, which is a child of the keeper.

        `cgroup` is a directory's descriptor, or -1. Raises OSError with clone3's errno, or EMFILE. If the zygote or the
        waiting init has been killed, new ones are created. The pid cannot have been reused: only the keeper can reap
        the init, and it is busy here.
        """
        now = time.monotonic()
        self.is_urgent = now < self._last_start + _URGENT_INTERVAL_S
        self._last_start = now
        self.discard_outdated()
        if "uts" in spec.namespaces and spec.hostname is None:
            spec.hostname = os.uname().nodename  # the host's present name
        for attempt in (1, 2):
            try:
                fds = self._waiting.pop(flags, None) or self._order_init(flags)
                try:
                    standby.send_program(fds.report, spec, cgroup)
                    return _wait_started(fds), fds
                except BaseException:
                    # A standby that has begun exits when the keeper's end of its report socket is closed.
                    fds.close_keeper_ends()
                    raise
            except _CONNECTION_LOST:
                self.kill()
                if attempt == 2:
                    raise OSError(errno.EAGAIN, "the process that makes inits has been killed twice") from None
        raise AssertionError

    def refill(self, flags: int) -> None:
        """Order an init for the next program with these namespaces, without waiting for it.

        A user namespace has its own identity maps, so no init with one can be created in advance.
        """
        if flags & CLONE_NEWUSER or flags in self._waiting or self._socket is None:
            return
        try:
            self._waiting[flags] = self._order_init(flags)
        except OSError:  # then the next start creates its own init
            pass

    def discard_outdated(self) -> None:
        """Discard waiting inits if a file system has been mounted or unmounted since they were created.

        Each start calls this, too. The keeper's loop may see the same change only after that start, when the waiting
        inits are already new; `_MountMonitor` reports each change once.
        """
        if self._mounts.has_changed():
            self._discard()

    def _discard(self) -> None:
        """Discard all waiting inits: they exit by themselves, and the keeper's loop reaps them."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for fds in waiting:
            fds.close_keeper_ends()

    def _order_init(self, flags: int) -> Descriptors:
        if self._socket is None:
            self._fork()
        assert self._socket is not None
        fds = Descriptors(True)
        child_fds = array.array("i", (fds.child_fds[number] for number in _CHILD_FDS))
        try:
            self._socket.sendmsg([_ORDER_MESSAGE.pack(flags)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, child_fds)])
        except OSError:
            fds.close_keeper_ends()
            raise
        finally:
            fds.close_child_ends()
        return fds

    def _fork(self) -> None:
        keeper_end, zygote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _serve(zygote_end, self._exits)
        zygote_end.close()
        keeper_end.settimeout(_TIMEOUT_S)
        self._socket, self._pidfd = keeper_end, os.pidfd_open(pid)

    def kill(self) -> None:
        """Kill and reap the zygote, and discard waiting inits. Inits with a program, the keeper's children, stay."""
        self._discard()
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except (ProcessLookupError, ChildProcessError):  # the keeper's loop has reaped it
            pass
        os.close(self._pidfd)

    def shut_down(self) -> None:
        """Call `kill`, and wait until the waiting inits have exited.

        For the keeper's own exit, when it has no other children.
        """
        pids = []
        for fds in self._waiting.values():
            try:
                pids.append(_wait_started(fds))
            except OSError:
                pass
        self.kill()
        for pid in pids:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass


def _wait_started(fds: Descriptors) -> int:
    """Wait until an init has started; return its pid.

    Raises OSError if it could not be created, EOFError if it was killed.
    """
    init_socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fds.started_fd)
    init_socket.settimeout(_TIMEOUT_S)
    try:
        data, ancillary, _, _ = init_socket.recvmsg(_ERRNO.size, socket.CMSG_SPACE(setup.CREDENTIALS.size))
    finally:
        init_socket.setblocking(False)
        init_socket.detach()
    if data == STARTED:
        return int(setup.CREDENTIALS.unpack(ancillary[0][2])[0])
    if not data:
        raise EOFError
    number = _ERRNO.unpack(data)[0]
    raise OSError(number, os.strerror(number), "clone3")


_MOUNTINFO = "/proc/self/mountinfo"


class _MountMonitor:
    """Detects mounts and unmounts: poll(2) reports each change once per open mountinfo file, proc(5)."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(os.open(_MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC), select.POLLPRI)

    def has_changed(self) -> bool:
        """Return whether anything has been mounted or unmounted since the last call."""
        return bool(self._poll.poll(0))


# ---- in the zygote


def _serve(connection: socket.socket, exits: int) -> NoReturn:
    """Clone an init for each order, until the keeper has ended."""
    try:
        gc.disable()
        syscalls.set_process_name("nsupervisor-zyg")
        handoff.prepare()
        standby.prepare_sample()
        os.dup2(0, 1)
        os.dup2(0, 2)
        os.dup2(exits, EXITS_FD, inheritable=False)
        os.dup2(connection.fileno(), _CONNECTION_FD, inheritable=False)
        connection.detach()
        # Received descriptors get the lowest free numbers, which are exactly the fixed ones: no dup2 is needed.
        os.closerange(REPORT_FD, EXITS_FD)
        os.closerange(_CONNECTION_FD + 1, 0x7FFF_FFFF)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _CONNECTION_FD)
        ancillary_size = socket.CMSG_SPACE(4 * len(_CHILD_FDS))
        flags_of, most = _ORDER_MESSAGE.unpack, _ORDER_MESSAGE.size
        try:
            small = SmallInit()
        except OSError:
            small = None
        while True:
            data, ancillary, _, _ = connection.recvmsg(most, ancillary_size, socket.MSG_CMSG_CLOEXEC)
            if not data or len(ancillary[0][2]) != 4 * len(
                _CHILD_FDS
            ):  # the keeper has ended, or no descriptor is free
                break
            (flags,) = flags_of(data)
            if small is None or flags & _NEEDS_OWN_MEMORY:
                shared = mmap.mmap(-1, ctypes.sizeof(handoff.Told))
                number = syscalls.bare_clone3(flags & ~CLONE_NEWTIME | syscalls.CLONE_PARENT)
                if number == 0:
                    _run_init(flags, handoff.Told.from_buffer(shared))
                shared.close()
            else:
                number = small.clone(flags)
                if number == 0:
                    os.close(STARTED_FD)
                    os.close(EXITS_FD)
                    os.close(_CONNECTION_FD)
                    standby.run(flags, small.told)
            if number < 0:
                os.write(STARTED_FD, _ERRNO.pack(-number))
            os.closerange(REPORT_FD, EXITS_FD)
    finally:
        os._exit(0)


# ---- in an init


def _run_init(flags: int, handoff_state: ctypes.Array[ctypes.c_uint32]) -> NoReturn:
    """Report that the init has started, fork the standby, and run both. `handoff_state`: see `standby.run`."""
    syscalls.bare_set_process_name(_NAME)
    # The zygote's connection: this process closes its copy by number, without touching the Python object.
    os.close(_CONNECTION_FD)
    os.write(STARTED_FD, STARTED)
    child = syscalls.bare_clone3(0, -1, _SIGCHLD)
    if child == 0:
        os.close(STARTED_FD)
        os.close(EXITS_FD)
        standby.run(flags, handoff_state)
    # Close all but the init's own sockets: a log pipe that the init holds would never reach end of file, nor would the
    # report be complete.
    os.close(REPORT_FD)
    os.closerange(STDOUT_FD, EXITS_FD)
    if child < 0:
        os._exit(setup.EXIT_SETUP)
    if flags & CLONE_NEWUSER:
        try:
            setup.wait_and_become_root(STARTED_FD)
        except StepError:  # the standby reports the same error
            os._exit(setup.EXIT_SETUP)
    os.close(STARTED_FD)
    os.setsid()
    init.run(child, EXITS_FD, handoff_state)
