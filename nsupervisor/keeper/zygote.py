"""The zygote: a still copy of the keeper, from which the inits are forked, because of what a fork costs in memory.

fork(2) copies a page when one of both sides writes to it. The keeper writes to about a megabyte of its memory with
each spawn (Python writes to whatever it looks at), so each process that is forked from it would be left with a megabyte
that it shares with nobody. That does not matter to a process that soon becomes another program; but an init lives for
as long as its workload. The zygote does next to nothing between two forks, nor does an init after its own, so that an
init costs about 0.3 MB.

It is forked from the keeper when it is first needed, and clones with CLONE_PARENT: a new process is the keeper's child,
not its own. The init then forks the process that becomes the program, which does all the set-up.

Both forks are bare system calls, without the interpreter's own preparations (PyOS_AfterFork_Child): those write to many
pages, and are for processes with threads.
"""

from __future__ import annotations

import _pickle  # without the module around it, which costs an import
import array
import errno
import gc
import os
import signal
import socket
import struct

from nsupervisor.keeper import child as setup
from nsupervisor.keeper import init
from nsupervisor.keeper.spec import REPORT
from nsupervisor.linux import syscalls
from nsupervisor.linux.namespaces import CLONE_NEWUSER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from nsupervisor.keeper.spec import Spec

_REQUEST = struct.Struct("Q??")  # clone's flags; whether there is a cgroup, and a memfd instead of what follows
_REPLY = struct.Struct("i")  # a pid, or an errno below 0
_PLACES = (REPORT, setup.STDOUT, setup.STDERR, setup.EXITS)  # of the first descriptors that come along
_MOST_FDS = len(_PLACES) + 2
_MOST_BYTES = 64 * 1024  # longer specifications go through a memfd; a datagram of the largest size may not find room
_PATIENCE = 10.0  # seconds; it answers within a millisecond unless it has been stopped


class Zygote:
    """The keeper's end of it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._pidfd = -1

    def clone(self, flags: int, spec: Spec, fds: dict[int, int], cgroup: int) -> int:
        """Let it make an init for the program of `spec`; the init's pid, a child of this process.

        `fds` says for the places REPORT, STDOUT, STDERR and EXITS of child.py which descriptor goes there; `cgroup` is
        a directory's, or -1. Raises OSError with clone3's errno. If the zygote has been killed, there is a new one.
        """
        for attempt in (1, 2):
            if self._socket is None:
                self._start()
            try:
                return self._ask(flags, _pickle.dumps(spec, 5), [fds[place] for place in _PLACES], cgroup)
            except (BrokenPipeError, ConnectionResetError, EOFError, TimeoutError):
                # A process that it may have made just now ends by itself: nobody will hear its report.
                self.end()
                if attempt == 2:
                    raise OSError(errno.EAGAIN, "the process that makes inits has been killed twice") from None
        raise AssertionError

    def _ask(self, flags: int, spec: bytes, fds: list[int], cgroup: int) -> int:
        assert self._socket is not None
        memfd = -1
        if cgroup >= 0:
            fds = [*fds, cgroup]
        if len(spec) > _MOST_BYTES:
            memfd = os.memfd_create("spec", os.MFD_CLOEXEC)
            fds = [*fds, memfd]
        try:
            if memfd >= 0:
                with open(memfd, "wb", closefd=False) as file:
                    file.write(spec)
                spec = b""
            request = _REQUEST.pack(flags, cgroup >= 0, memfd >= 0) + spec
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            self._socket.sendmsg([request], rights)
        finally:
            if memfd >= 0:
                os.close(memfd)
        reply = self._socket.recv(_REPLY.size)
        if not reply:
            raise EOFError
        pid: int = _REPLY.unpack(reply)[0]
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid), "clone3")
        return pid

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            _serve(theirs)
        theirs.close()
        ours.settimeout(_PATIENCE)
        self._socket, self._pidfd = ours, os.pidfd_open(pid)

    def end(self) -> None:
        """End and reap it. The inits stay, they are the keeper's children."""
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
        ancillary_size = socket.CMSG_SPACE(_MOST_FDS * 4)
        size = _REQUEST.size + _MOST_BYTES
        while True:
            data, ancillary, _, _ = connection.recvmsg(size, ancillary_size, socket.MSG_CMSG_CLOEXEC)
            if not data:
                break
            fds = array.array("i", ancillary[0][2])
            flags, has_cgroup, has_memfd = _REQUEST.unpack_from(data)
            pid = syscalls.bare_clone3(flags | syscalls.CLONE_PARENT, fds[len(_PLACES)] if has_cgroup else -1)
            if pid == 0:
                _be_born(connection, data, fds, has_memfd, flags)
            for fd in fds:
                os.close(fd)
            connection.send(_REPLY.pack(pid))
    finally:
        os._exit(0)


def _be_born(connection: socket.socket, data: bytes, fds: array.array[int], has_memfd: bool, flags: int) -> NoReturn:
    """In the new process: one more fork, and each of both goes its way."""
    program = syscalls.bare_clone3(0, -1, signal.SIGCHLD)
    if program == 0:
        _prepare(connection, data, fds, has_memfd)
    report, _, _, exits = fds[: len(_PLACES)]
    if program < 0:
        hint = " (a limit on processes is reached, such as pids_max)" if -program == errno.EAGAIN else ""
        message = f"cannot start the program's process: {os.strerror(-program)}{hint}"
        setup.tell_failure(report, "fork", message, -program)
        os._exit(setup.EXIT_SETUP)
    if flags & CLONE_NEWUSER:
        try:
            setup.become_root_when_told(report)
        except setup.StepError:  # the other one says so
            os._exit(setup.EXIT_SETUP)
    # Keep nothing open but `exits`: a log pipe that the init held would never end, a report never be complete.
    os.close(REPORT)
    for fd in fds:
        if fd != exits:
            os.close(fd)
    syscalls.set_process_name("nsupervisor-ini")
    os.setsid()
    init.run(program, exits)


def _prepare(connection: socket.socket, data: bytes, fds: array.array[int], has_memfd: bool) -> NoReturn:
    try:
        packed = data[_REQUEST.size :]
        if has_memfd:
            os.lseek(fds[-1], 0, os.SEEK_SET)
            with open(fds[-1], "rb", closefd=False) as file:
                packed = file.read()
        spec: Spec = _pickle.loads(packed)  # the keeper's own, through a socket that nobody else has
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
