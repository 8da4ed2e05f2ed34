"""The zygote: a still copy of the keeper, from which the inits are forked; and one init of each kind in advance.

**Who is who.** Each start with an init takes part of a chain of forks, each with its reason:

    keeper ── forks once ──► zygote ── clones ──► init ── clones ──► forerunner ── is reborn as ──► program
                             still memory         new namespaces     ready to run                   in its cgroup
              └─────────────── in advance, before anybody asks for a program ───────────┘

**Why a copy.** fork(2) copies a page when one of both sides writes to it. The keeper writes to about a megabyte of its
memory with each spawn (Python writes to whatever it looks at), and so would be left without what it shares with those
forked from it; the zygote does next to nothing between two forks. It is forked from the keeper when it is first needed,
and clones with CLONE_PARENT: a new process is the keeper's child, not its own.

**Two sorts of init.** Where it can be, an init is no Python process (small_init.py), and shares its memory with its
forerunner, so that each start copies the zygote's memory once. Where not, it is one (init.py): on another processor,
and where the forerunner has to enter a user or time namespace, which nobody may who shares memory.

**Why in advance.** Making namespaces is the kernel's most expensive part of a start, and does not depend on what is
started; nor does much of what is done in them. So after each start another init with the same kinds of new namespaces
is made, with a forerunner that waits for a program (forerunner.py). It has its end of the log pipes and channels
already, and the keeper talks to it directly. Both are in no workload's cgroup; the init stays out of it: limits count
and kills hit the program and what it starts, nobody else.

**What is made in advance is as old as it is.** A mount namespace shows what was mounted when it was made. So when
something is mounted or unmounted on the host, what waits is thrown away: at once, since it would keep busy what has
been unmounted, and before each start, since the news may not have been heard yet.

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

from nsupervisor.keeper import child as setup
from nsupervisor.keeper import forerunner, init
from nsupervisor.keeper.descriptors import BIRTH, EXITS, FIRST_FREE, REPORT, STDERR, STDOUT, Descriptors
from nsupervisor.keeper.errors import StepError
from nsupervisor.keeper.small_init import BORN, NAME, SmallInit
from nsupervisor.keeper.spec import Spec
from nsupervisor.linux import successor, syscalls
from nsupervisor.linux.namespaces import CLONE_NEWTIME, CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_ORDER = struct.Struct("Q")  # to the zygote: the flags; the child's ends of its descriptors come along
_PLACES = (REPORT, BIRTH, STDOUT, STDERR)
_CONNECTION = FIRST_FREE  # in the zygote
_ERRNO = struct.Struct("i")  # by `birth`, in the place of BORN, if there is no init
_NAME = syscalls.process_name(NAME)
_ALONE = CLONE_NEWUSER | CLONE_NEWTIME  # nobody may enter these who shares memory
_SIGCHLD = int(signal.SIGCHLD)
_HURRY = 0.02  # seconds; some times what it takes to make an init and its forerunner
_PATIENCE = 10.0  # seconds; an init is there within a millisecond unless the zygote has been stopped

_LOST = (BrokenPipeError, ConnectionError, EOFError, TimeoutError)


class Zygote:
    """The keeper's end of it."""

    def __init__(self, exits: int) -> None:
        """`exits` is what each init writes its program's end to; it stays the caller's."""
        self._exits = exits
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._waiting: dict[int, Descriptors] = {}  # for an init, born or not, with its forerunner; by clone's flags
        self._started = 0.0
        self.in_a_hurry = False
        """The latest start came so soon after the one before that the next may come before another init is ready."""
        self._mounts = _Mounts()
        self.mounts_fd = os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
        """For the keeper's epoll, EPOLLPRI: then `forget_old` is to be called."""

    def start(self, flags: int, spec: Spec, cgroup: int) -> tuple[int, Descriptors]:
        """Give the program of `spec` to the forerunner of an init; the pid of the init, a child of ours.

        `cgroup` is a directory's descriptor, or -1. Raises OSError with clone3's errno, or EMFILE. If the zygote or
        what waits has been killed, there will be a new one. The pid can't be somebody else's: until its forerunner took
        the program nobody had reaped it, and who would reap it is this process, which is doing this.
        """
        now = time.monotonic()
        self.in_a_hurry = now < self._started + _HURRY
        self._started = now
        self.forget_old()
        if "uts" in spec.namespaces and spec.hostname is None:
            spec.hostname = os.uname().nodename  # the host's, as it is now
        for attempt in (1, 2):
            try:
                fds = self._waiting.pop(flags, None) or self._order(flags)
                try:
                    forerunner.send_program(fds.report, spec, cgroup)
                    return _born(fds), fds
                except BaseException:
                    # What has begun ends by itself when nobody hears its report.
                    fds.close_ours()
                    raise
            except _LOST:
                self.end()
                if attempt == 2:
                    raise OSError(errno.EAGAIN, "the process that makes inits has been killed twice") from None
        raise AssertionError

    def make_ready(self, flags: int) -> None:
        """Have an init for the next program that wants these namespaces; does not wait for it.

        A user namespace has its own maps, so that none can be made in advance.
        """
        if flags & CLONE_NEWUSER or flags in self._waiting or self._socket is None:
            return
        try:
            self._waiting[flags] = self._order(flags)
        except OSError:  # then the next one waits for its own
            pass

    def forget_old(self) -> None:
        """Let go of what waits if something has been mounted or unmounted since it was made.

        A start looks itself; the loop may hear of the same change only after that, when what waits is already new.
        """
        if self._mounts.changed():
            self._forget()

    def _forget(self) -> None:
        """Let go of what waits: it ends by itself, and the keeper's loop reaps it."""
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for fds in waiting:
            fds.close_ours()

    def _order(self, flags: int) -> Descriptors:
        if self._socket is None:
            self._fork()
        assert self._socket is not None
        fds = Descriptors(True)
        theirs = array.array("i", (fds.theirs[place] for place in _PLACES))
        try:
            self._socket.sendmsg([_ORDER.pack(flags)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, theirs)])
        except OSError:
            fds.close_ours()
            raise
        finally:
            fds.close_theirs()
        return fds

    def _fork(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _serve(theirs, self._exits)
        theirs.close()
        ours.settimeout(_PATIENCE)
        self._socket, self._pidfd = ours, os.pidfd_open(pid)

    def end(self) -> None:
        """End and reap it, and let go of what waits. Those with a program stay, they are the keeper's children."""
        self._forget()
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

    def leave(self) -> None:
        """`end`, and wait for what waited; before the keeper goes, when it has no other child."""
        pids = []
        for fds in self._waiting.values():
            try:
                pids.append(_born(fds))
            except OSError:
                pass
        self.end()
        for pid in pids:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass


def _born(fds: Descriptors) -> int:
    """Wait until an init is there; its pid. Raises OSError where there will be none, EOFError if it was killed."""
    birth = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fds.birth)
    birth.settimeout(_PATIENCE)
    try:
        data, ancillary, _, _ = birth.recvmsg(_ERRNO.size, socket.CMSG_SPACE(setup.CREDENTIALS.size))
    finally:
        birth.setblocking(False)
        birth.detach()
    if data == BORN:
        return int(setup.CREDENTIALS.unpack(ancillary[0][2])[0])
    if not data:
        raise EOFError
    number = _ERRNO.unpack(data)[0]
    raise OSError(number, os.strerror(number), "clone3")


_MOUNTS = "/proc/self/mountinfo"


class _Mounts:
    """Whether something has been mounted or unmounted: proc(5) says it to poll(2), once for each open file."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(os.open(_MOUNTS, os.O_RDONLY | os.O_CLOEXEC), select.POLLPRI)

    def changed(self) -> bool:
        """Since this was last asked."""
        return bool(self._poll.poll(0))


# ---- in the zygote


def _serve(connection: socket.socket, exits: int) -> NoReturn:
    """Clone whenever asked to, until the keeper is gone."""
    try:
        gc.disable()
        syscalls.set_process_name("nsupervisor-zyg")
        successor.prepare()
        forerunner.prepare()
        os.dup2(0, 1)
        os.dup2(0, 2)
        os.dup2(exits, EXITS, inheritable=False)
        os.dup2(connection.fileno(), _CONNECTION, inheritable=False)
        connection.detach()
        # What comes now gets the lowest numbers, and those are the right ones: nothing has to be moved.
        os.closerange(REPORT, EXITS)
        os.closerange(_CONNECTION + 1, 0x7FFF_FFFF)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, _CONNECTION)
        ancillary_size = socket.CMSG_SPACE(4 * len(_PLACES))
        flags_of, most = _ORDER.unpack, _ORDER.size
        try:
            small = SmallInit()
        except OSError:
            small = None
        while True:
            data, ancillary, _, _ = connection.recvmsg(most, ancillary_size, socket.MSG_CMSG_CLOEXEC)
            if not data or len(ancillary[0][2]) != 4 * len(_PLACES):  # or there is no room for more descriptors
                break
            (flags,) = flags_of(data)
            if small is None or flags & _ALONE:
                told = mmap.mmap(-1, ctypes.sizeof(successor.Told))
                number = syscalls.bare_clone3(flags & ~CLONE_NEWTIME | syscalls.CLONE_PARENT)
                if number == 0:
                    _begin(flags, successor.Told.from_buffer(told))
                told.close()
            else:
                number = small.clone(flags)
                if number == 0:
                    os.close(BIRTH)
                    os.close(EXITS)
                    os.close(_CONNECTION)
                    forerunner.run(flags, small.told)
            if number < 0:
                os.write(BIRTH, _ERRNO.pack(-number))
            os.closerange(REPORT, EXITS)
    finally:
        os._exit(0)


# ---- in an init


def _begin(flags: int, told: ctypes.Array[ctypes.c_uint32]) -> NoReturn:
    """One more fork, and each of both goes its way."""
    syscalls.bare_set_process_name(_NAME)
    # From here on the zygote's connection is another one: what counts is the number of its descriptor.
    os.close(_CONNECTION)
    os.write(BIRTH, BORN)
    child = syscalls.bare_clone3(0, -1, _SIGCHLD)
    if child == 0:
        os.close(BIRTH)
        os.close(EXITS)
        forerunner.run(flags, told)
    # Keep nothing open but what is its own: a log pipe that the init held would never end, a report never be complete.
    os.close(REPORT)
    os.closerange(STDOUT, EXITS)
    if child < 0:
        os._exit(setup.EXIT_SETUP)
    if flags & CLONE_NEWUSER:
        try:
            setup.become_root_when_told(BIRTH)
        except StepError:  # the program's process says so
            os._exit(setup.EXIT_SETUP)
    os.close(BIRTH)
    os.setsid()
    init.run(child, EXITS, told)
