"""The zygote: a copy of the keeper with still memory. It makes the inits, one of each kind in advance.

**Processes.** Each start with an init uses a chain of clones:

    keeper ── forks ──► zygote ── clones, executes ──► init ── clones ─► standby ── hands over to ──► program
                        still memory                   new namespaces    ready to run                 in its cgroup
              └─────────────── in advance, before a program is requested ────────────┘

**Why a copy.** After fork(2) the kernel copies a page when either side writes to it. The keeper writes to about a
megabyte of its memory with each spawn, as Python writes to the objects it looks at, so it would soon share little with
the processes forked from it. The zygote does next to nothing between two forks. It is forked from the keeper when it is
first needed, and clones with CLONE_PARENT: a new process is the keeper's child, not the zygote's.

**The init executes a program of its own** (native/init.c), so nothing of the keeper is in its memory. It is made as by
vfork(2), without a copy of the zygote's memory. Before its exec it makes the standby.

**There are two kinds of standbys.** Almost all execute a program, too (native/setup.c), and perform the plan that the
keeper makes of a specification (setup/plan.py). If a plan is not possible, the standby is a fork of the zygote, and
runs the steps in Python (setup/standby.py).

**Why in advance.** Creating namespaces is the most expensive part of a start for the kernel, and does not depend on the
program; nor does much of the set-up within them. So after each start the zygote creates another init with the same
kinds of new namespaces, and a standby that waits for a program (standby.py). The standby already has its ends of the
log pipes and sockets, and the keeper talks to it directly. Neither is in a workload's cgroup, and the init never joins
it: limits and kills apply only to the program and the processes it starts. No process can be made from the init.

**How many.** One init of each kind in use waits. While starts of a kind come faster than the zygote makes inits, up to
four wait (demand.py): they are ordered while the keeper has nothing else to do. When each start of a second has found
one, the further ones are discarded.

**A waiting init shows old mounts.** A mount namespace shows what was mounted when it was created. So when a file system
is mounted or unmounted on the host, waiting inits are discarded: at once, since they would keep an unmounted file
system busy; and again before each start, since the keeper may not have seen the event yet.

These clones are bare system calls, without the interpreter's own preparations (PyOS_AfterFork_Child): those write to
many pages, and are for processes with threads.
"""

from __future__ import annotations

import array
import collections
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import time

from nsupervisor.keeper import native
from nsupervisor.keeper.server.demand import CALM_S, Demand
from nsupervisor.keeper.setup import plan, sandbox, standby
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
from nsupervisor.keeper.setup.spec import Spec
from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import CLONE_NEWCGROUP, CLONE_NEWTIME, CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_ORDER_MESSAGE = struct.Struct("Q?")
"""The message to the zygote: the clone flags, and whether the standby performs plans. It is sent with the child's ends
of its descriptors."""
MAX_WAITING = 8
"""Inits that wait. If there are more kinds in use, that of the kind that was used least recently is discarded. A second
one of a kind takes no other's place."""
_CHILD_FDS = (REPORT_FD, STARTED_FD, STDOUT_FD, STDERR_FD)
_CONNECTION_FD = FIRST_FREE_FD  # in the zygote; then the pipe to the init, which gets the next free numbers
_ORDER_WRITER_FD, _EXECUTABLE_FD, _SETUP_FD = native.ORDER + 1, native.ORDER + 2, native.ORDER + 3
_URGENT_INTERVAL_S = 0.02  # a few times as long as it takes to create an init and its standby
_TIMEOUT_S = 10.0  # an init starts within a millisecond unless the zygote has been stopped

_CONNECTION_LOST = (BrokenPipeError, ConnectionError, EOFError, TimeoutError)


class Kind:
    """The kind of an init that waits.

    `flags` are clone3's; `plan_in_advance` is b"" if the standby runs Python. `common`: what the plan is made of.
    """

    __slots__ = ("common", "flags", "plan_in_advance")

    def __init__(self, flags: int, common: plan.Common | None = None) -> None:
        self.flags = flags
        self.common = common
        self.plan_in_advance = b"" if common is None else plan.pack_advance(common)

    @classmethod
    def of(cls, spec: Spec) -> Kind:
        """Return the kind of init that a program needs."""
        flags = spec.flags & ~CLONE_NEWCGROUP
        if not plan.is_possible(spec):
            return cls(flags)
        try:
            return cls(flags, plan.Common(spec))
        except StepError:  # the steps in Python report it
            return cls(flags)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and (self.flags, self.plan_in_advance) == (other.flags, other.plan_in_advance)

    def __hash__(self) -> int:
        return hash((self.flags, self.plan_in_advance))


class Zygote:
    """The keeper's handle of the zygote process and of the inits that wait."""

    def __init__(self, exits: int) -> None:
        """Create the handle; the zygote is forked when it is first needed.

        `exits` is the socket to which each init writes its program's wait status; it stays the caller's.
        """
        self._exits = exits
        self._socket: socket.socket | None = None
        self._pidfd = -1
        # Inits, started or not, with their standbys, the oldest first; the kind that was used least recently first.
        self._waiting: dict[Kind, collections.deque[Descriptors]] = {}
        self._demands: dict[Kind, Demand] = {}  # of kinds that may want more than one
        self._last_start = 0.0
        self.is_urgent = False
        """The last start followed the previous one so soon that the next may come before another init is ready."""
        self._mounts = _MountMonitor()
        self.mounts_fd = os.open(_MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        """For the keeper's epoll: on EPOLLPRI it must call `discard_outdated`."""

    def start(self, kind: Kind, spec: Spec, cgroup: int) -> tuple[int, Descriptors]:
        """Start a program in the standby of an init; return the pid of the init, which is a child of the keeper.

        `cgroup` is a directory's descriptor, or -1. Raises OSError with clone3's errno, or EMFILE. If the zygote or the
        waiting init has been killed, new ones are created. The pid cannot have been reused: only the keeper can reap
        the init, and it is busy here.
        """
        now = time.monotonic()
        self.is_urgent = now < self._last_start + _URGENT_INTERVAL_S
        self._last_start = now
        self.discard_outdated()
        self._note_start(kind, now)
        if "uts" in spec.namespaces and spec.hostname is None:
            spec.hostname = os.uname().nodename  # the host's present name
        owner = spec.host_owner()
        for attempt in (1, 2):
            try:
                fds = self._take(kind) or self._order_init(kind)
                try:
                    # Not before the init has executed its program: until then it shares the zygote's memory.
                    pid = _wait_started(fds)
                    if owner:
                        fds.give_output_to(owner)
                    if kind.common is not None:
                        plan.send(fds.report, spec, kind.common, cgroup)
                    else:
                        standby.send_program(fds.report, spec, cgroup)
                    return pid, fds
                except BaseException:
                    # A standby that has begun exits when the keeper's end of its report socket is closed.
                    fds.close_keeper_ends()
                    raise
            except _CONNECTION_LOST:
                self.kill()
                if attempt == 2:
                    raise OSError(errno.EAGAIN, "the process that makes inits has been killed twice") from None
        raise AssertionError

    def refill(self, kind: Kind) -> None:
        """Order an init for the next program with these namespaces if none waits, without waiting for it.

        A user namespace has its own identity maps, so no init with one can be created in advance.
        """
        self.discard_outdated()  # now: otherwise the next start would discard this init for a mount that was before it
        if kind.flags & CLONE_NEWUSER or kind in self._waiting or self._socket is None:
            return
        if self._count_waiting() >= MAX_WAITING:
            further = (other for other, waiting in self._waiting.items() if len(waiting) > 1)
            self._discard_one(next(further, next(iter(self._waiting))))
        self._add(kind)

    def refill_further(self) -> bool:
        """Order one more init of a kind whose starts come fast; return whether there was one to order.

        For when nothing else is to be done.
        """
        if self._socket is None or not self._demands or self._count_waiting() >= MAX_WAITING:
            return False
        for kind, demand in self._demands.items():
            if 0 < len(self._waiting.get(kind, ())) < demand.wanted:
                return self._add(kind)
        return False

    def discard_further(self) -> float:
        """Discard inits that a burst of starts has left; return the seconds until there may be others, or -1."""
        now = time.monotonic()
        for kind, demand in list(self._demands.items()):
            if demand.is_calm(now):
                del self._demands[kind]
                while len(self._waiting.get(kind, ())) > 1:
                    self._discard_one(kind)
        if not self._demands:
            return -1
        return max(min(demand.last_shortage for demand in self._demands.values()) + CALM_S - now, 0.0)

    def _note_start(self, kind: Kind, now: float) -> None:
        demand = self._demands.get(kind)
        if demand is None:
            if not self.is_urgent:
                return
            demand = self._demands[kind] = Demand(now)
        demand.note_start(now, kind in self._waiting)

    def _take(self, kind: Kind) -> Descriptors | None:
        """Take the oldest init of a kind that waits, if there is one."""
        waiting = self._waiting.pop(kind, None)
        if waiting is None:
            return None
        fds = waiting.popleft()
        if waiting:
            self._waiting[kind] = waiting  # at the end: it was used last
        return fds

    def _add(self, kind: Kind) -> bool:
        try:
            fds = self._order_init(kind)
        except OSError:  # then the next start creates its own init
            return False
        self._waiting.setdefault(kind, collections.deque()).append(fds)
        return True

    def _discard_one(self, kind: Kind) -> None:
        fds = self._take(kind)
        assert fds is not None
        fds.close_keeper_ends()

    def _count_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def discard_outdated(self) -> None:
        """Discard waiting inits if a file system has been mounted or unmounted since they were created.

        Each start calls this, too. The keeper's loop may see the same change only after that start, when the waiting
        inits are already new; `_MountMonitor` reports each change once.
        """
        if self._mounts.has_changed():
            sandbox.forget()
            self._discard()

    def _discard(self) -> None:
        """Discard all waiting inits: they exit by themselves, and the keeper's loop reaps them."""
        waiting = self._all_waiting()
        self._waiting.clear()
        for fds in waiting:
            fds.close_keeper_ends()

    def _all_waiting(self) -> list[Descriptors]:
        return [fds for waiting in self._waiting.values() for fds in waiting]

    def _order_init(self, kind: Kind) -> Descriptors:
        if self._socket is None:
            self._fork()
        assert self._socket is not None
        fds = Descriptors(True)
        child_fds = array.array("i", (fds.child_fds[number] for number in _CHILD_FDS))
        try:
            order = _ORDER_MESSAGE.pack(kind.flags, bool(kind.plan_in_advance))
            self._socket.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, child_fds)])
            if kind.common is not None:
                plan.send_advance(
                    fds.report, kind.plan_in_advance, kind.common
                )  # the standby finds it when it has started
        except OSError:
            fds.close_keeper_ends()
            raise
        finally:
            fds.close_child_ends()
        return fds

    def _fork(self) -> None:
        # Loaded in the keeper, so that an error reaches the client.
        clones, executables = native.Clones(), [native.open_init()]
        try:
            executables.append(native.open_setup())
        except OSError:
            os.close(executables[0])
            raise
        keeper_end, zygote_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _serve(zygote_end, self._exits, clones, executables)
        for executable in executables:
            os.close(executable)
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
        for fds in self._all_waiting():
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
    data, pid = _receive(init_socket, native.ERRNO.size)
    init_socket.detach()
    if data == native.STARTED_MESSAGE:
        return pid
    if not data:
        raise EOFError
    number = native.ERRNO.unpack(data)[0]
    raise OSError(number, os.strerror(number), "clone3")


def wait_standby(fds: Descriptors) -> int:
    """Wait for the first message of a standby in a user namespace; return its pid. Raises OSError."""
    data, pid = _receive(fds.report, len(standby.STANDBY))
    if data != standby.STANDBY:
        raise OSError(errno.EAGAIN, "the process that sets up the program has been killed")
    return pid


def _receive(end: socket.socket, size: int) -> tuple[bytes, int]:
    """Wait for one message; return it with its sender's pid."""
    ancillary_size = socket.CMSG_SPACE(setup.CREDENTIALS.size)
    try:
        data, ancillary, _, _ = end.recvmsg(size, ancillary_size, socket.MSG_DONTWAIT)
    except BlockingIOError:  # it is rarely waited for
        end.settimeout(_TIMEOUT_S)
        try:
            data, ancillary, _, _ = end.recvmsg(size, ancillary_size)
        finally:
            end.setblocking(False)
    return data, setup.CREDENTIALS.unpack(ancillary[0][2])[0] if data else 0


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


def _serve(connection: socket.socket, exits: int, clones: native.Clones, executables: list[int]) -> NoReturn:
    """Make an init for each order, until the keeper has ended."""
    try:
        gc.disable()
        syscalls.set_process_name("nsupervisor-zyg")
        syscalls.set_process_title("nsupervisor: zygote")
        standby.prepare_sample()
        os.dup2(0, 1)
        os.dup2(0, 2)
        os.dup2(exits, EXITS_FD, inheritable=False)
        executables = [fcntl.fcntl(executable, fcntl.F_DUPFD_CLOEXEC, _SETUP_FD + 1) for executable in executables]
        if connection.fileno() != _CONNECTION_FD:
            os.dup2(connection.fileno(), _CONNECTION_FD, inheritable=False)
        connection.detach()
        for executable, number in zip(executables, (_EXECUTABLE_FD, _SETUP_FD), strict=True):
            os.dup2(executable, number, inheritable=False)
        # Received descriptors get the lowest free numbers, which are exactly the fixed ones: no dup2 is needed.
        os.closerange(REPORT_FD, EXITS_FD)
        os.closerange(_CONNECTION_FD + 1, _EXECUTABLE_FD)
        os.closerange(_SETUP_FD + 1, 0x7FFF_FFFF)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _CONNECTION_FD)
        ancillary_size = socket.CMSG_SPACE(4 * len(_CHILD_FDS))
        unpack, most = _ORDER_MESSAGE.unpack, _ORDER_MESSAGE.size
        while True:
            data, ancillary, _, _ = connection.recvmsg(most, ancillary_size, socket.MSG_CMSG_CLOEXEC)
            if not data or len(ancillary[0][2]) != 4 * len(
                _CHILD_FDS
            ):  # the keeper has ended, or no descriptor is free
                break
            flags, performs_plans = unpack(data)
            os.pipe()  # native.ORDER, _ORDER_WRITER_FD
            number = clones.start_init(flags & ~CLONE_NEWTIME, _EXECUTABLE_FD, _SETUP_FD if performs_plans else -1)
            if number == 0:
                os.close(STARTED_FD)
                os.closerange(EXITS_FD, _ORDER_WRITER_FD)
                os.closerange(_EXECUTABLE_FD, _SETUP_FD + 1)
                standby.run(flags, clones, _ORDER_WRITER_FD)
            if number < 0:
                os.write(STARTED_FD, native.ERRNO.pack(-number))
            os.closerange(REPORT_FD, EXITS_FD)
            os.closerange(native.ORDER, _EXECUTABLE_FD)
    finally:
        os._exit(0)
