"""`nsupervisor shell`: run one program in new namespaces on this terminal, like `unshare --fork
--mount-proc`.

It needs neither keeper nor supervisor: this process makes the child, forwards signals, waits, and passes on the exit
status. The child stays in the session and process group of this process, so job control works. The set-up steps and
the init of a PID namespace are the keeper's. Standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys

from nsupervisor.keeper import native
from nsupervisor.keeper.server.children import LATE_NAMESPACES, SpawnError, clone_error, write_identity_maps
from nsupervisor.keeper.setup import steps as setup
from nsupervisor.keeper.setup.errors import StepError, decode_failure
from nsupervisor.keeper.setup.spec import Spec, SpecError
from nsupervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, NoReturn

FAILED, USAGE, NOT_PERMITTED = 1, 2, 4
_REPORT_SIZE = 16 * 1024
_SI_KERNEL = 0x80  # siginfo's si_code, sigaction(2)
_JOB_CONTROL = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
_GRACE_MS = 5000  # for processes that the program leaves in its PID namespace, after SIGTERM


def run_in_namespaces(
    namespaces: list[str], argv: list[str], *, hostname: str | None = None, map_root_user: bool = True
) -> int:
    """Run `argv` ($SHELL if empty) in new `namespaces` (OCI's names); return the exit status for this command.

    A PID namespace brings a mount namespace with its own /proc, and an init. A user other than root gets a user
    namespace in which they are root, unless `map_root_user` is off.

    Returns the program's exit code, or 128 + n if signal n ended it; 127 if it isn't found and 126 if it can't be
    executed; 4 if this user may not make such namespaces, 2 for wrong usage, 1 for other failures. In these cases the
    reason is on standard error.
    """
    kinds = set(namespaces)
    if "pid" in kinds:
        kinds.add("mount")
    own_mappings = [[os.geteuid()] * 2 + [1]], [[os.getegid()] * 2 + [1]]
    if kinds and map_root_user and os.geteuid() != 0:
        kinds.add("user")
    try:
        spec = Spec(
            {
                "id": "shell",
                "argv": argv or [os.environ.get("SHELL") or "/bin/sh"],
                "env": dict(os.environ),
                "cwd": "/",  # not entered: the program starts where this command was started
                "namespaces": sorted(kinds),
                "hostname": hostname,
                "uid_mappings": own_mappings[0] if "user" in kinds and not map_root_user else [],
                "gid_mappings": own_mappings[1] if "user" in kinds and not map_root_user else [],
            }
        )
    except SpecError as error:
        return print_error(str(error), USAGE)
    try:
        return run_spec(spec)
    except SpawnError as error:
        return print_error(str(error), NOT_PERMITTED if error.number in (errno.EPERM, errno.EACCES) else FAILED)


def run_spec(spec: Spec, is_confined: bool = False) -> int:
    """Run a program on this terminal, from its start to its end; return the exit status for this command.

    `is_confined`: with the limits, user, capabilities and working directory of the specification, too. Raises
    SpawnError.
    """
    try:
        executable = native.open_init() if spec.has_init else -1
    except OSError as error:
        raise SpawnError("init", f"cannot open the init: {error.strerror}", error.errno or 0) from None
    report, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    exits, exits_end = os.pipe()
    # Blocked here until the end, to be forwarded; a terminal's request to stop has its usual effect.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _JOB_CONTROL)
    old_sigchld = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # children of a process that ignores it have no status
    cgroup = -1
    try:
        if spec.cgroup is not None:
            cgroup = os.open(spec.cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        pid, pidfd = syscalls.clone3(spec.flags & ~LATE_NAMESPACES, cgroup)
    except OSError as error:
        raise clone_error(spec, error) from None
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        steps = setup.STEPS if is_confined else setup.NAMESPACE_STEPS
        _child(spec, steps, child_end.fileno(), exits_end, executable, old_mask, old_sigchld is signal.SIG_IGN)
    child_end.close()
    os.close(exits_end)
    with report:
        terminal = _own_terminal()
        if "user" in spec.namespaces:
            try:
                write_identity_maps(spec, pid)
            except SpawnError:
                report.close()  # ends the child, which waits for a message
                os.waitpid(pid, 0)
                raise
            report.send(setup.proceed_message(spec))
        _forward_signals(pid, pidfd)
        failure = report.recv(_REPORT_SIZE)  # empty if the program has been executed
    status = _wait_status(pid, exits)
    if terminal is not None:
        _reclaim_terminal(*terminal)
    if failure:
        return _print_failure(decode_failure(failure))
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _child(
    spec: Spec,
    steps: Sequence[Callable[[Spec], None]],
    report: int,
    exits: int,
    executable: int,
    mask: Iterable[int],
    is_sigchld_ignored: bool,
) -> NoReturn:
    step = "prepare"
    try:
        spec.report = report
        for function in setup.NAMESPACE_STEPS:
            step = setup.STEP_NAMES[function]
            function(spec)
        order = b""
        if spec.has_init:
            order_reader, order_writer = os.pipe()
            started_reader, started_writer = os.pipe()
            if os.fork() != 0:
                _become_init(executable, exits, order_reader, started_writer)
            os.close(started_writer)
            order = native.order(os.getpid(), "nsupervisor: init shell", signal=signal.SIGTERM, grace_ms=_GRACE_MS)
        for function in steps:
            if function not in setup.NAMESPACE_STEPS:
                step = setup.STEP_NAMES[function]
                function(spec)
        # Restore what the interpreter and this command have changed for themselves.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if is_sigchld_ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        step = "execute"
        if order:
            # Race: until the init has executed its program, it is this command, in its directory and with its files.
            os.read(started_reader, 1)  # empty if the init has ended, which ends this process
            os.write(order_writer, order)
        setup.execute(spec, mask)
    except StepError as error:
        setup.send_failure(report, step, str(error), error.number)
    except BaseException as error:
        setup.send_failure(report, step, f"{type(error).__name__}: {error}", getattr(error, "errno", None) or 0)
    finally:
        os._exit(setup.EXIT_SETUP)


def _become_init(executable: int, exits: int, order: int, started: int) -> NoReturn:
    """Execute the init; it closes the terminal and all other inherited files, which belong to the program.

    It writes a byte to `started` when it has done that.
    """
    given = executable, exits, order, started
    free = max(*given, native.INIT_ORDER) + 1
    executable, exits, order, started = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in given)
    os.dup2(exits, native.INIT_STATUS)
    os.dup2(started, native.INIT_STARTED)
    os.dup2(order, native.INIT_ORDER)
    os.execve(executable, [native.TITLE_SPACE], {})  # noqa: S606 - no shell is wanted


def _wait_status(pid: int, exits: int) -> int:
    """Return the program's wait status: from the init, if there is one and it lived to report it."""
    with os.fdopen(exits, "rb") as file:
        message = file.read(native.STATUS.size)
    _, status = os.waitpid(pid, 0)
    return int(native.STATUS.unpack(message)[0]) if message else status


def _forward_signals(pid: int, pidfd: int) -> None:
    """Forward signals that are sent to this process, until the child has ended.

    Those that a terminal sends reach its whole foreground process group, and so the program. The hang-up is sent to the
    session's leader only, which may be this process.
    """
    signals = signal.valid_signals() - _JOB_CONTROL
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        info = signal.sigwaitinfo(signals)
        if info.si_signo == signal.SIGCHLD or (info.si_code == _SI_KERNEL and info.si_signo != signal.SIGHUP):
            continue
        try:
            signal.pidfd_send_signal(pidfd, info.si_signo)
        except ProcessLookupError:
            pass


def _own_terminal() -> tuple[int, int] | None:
    """Return the terminal on standard input and its foreground process group, if that is ours."""
    try:
        group = os.tcgetpgrp(0)
    except OSError:
        return None
    return (0, group) if group == os.getpgrp() else None


def _reclaim_terminal(fd: int, group: int) -> None:
    """Make the process group the terminal's foreground group again.

    A shell in a PID namespace cannot do that, because it cannot name a process group outside.
    """
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # sent for changing the group from the background
    try:
        os.tcsetpgrp(fd, group)
    except OSError:  # the terminal has been hung up
        pass


def _print_failure(failure: dict[str, Any]) -> int:
    if failure["step"] == "execute":
        missing = failure["errno"] == errno.ENOENT
        return print_error(failure["message"], setup.EXIT_NOT_FOUND if missing else setup.EXIT_NOT_EXECUTABLE)
    forbidden = failure["errno"] in (errno.EPERM, errno.EACCES)
    return print_error(failure["message"], NOT_PERMITTED if forbidden else FAILED)


def print_error(message: str, code: int) -> int:
    """Print a message on standard error; return the exit status `code`."""
    print(f"nsupervisor shell: {message}", file=sys.stderr)
    return code
