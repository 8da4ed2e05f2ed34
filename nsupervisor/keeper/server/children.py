"""The keeper's children: create one (pipes, sockets, clone3), and its state until its end is acknowledged."""

from __future__ import annotations

import errno
import os
import signal
import socket
from functools import partial

from nsupervisor.keeper.protocol import received_fds
from nsupervisor.keeper.server.zygote import Kind, Zygote, wait_standby
from nsupervisor.keeper.setup import sandbox
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.keeper.setup.descriptors import Descriptors, credentials_socket
from nsupervisor.keeper.setup.errors import CGROUP_HINTS, decode_failure
from nsupervisor.keeper.setup.mount_steps import protect_paths
from nsupervisor.linux import processes, syscalls
from nsupervisor.linux.namespaces import CLONE_NEWCGROUP, CLONE_NEWTIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nsupervisor.keeper.setup.spec import Spec

_REPORT_SIZE = 16 * 1024
_REPORT_ANCILLARY = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(setup.CREDENTIALS.size)


class SpawnError(Exception):
    """No process was created. `step` is the failed step, the text a whole sentence, `number` the errno or 0."""

    def __init__(self, step: str, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.number = number


class Child:
    """A workload's first process, from clone3 to the acknowledgement of its end. -1 is a closed descriptor.

    A running child has few descriptors, as there may be thousands of children: the log pipes, its notify socket if it
    came with one, and the program's pidfd if there is an init. The first process is the keeper's own child, so its pid
    is not reused before the keeper has reaped it.
    """

    __slots__ = (
        "failure",
        "has_execed",
        "has_init",
        "has_other_main",
        "id",
        "is_ready",
        "is_tree",
        "name",
        "notify",
        "pid",
        "program_pid",
        "program_pidfd",
        "queued_signals",
        "readiness",
        "refill_kind",
        "report",
        "start_ticks",
        "status",
        "stderr",
        "stdout",
    )

    def __init__(self, spec: Spec, pid: int, fds: Descriptors, refill_kind: Kind | None) -> None:
        self.id = spec.id
        self.name = spec.name
        self.has_init = spec.has_init
        self.is_tree = is_tree(spec)
        # Of the waiting init that this child consumed; the zygote creates another one.
        self.refill_kind = refill_kind
        self.pid = pid
        self.start_ticks = 0
        self.stdout = fds.stdout
        self.stderr = fds.stderr
        self.notify = -1
        self.readiness = -1  # the read end of the pipe for the newline that says that it is ready
        self.report: socket.socket | None = fds.report
        self.program_pid = 0 if spec.has_init else pid
        self.program_pidfd = -1
        self.is_ready = False
        self.has_execed = False
        self.has_other_main = False  # whether the program has become another process than the one that was started
        self.failure: dict[str, Any] | None = None
        self.status: int | None = None
        self.queued_signals: list[int] = []

    @classmethod
    def from_adoption(cls, request: dict[str, Any], fds: list[int]) -> Child:
        """Create the entry of a running child of a previous keeper, from the request "adopt".

        The entry takes over the descriptors: the program's pidfd, the read ends of both pipes, and optionally the
        notify socket; with the key "readiness" then also the pipe of the readiness. `started` in the request is the
        start time of the first process, in clock ticks since boot: it identifies the process, which is not a child of
        this keeper.
        """
        self = cls.__new__(cls)
        self.id, self.name, self.has_init = request["id"], request["name"], request["with_init"]
        self.is_tree = self.has_init and not processes.is_namespace_init(request["pid"])
        self.pid, self.start_ticks, self.program_pid = request["pid"], request["started"], request["program"]
        self.program_pidfd, self.stdout, self.stderr = fds[:3]
        self.readiness = fds.pop() if request.get("readiness") is True else -1
        self.notify = fds[3] if len(fds) > 3 else -1
        self.report, self.refill_kind = None, None
        self.is_ready = self.has_execed = True
        self.has_other_main = False
        self.failure, self.status, self.queued_signals = None, None, []
        return self

    def to_table(self) -> dict[str, Any]:
        """Return all state as JSON values, for the keeper's next version. The descriptors now survive an exec."""
        self.inherit(True)
        return {
            "execed": self.has_execed,
            "failure": self.failure,
            "held": self.queued_signals,
            "id": self.id,
            "name": self.name,
            "notify": self.notify,
            "pid": self.pid,
            "program_pid": self.program_pid,
            "program_pidfd": self.program_pidfd,
            "ready": self.is_ready,
            "report": -1 if self.report is None else self.report.fileno(),
            "started": self.start_ticks,
            "status": self.status,
            "stderr": self.stderr,
            "stdout": self.stdout,
            "wanted": 0 if self.refill_kind is None else self.refill_kind.flags,
            "with_init": self.has_init,
            **({"tree": True} if self.is_tree else {}),
            **({"readiness": self.readiness} if self.readiness >= 0 else {}),
            **({"main": True} if self.has_other_main else {}),
        }

    def inherit(self, inheritable: bool) -> None:
        """Set whether the child's descriptors survive an exec."""
        report = -1 if self.report is None else self.report.fileno()
        for fd in (self.program_pidfd, self.stdout, self.stderr, self.notify, self.readiness, report):
            if fd >= 0:
                os.set_inheritable(fd, inheritable)

    @classmethod
    def from_table(cls, entry: dict[str, Any]) -> Child:
        """Restore a child from what `to_table` of this or another version returned.

        Version 0.1.0 writes and needs each of these keys. Later keys must have a default here; unknown keys are
        ignored.
        """
        self = cls.__new__(cls)
        self.has_execed = entry["execed"]
        self.failure = entry["failure"]
        self.queued_signals = entry["held"]
        self.id = entry["id"]
        self.name = entry["name"]
        self.notify = entry["notify"]
        self.readiness = entry.get("readiness", -1)
        self.pid = entry["pid"]
        self.program_pid = entry["program_pid"]
        self.program_pidfd = entry["program_pidfd"]
        self.is_ready = entry["ready"]
        self.report = None if entry["report"] < 0 else credentials_socket(entry["report"])
        self.start_ticks = entry["started"]
        self.status = entry["status"]
        self.stderr = entry["stderr"]
        self.stdout = entry["stdout"]
        # With Python's standby, which fits each program. Version 0.1.0 knows no other, and needs the key.
        self.refill_kind = Kind(entry["wanted"]) if entry["wanted"] else None
        self.has_init = entry["with_init"]
        self.is_tree = entry.get("tree", False)  # version 0.1.0 does not write this key
        self.has_other_main = entry.get("main", False)  # nor this one
        self.inherit(False)
        return self

    def set_program(self, pid: int, start_ticks: int, pidfd: int) -> None:
        """Continue with another process as the program. `pidfd` is taken over.

        Without an init it is the first process as well, and not a child that this keeper has started.
        """
        if self.program_pidfd >= 0:
            os.close(self.program_pidfd)
        self.program_pid, self.program_pidfd = pid, pidfd
        self.has_other_main, self.status = True, None
        if not self.has_init:
            self.pid, self.start_ticks = pid, start_ticks

    def read_exit_status(self) -> int:
        """Return the wait status of an adopted program that has ended; -1 if the kernel does not report it.

        See `nsupervisor.linux.processes.exit_status`.
        """
        try:
            # It may be a child by now: the orphans of the previous keeper go to the nearest subreaper.
            result = os.waitid(os.P_PIDFD, self.program_pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ChildProcessError, OSError):
            result = None
        if result is not None and result.si_pid:
            return result.si_status << 8 if result.si_code == os.CLD_EXITED else result.si_status
        try:
            status = processes.exit_status(self.program_pidfd, self.program_pid)
        except OSError:  # EMFILE
            status = None
        return -1 if status is None else status

    def signal(self, signum: int) -> bool:
        """Send a signal to the program; return False if it has ended.

        SIGKILL goes to the init: even a frozen or stopped init ends, and the kernel kills all other processes of its
        namespace. Without a PID namespace an end of the init ends nothing else, so SIGKILL goes to the program as well;
        before there is one, the keeper kills what the init leaves (`Keeper._kill_strays`). All other signals go
        directly to the program: a SIGSTOP to the init would stop the init and not the program. They are queued until
        the program is executed, so that they do not interrupt its set-up.
        """
        if self.status is not None:
            return False
        try:
            if self.is_tree and self.program_pidfd >= 0:
                signal.pidfd_send_signal(self.program_pidfd, signum)
            elif self.has_init and signum != signal.SIGKILL:
                if self.program_pidfd < 0:
                    self.queued_signals.append(signum)
                else:
                    signal.pidfd_send_signal(self.program_pidfd, signum)
            elif not self.start_ticks:  # the keeper's own child, not reaped yet
                os.kill(self.pid, signum)
            elif not self.has_init or not self._kill_adopted_init():
                signal.pidfd_send_signal(self.program_pidfd, signum)
        except ProcessLookupError:
            return False
        return True

    def _kill_adopted_init(self) -> bool:
        """Kill the init of an adopted program; return False if the init is gone, or no descriptor is free.

        The caller then kills the program instead.
        """
        try:
            pidfd = processes.open_pidfd(self.pid, self.start_ticks)
        except OSError:  # EMFILE
            return False
        if pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        return True

    def read_report(self, has_ended: bool) -> bool:
        """Read the reports of the set-up; return whether they are complete. The socket is then closed.

        `has_ended`: the process has ended, so no more reports come, even if another process has the other end open.
        """
        while self.report is not None:
            try:
                data, ancillary, _, _ = self.report.recvmsg(_REPORT_SIZE, _REPORT_ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                if not has_ended:
                    return False
                data, ancillary = b"", []
            except ConnectionResetError:
                data, ancillary = b"", []
            if data == setup.READY:
                self._on_ready(ancillary)
            elif data:
                self.failure = decode_failure(data)
                if self.failure["step"] == setup.STEP_NAMES[protect_paths]:
                    sandbox.forget()  # a path of the kernel may have gone with a module
            else:
                self.report.close()
                self.report = None
                self.has_execed = self.is_ready and self.failure is None
        return True

    def _on_ready(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        self.is_ready = True
        if not self.has_init:
            return
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self.program_pid = setup.CREDENTIALS.unpack_from(data)[0]
        fds = received_fds(ancillary)
        if not fds:  # the keeper has no free descriptor for the pidfd (unix(7)), so it could not signal the program
            message = f"cannot take the program's descriptor: {os.strerror(errno.EMFILE)}"
            self.failure = {"step": "descriptors", "message": message, "errno": errno.EMFILE}
            os.kill(self.pid, signal.SIGKILL)
            return
        (self.program_pidfd,) = fds
        queued, self.queued_signals = self.queued_signals, []
        for signum in queued:
            self.signal(signum)

    def may_have_ended(self) -> bool:
        """Return whether the kernel agrees that the program has ended. Before its exec no foreign code runs."""
        return self.program_pidfd < 0 or processes.has_ended(self.program_pidfd)

    def program_status(self, wait_status: int) -> int:
        """Return the program's wait status, if the first process has ended with `wait_status` and sent no report."""
        if self.has_init and self.failure is None and os.WIFSIGNALED(wait_status):
            return int(signal.SIGKILL)  # the kernel kills all processes of a namespace that loses its PID 1
        return wait_status

    def close(self) -> None:
        """Close all of the child's descriptors."""
        if self.report is not None:
            self.report.close()
            self.report = None
        for fd in (self.program_pidfd, self.stdout, self.stderr, self.notify, self.readiness):
            if fd >= 0:
                os.close(fd)
        self.program_pidfd = self.stdout = self.stderr = self.notify = self.readiness = -1


def is_tree(spec: Spec) -> bool:
    """Return whether an init without a PID namespace has the program and all that it leaves as its descendants."""
    return spec.has_init and "pid" not in spec.namespaces


def spawn(spec: Spec, zygote: Zygote) -> Child:
    """Create a child and return at once. Its set-up continues in the child, which reports through `Child.report`.

    The zygote creates inits; a program without an init is cloned here.

    Raises:
        SpawnError: there is no process.
    """
    cgroup = -1
    if spec.cgroup is not None:
        try:
            cgroup = os.open(spec.cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            message = f"cannot open the cgroup {spec.cgroup}: {error.strerror}"
            raise SpawnError("open_cgroup", message, error.errno or 0) from None
    kind = Kind.of(spec) if spec.has_init else None
    try:
        if kind is not None:
            pid, fds = zygote.start(kind, spec, cgroup)
        else:
            pid, fds = _clone(spec.flags & ~CLONE_NEWCGROUP, spec, cgroup)
    except OSError as error:
        raise clone_error(spec, error) from None
    finally:
        if cgroup >= 0:
            os.close(cgroup)
    child = Child(spec, pid, fds, kind)
    if "user" in spec.namespaces:
        _write_maps_and_proceed(spec, child, fds)
    fds.close_started()
    return child


def _clone(flags: int, spec: Spec, cgroup: int) -> tuple[int, Descriptors]:
    fds = Descriptors(False)
    if owner := spec.host_owner():
        fds.give_output_to(owner)
    try:
        pid, pidfd = syscalls.clone3(flags & ~LATE_NAMESPACES, cgroup)
        if pid == 0:
            setup.run(spec, partial(fds.enter_child, (*spec.join_fds, *spec.passed_fds)))
    except OSError:
        fds.close_keeper_ends()
        raise
    finally:
        fds.close_child_ends()
    os.close(pidfd)
    return pid, fds


def _write_maps_and_proceed(spec: Spec, child: Child, fds: Descriptors) -> None:
    """Write the identity maps of a child that waits in a user namespace, and let it proceed.

    If the maps cannot be written, set `Child.failure` and kill the child.
    """
    try:
        write_identity_maps(spec, wait_standby(fds) if spec.has_init else child.pid)
        fds.report.send(setup.proceed_message(spec))
    except SpawnError as error:
        child.failure = {"step": error.step, "message": str(error), "errno": error.number}
        os.kill(child.pid, signal.SIGKILL)
    except OSError:  # it has been killed meanwhile, which its exit will report
        pass


LATE_NAMESPACES = CLONE_NEWCGROUP | CLONE_NEWTIME
"""Namespaces that clone3 does not create. The cgroup namespace is created after the process has joined its v1 cgroups.
The clocks of a time namespace can be set only while no process is inside."""

_HINTS = CGROUP_HINTS | {
    errno.EAGAIN: "a limit on processes is reached, such as pids.max of a cgroup or limit_nproc",
    errno.ENOSPC: "a limit on namespaces is reached, see /proc/sys/user/max_*_namespaces",
    errno.EPERM: "these namespaces need root, or a user namespace in addition",
    errno.EINVAL: "a kind of namespace that this kernel lacks",
}


def clone_error(spec: Spec, error: OSError) -> SpawnError:
    """Explain an errno of clone3, as an error with the step "clone"."""
    number = error.errno or 0
    hint = _HINTS.get(number)
    names = ", ".join(sorted(spec.namespaces)) or "no"
    where = f" in the cgroup {spec.cgroup}" if spec.cgroup else ""
    message = f"cannot start a process with {names} namespaces{where}: {error.strerror}{f' ({hint})' if hint else ''}"
    return SpawnError("clone", message, number)


def write_identity_maps(spec: Spec, pid: int) -> None:
    """Write the uid and gid maps of the user namespace of `pid`: only a process outside may, user_namespaces(7).

    Without mappings, root inside is this process' user and group outside. Raises SpawnError.
    """
    file = "setgroups"
    try:
        if os.geteuid() != 0:
            # Required before an unprivileged process may write gid_map, user_namespaces(7): otherwise a process could
            # drop a group that a file's permissions deny access to.
            _write_proc_file(pid, file, "deny")
        for file, mappings, own in (
            ("gid_map", spec.gid_mappings, os.getegid()),
            ("uid_map", spec.uid_mappings, os.geteuid()),
        ):
            lines = [f"{inside} {outside} {size}\n" for inside, outside, size in mappings or [(0, own, 1)]]
            _write_proc_file(pid, file, "".join(lines))
    except OSError as error:
        message = f"cannot write the {file} of the user namespace: {error.strerror}"
        raise SpawnError("write_identity_maps", message, error.errno or 0) from None


def _write_proc_file(pid: int, file: str, text: str) -> None:
    fd = os.open(f"/proc/{pid}/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
