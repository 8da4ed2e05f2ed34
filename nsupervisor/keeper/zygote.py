"""The zygote: a still copy of the keeper, from which the inits are forked; and one init of each kind in advance.

**Why a copy.** fork(2) copies a page when one of both sides writes to it. The keeper writes to about a megabyte of its
memory with each spawn (Python writes to whatever it looks at), so each process that is forked from it would be left
with a megabyte that it shares with nobody. That does not matter to a process that soon becomes another program; but an
init lives for as long as its workload. The zygote does next to nothing between two forks, nor does an init after its
own, so that an init costs about 0.4 MB. It is forked from the keeper when it is first needed, and clones with
CLONE_PARENT: a new process is the keeper's child, not its own.

**Why in advance.** Making namespaces is the kernel's most expensive part of a start, and does not depend on what is
started. So after each start another init with the same kinds of new namespaces is made, which waits for a program. It
is in no workload's cgroup, and stays out of it: limits count and kills hit the program and what it starts, nobody else.

An init that gets its program forks the process that becomes it, straight into the cgroup; that one does all the set-up.
Both forks are bare system calls, without the interpreter's own preparations (PyOS_AfterFork_Child): those write to many
pages, and are for processes with threads.
"""

from __future__ import annotations

import array
import collections
import errno
import gc
import os
import signal
import socket
import struct

from nsupervisor.keeper import child as setup
from nsupervisor.keeper import init
from nsupervisor.keeper.spec import REPORT, Spec
from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_ORDER = struct.Struct("Q")  # to the zygote: clone's flags; a socket comes along
_REPLY = struct.Struct("i")  # from it: a pid, and a pidfd comes along; or an errno below 0
_PROGRAM = struct.Struct("???")  # to an init: is there a cgroup, a memfd in place of what follows; is there a user ns
_PLACES = (REPORT, setup.STDOUT, setup.STDERR, setup.EXITS)  # of the first descriptors that come along
_MOST_FDS = len(_PLACES) + 2
_MOST_BYTES = 64 * 1024  # longer specifications go through a memfd; a datagram of the largest size may not find room
_PATIENCE = 10.0  # seconds; it answers within a millisecond unless it has been stopped

_LOST = (BrokenPipeError, ConnectionError, EOFError, TimeoutError)


class _Init:
    """An init that waits for its program, or was ordered: then its pid is 0 until the zygote has said it."""

    __slots__ = ("pid", "pidfd", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.pid = 0
        self.pidfd = -1

    def end(self) -> None:
        """It leaves when nobody can send it a program any more."""
        self.socket.close()
        if self.pidfd >= 0:
            try:
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            except ChildProcessError:  # the keeper's loop has reaped it
                pass
            os.close(self.pidfd)


class Zygote:
    """The keeper's end of it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._pidfd = -1
        self._ordered: collections.deque[_Init] = collections.deque()
        self._ready: dict[int, _Init] = {}  # by clone's flags

    def start(self, flags: int, spec: Spec, fds: dict[int, int], cgroup: int) -> tuple[int, int]:
        """Give the program of `spec` to an init; the init's pid and a pidfd of it. It is a child of this process.

        `fds` says for the places REPORT, STDOUT, STDERR and EXITS of child.py which descriptor goes there; `cgroup` is
        a directory's, or -1. Raises OSError with clone3's errno. If the zygote or a waiting init has been killed, there
        will be a new one.
        """
        for attempt in (1, 2):
            try:
                chosen = self._ready.pop(flags, None) or self._order(flags)
                self._settle(chosen)
                if chosen.pidfd < 0:
                    chosen.end()
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "clone3")
                try:
                    self._send(chosen.socket, spec, [fds[place] for place in _PLACES], cgroup)
                except _LOST:
                    chosen.end()
                    raise
            except _LOST:
                # A program that may have begun just now ends by itself: nobody will hear its report.
                self.end()
                if attempt == 2:
                    raise OSError(errno.EAGAIN, "the process that makes inits has been killed twice") from None
            else:
                chosen.socket.close()
                return chosen.pid, chosen.pidfd
        raise AssertionError

    def make_ready(self, flags: int) -> None:
        """Have an init for the next program that wants these namespaces; does not wait for it.

        A user namespace has its own maps, so that none can be made in advance.
        """
        if flags & CLONE_NEWUSER or flags in self._ready or self._socket is None:
            return
        try:
            self._ready[flags] = self._order(flags)
        except (OSError, EOFError):  # then the next one waits for its own
            pass

    def _order(self, flags: int) -> _Init:
        if self._socket is None:
            self._fork()
        assert self._socket is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ordered = _Init(ours)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (theirs.fileno(),)))]
            try:
                self._socket.sendmsg([_ORDER.pack(flags)], rights)
            except OSError:
                ours.close()
                raise
        self._ordered.append(ordered)
        return ordered

    def _settle(self, wanted: _Init) -> None:
        """Hear of all that were ordered up to `wanted`. Raises OSError where it could not be made."""
        while wanted in self._ordered:
            assert self._socket is not None
            reply, ancillary, _, _ = self._socket.recvmsg(_REPLY.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            if not reply:
                raise EOFError
            made = self._ordered.popleft()
            made.pid = _REPLY.unpack(reply)[0]
            if made.pid > 0 and ancillary:  # without a free descriptor here none comes along
                (made.pidfd,) = array.array("i", ancillary[0][2])
        if wanted.pid < 0:
            wanted.socket.close()
            raise OSError(-wanted.pid, os.strerror(-wanted.pid), "clone3")

    def _send(self, connection: socket.socket, spec: Spec, fds: list[int], cgroup: int) -> None:
        packed, memfd = spec.pack(), -1
        if cgroup >= 0:
            fds = [*fds, cgroup]
        try:
            if len(packed) > _MOST_BYTES:
                memfd = os.memfd_create("spec", os.MFD_CLOEXEC)
                fds = [*fds, memfd]
                with open(memfd, "wb", closefd=False) as file:
                    file.write(packed)
                packed = b""
            head = _PROGRAM.pack(cgroup >= 0, memfd >= 0, "user" in spec.namespaces)
            connection.sendmsg([head + packed], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        finally:
            if memfd >= 0:
                os.close(memfd)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _serve(theirs)
        theirs.close()
        ours.settimeout(_PATIENCE)
        self._socket, self._pidfd = ours, os.pidfd_open(pid)

    def end(self) -> None:
        """End and reap it, with the inits that wait. Those with a program stay, they are the keeper's children."""
        if self._socket is None:
            return
        if self._ordered:
            try:
                self._settle(self._ordered[-1])
            except (OSError, EOFError):
                pass
        for waiting in {*self._ready.values(), *self._ordered}:
            waiting.end()
        self._ready.clear()
        self._ordered.clear()
        self._socket.close()
        self._socket = None
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except (ProcessLookupError, ChildProcessError):  # the keeper's loop has reaped it
            pass
        os.close(self._pidfd)


# ---- in the zygote


def _serve(connection: socket.socket) -> NoReturn:
    """Clone whenever asked to, until the keeper is gone."""
    try:
        gc.disable()
        syscalls.set_process_name("nsupervisor-zyg")
        # In the place of the report, which is not needed here; then all else that the keeper has open can go.
        os.dup2(connection.fileno(), REPORT, inheritable=False)
        os.dup2(0, 1)
        os.dup2(0, 2)
        for place in (setup.EXITS, setup.STDOUT, setup.STDERR):
            os.dup2(0, place, inheritable=False)
        connection.detach()
        os.closerange(setup.FIRST_FREE, 0x7FFF_FFFF)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, REPORT)
        ancillary_size = socket.CMSG_SPACE(4)
        while True:
            data, ancillary, _, _ = connection.recvmsg(_ORDER.size, ancillary_size, socket.MSG_CMSG_CLOEXEC)
            if not data:
                break
            (theirs,) = array.array("i", ancillary[0][2])
            pid = syscalls.bare_clone3(_ORDER.unpack(data)[0] | syscalls.CLONE_PARENT | syscalls.CLONE_PIDFD)
            if pid == 0:
                # From here on `connection` is another one: what counts is the number of its descriptor.
                os.dup2(theirs, REPORT, inheritable=False)
                os.close(theirs)
                _wait_for_program(connection)
            os.close(theirs)
            if pid < 0:
                connection.send(_REPLY.pack(pid))
                continue
            # By the time that the keeper reads this, the pid may be somebody else's; the pidfd cannot.
            pidfd = syscalls.bare_pidfd()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (pidfd,)))]
            connection.sendmsg([_REPLY.pack(pid)], rights)
            os.close(pidfd)
    finally:
        os._exit(0)


# ---- in an init


def _wait_for_program(connection: socket.socket) -> NoReturn:
    """Then one more fork, and each of both goes its way."""
    syscalls.set_process_name("nsupervisor-ini")
    data, ancillary, _, _ = connection.recvmsg(
        _PROGRAM.size + _MOST_BYTES, socket.CMSG_SPACE(_MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC
    )
    if not data:  # the keeper needs it no more, or is gone
        os._exit(0)
    fds = array.array("i", ancillary[0][2])
    has_cgroup, has_memfd, has_user_namespace = _PROGRAM.unpack_from(data)
    program = syscalls.bare_clone3(0, fds[len(_PLACES)] if has_cgroup else -1, signal.SIGCHLD)
    if program == 0:
        _prepare(connection, data, fds, has_memfd)
    report, _, _, exits = fds[: len(_PLACES)]
    if program < 0:
        _tell_no_clone(report, -program)
    if has_user_namespace:
        try:
            setup.become_root_when_told(report)
        except setup.StepError:  # the other one says so
            os._exit(setup.EXIT_SETUP)
    # Keep nothing open but `exits`: a log pipe that the init held would never end, a report never be complete.
    os.close(REPORT)
    for fd in fds:
        if fd != exits:
            os.close(fd)
    os.setsid()
    init.run(program, exits)


def _tell_no_clone(report: int, number: int) -> NoReturn:
    hint = CGROUP_HINTS.get(number, "")
    message = f"cannot start the program's process: {os.strerror(number)}{f' ({hint})' if hint else ''}"
    setup.tell_failure(report, "clone", message, number)
    os._exit(setup.EXIT_SETUP)


CGROUP_HINTS = {
    errno.EAGAIN: "a limit on processes is reached, such as pids_max",
    errno.ENODEV: "the cgroup has been removed",
    errno.EBUSY: "the cgroup has controllers enabled for its children, so it can't hold processes itself",
    errno.EOPNOTSUPP: "the cgroup is in an invalid state, see its cgroup.type",
    errno.EACCES: "the cgroup is not delegated to this user",
    errno.EBADF: "what was given as the cgroup is none of cgroup v2",
}


def _prepare(connection: socket.socket, data: bytes, fds: array.array[int], has_memfd: bool) -> NoReturn:
    try:
        packed = data[_PROGRAM.size :]
        if has_memfd:
            os.lseek(fds[-1], 0, os.SEEK_SET)
            with open(fds[-1], "rb", closefd=False) as file:
                packed = file.read()
        spec = Spec.unpack(packed)
    except BaseException as error:
        setup.tell_failure(fds[0], "prepare", f"{type(error).__name__}: {error}", getattr(error, "errno", None) or 0)
        os._exit(setup.EXIT_SETUP)

    def enter() -> None:
        for place, fd in zip(_PLACES, fds, strict=False):
            os.dup2(fd, place, inheritable=False)
        os.close(setup.EXITS)
        os.closerange(setup.FIRST_FREE, 0x7FFF_FFFF)

    # Its descriptor's number is the report's by now, and another object of this kind would cost a tenth of the set-up.
    setup.run(spec, enter, connection)
