"""Processes that enter the namespaces of a running workload, for `nsupervisor exec`.

The process that enters is made by two. The keeper starts the standby's program (native/setup.c), which enters the
namespaces of the workload's program by its pidfd, and makes the process that becomes the command: in the PID namespace
and in the cgroup, with the keeper as its parent. The first one ends with that. Both run a sealed copy of the program in
memory: so a command such as /proc/self/exe, and a workload that finds the process in /proc, reach no file of the host.

An entry belongs to the client that asked for it, which has the other ends of its input and output: it is killed when
that client is gone. Its death signal ends it with the keeper. An entry that is to be kept, the command of a hook,
outlives its client: the keeper has duplicates of the ends to read, and keeps its end until that is acknowledged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import termios

from nsupervisor.keeper import native
from nsupervisor.keeper.protocol import received_fds
from nsupervisor.keeper.server.children import LATE_NAMESPACES, SpawnError, clone_error, write_identity_maps
from nsupervisor.keeper.setup import plan
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.keeper.setup.descriptors import (
    EXITS_FD,
    FIRST_FREE_FD,
    REPORT_FD,
    STARTED_FD,
    STDERR_FD,
    STDOUT_FD,
    credentials_socket,
)
from nsupervisor.keeper.setup.errors import decode_failure
from nsupervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from nsupervisor.keeper.setup.spec import Spec

_REPORT_SIZE = 16 * 1024
_REPORT_ANCILLARY = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(setup.CREDENTIALS.size)
_TITLE = b"nsupervisor: standby"


class Entry:
    """One process that enters, from its first fork to its end.

    `setup_pid` is the keeper's child that enters; `pid` is the command's process, 0 before it is ready. Both are
    children of the keeper, so neither is another process before the keeper has reaped it.
    """

    __slots__ = (
        *("failure", "has_executed", "id", "is_kept", "is_ready", "outputs", "pid", "queued_signals", "report"),
        *("setup_pid", "status"),
    )

    def __init__(self, id_: str, setup_pid: int, report: socket.socket | None) -> None:
        self.id = id_
        self.setup_pid = setup_pid
        self.pid = 0
        self.queued_signals: list[int] = []
        self.report: socket.socket | None = report
        self.is_ready = False
        self.has_executed = False
        self.failure: dict[str, Any] | None = None
        self.status: int | None = None
        self.is_kept = False
        self.outputs: tuple[int, ...] = ()
        """The ends to read of its output, if it is kept."""

    def keep(self, outputs: Sequence[int]) -> None:
        """Let it outlive its client. `outputs`: descriptors, which are its own from now on."""
        self.is_kept, self.outputs = True, tuple(outputs)

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Entry:
        """Make an entry from `to_table` of an earlier version of this process."""
        entry = cls(table["id"], 0, None)
        entry.pid, entry.status, entry.failure = table["pid"], table["status"], table["failure"]
        entry.has_executed = entry.is_ready = bool(entry.pid)
        entry.keep(table["outputs"])
        entry.inherit(False)
        return entry

    def to_table(self) -> dict[str, Any]:
        """Return what the next version of this process needs to know of one that is kept."""
        fields = {"id": self.id, "pid": self.pid, "status": self.status, "failure": self.failure}
        return {**fields, "outputs": list(self.outputs)}

    def inherit(self, is_inherited: bool) -> None:
        """Let the next version of this process inherit its output, or not."""
        for fd in self.outputs:
            os.set_inheritable(fd, is_inherited)

    def read_report(self) -> bool:
        """Read what the process has reported; return whether that is all, and then close the socket."""
        while self.report is not None:
            try:
                data, ancillary, _, _ = self.report.recvmsg(_REPORT_SIZE, _REPORT_ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                data, ancillary = b"", []
            if data == setup.READY:
                self._on_ready(ancillary)
            elif data:
                self.failure = _decode(data)
            else:
                self.report.close()
                self.report = None
                self.has_executed = self.is_ready and self.failure is None
        return True

    def _on_ready(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for fd in received_fds(ancillary):  # a pidfd, which the keeper does not need for its own child
            os.close(fd)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and not self.is_ready:
                self.pid = setup.CREDENTIALS.unpack_from(data)[0]
                self.is_ready = True
        queued, self.queued_signals = self.queued_signals, []
        for signum in queued:
            self.signal(signum)

    def has_process(self, pid: int) -> bool:
        """Return whether a child of the keeper that has been reaped was one of its processes."""
        return pid in (self.pid, self.setup_pid)

    def reaped(self, pid: int, wait_status: int) -> None:
        """Note the end of one of its processes."""
        if pid == self.setup_pid:
            self.setup_pid = 0
        if pid == self.pid and self.status is None:  # in a sandbox of its own both are one process
            self.status = wait_status

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it can follow: its status is known, or it has never become ready."""
        return self.report is None and (self.status is not None or not self.is_ready)

    def end_message(self) -> dict[str, Any]:
        """Return the event that says how it has ended."""
        status = signal.SIGKILL if self.status is None else self.status
        return {"event": "left", "id": self.id, "status": int(status), "failure": self.failure}

    def signal(self, signum: int) -> bool:
        """Send a signal to the command; return False if it has ended. Signals before its exec are queued for it."""
        if self.status is not None or self.has_ended:
            return False
        if self.is_ready:
            os.kill(self.pid, signum)  # a child that is not reaped
        else:
            self.queued_signals.append(signum)
            if signum == signal.SIGKILL and self.setup_pid:
                os.kill(self.setup_pid, signum)
        return True

    def abandon(self) -> None:
        """Kill it, and take no more reports. A process that is not ready cannot become so, as it cannot report that."""
        if self.report is not None:
            self.read_report()  # it may be ready
        if self.report is not None:
            self.report.close()
            self.report = None
        pid = self.pid if self.is_ready else self.setup_pid
        if pid and self.status is None:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the socket of its reports, and its output."""
        if self.report is not None:
            self.report.close()
            self.report = None
        for fd in self.outputs:
            os.close(fd)
        self.outputs = ()


def _decode(data: bytes) -> dict[str, Any]:
    try:
        return decode_failure(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"step": "enter", "message": "cannot enter: the report is not readable", "errno": errno.EPROTO}


def start_sandbox(spec: Spec, cgroup: int, stdio: Sequence[int], has_terminal: bool) -> Entry:
    """Start a process in a sandbox as that of a program, which does not run: `nsupervisor exec --debug`.

    It is the first process of the PID namespace, so all that it leaves ends with it. The arguments are those of
    `Entrance.start`. Raises OSError, and SpawnError.
    """
    keeper_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    report = credentials_socket(keeper_end.detach())
    try:
        report.setblocking(False)
        pid, pidfd = syscalls.clone3(spec.flags & ~LATE_NAMESPACES, cgroup)
        if pid == 0:
            descriptors = (*stdio, child_end.fileno())
            setup.run(spec, lambda: _move_descriptors(descriptors), lambda: _bind_to_keeper(has_terminal))
    except OSError as error:
        report.close()
        raise clone_error(spec, error) from None
    finally:
        child_end.close()
    os.close(pidfd)
    entry = Entry(spec.id, pid, report)
    if "user" in spec.namespaces:
        try:
            write_identity_maps(spec, pid)
            report.send(setup.proceed_message(spec))
        except SpawnError as error:
            entry.failure = {"step": error.step, "message": str(error), "errno": error.number}
            os.kill(pid, signal.SIGKILL)  # a child that is not reaped
        except OSError:  # it has been killed meanwhile, which its exit reports
            pass
    return entry


def _move_descriptors(descriptors: Sequence[int]) -> None:
    """Move the standard streams and the socket of the reports to their numbers, and close all others."""
    numbers = (0, STDOUT_FD, STDERR_FD, REPORT_FD)
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD) for fd in descriptors]
    for number, fd in zip(numbers, copies, strict=True):
        os.dup2(fd, number, inheritable=number == 0)
    os.close(STARTED_FD)
    os.closerange(EXITS_FD, 0x7FFF_FFFF)


def _bind_to_keeper(has_terminal: bool) -> None:
    """Make the terminal its own, and end with the keeper: after the change of ids, which resets that."""
    if has_terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    syscalls.call_prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Entrance:
    """Starts entries. It keeps the standby's program open from the first one on."""

    __slots__ = ("_executable",)

    def __init__(self) -> None:
        self._executable = -1

    def start(self, spec: Spec, cgroup: int, program: int, stdio: Sequence[int], has_terminal: bool) -> Entry:
        """Start a process that enters the namespaces of `program`, a pidfd. Never waits for it.

        `cgroup`: the descriptor of a directory, or -1. `stdio`: the descriptors of its standard streams.
        `has_terminal`: they are a terminal, which becomes its own. Raises OSError.
        """
        if self._executable < 0:
            self._executable = native.open_setup()
        spec.choose_entry_ids()
        keeper_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        report = credentials_socket(keeper_end.detach())
        try:
            report.setblocking(False)
            # The new process shares no memory with Python, and has these descriptors only. Its signals are blocked.
            numbers = zip((*stdio, child_end.fileno()), (0, STDOUT_FD, STDERR_FD, REPORT_FD), strict=True)
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in numbers]
            pid = os.posix_spawn(f"/proc/self/fd/{self._executable}", [_TITLE], {}, file_actions=actions)
        except BaseException:
            report.close()
            raise
        finally:
            child_end.close()
        entry = Entry(spec.id, pid, report)
        try:
            plan.send_entry(report, spec, cgroup, program, has_terminal)
        except OSError:
            entry.abandon()
            raise
        return entry
