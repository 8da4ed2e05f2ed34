"""`nsupervisor shell`: one program in new namespaces on this terminal, as `unshare --fork --mount-proc` does.

No keeper and no supervisor: this process makes the child, waits, and hands on how it ended. The child stays in the
session and process group of this one, so job control works. The set-up is the keeper's. Standard library only.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys

from nsupervisor.keeper import child as setup
from nsupervisor.keeper import init
from nsupervisor.keeper.spawn import LATE, SpawnError, clone_failed, write_identity_maps
from nsupervisor.keeper.spec import Spec, SpecError
from nsupervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

FAILED, USAGE, NOT_PERMITTED = 1, 2, 4
_REPORT_SIZE = 16 * 1024


def shell(namespaces: list[str], argv: list[str], *, hostname: str | None = None, map_root_user: bool = True) -> int:
    """Run `argv` ($SHELL when empty) in new `namespaces` (OCI's names), and return the exit status for this command.

    A PID namespace brings a mount namespace with a /proc of its own, and an init. Who isn't root gets a user namespace
    in which they are, unless `map_root_user` is off.

    Returns the program's exit code, or 128 + n when signal n ended it; 127 when it isn't found and 126 when it can't be
    executed; 4 when this user may not make such namespaces, 2 for wrong usage, 1 for what else can fail. The reason is
    on standard error then.
    """
    wanted = set(namespaces)
    if "pid" in wanted:
        wanted.add("mount")
    own = [[os.geteuid()] * 2 + [1]], [[os.getegid()] * 2 + [1]]
    if wanted and map_root_user and os.geteuid() != 0:
        wanted.add("user")
    try:
        spec = Spec(
            {
                "id": "shell",
                "argv": argv or [os.environ.get("SHELL") or "/bin/sh"],
                "env": dict(os.environ),
                "cwd": "/",  # not entered: the program starts where this command was started
                "namespaces": sorted(wanted),
                "hostname": hostname,
                "uid_mappings": own[0] if "user" in wanted and not map_root_user else [],
                "gid_mappings": own[1] if "user" in wanted and not map_root_user else [],
            }
        )
    except SpecError as error:
        return _complain(str(error), USAGE)
    try:
        return _run(spec)
    except SpawnError as error:
        return _complain(str(error), NOT_PERMITTED if error.number in (errno.EPERM, errno.EACCES) else FAILED)


def _run(spec: Spec) -> int:
    report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    exits, exits_end = os.pipe()
    # Until each side has made up its mind what a signal means to it.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid, pidfd = syscalls.clone3(spec.flags & ~LATE)
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise clone_failed(spec, error) from None
    if pid == 0:
        _child(spec, theirs.fileno(), exits_end)
    theirs.close()
    os.close(exits_end)
    with report:
        terminal = _terminal()
        _pass_signals_on(pidfd)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if "user" in spec.namespaces:
            try:
                write_identity_maps(spec, pid)
            except SpawnError:
                report.close()  # which ends the child, as it waits for a word
                os.waitpid(pid, 0)
                raise
            report.send(setup.go(spec))
        failure = report.recv(_REPORT_SIZE)  # nothing once the program has been executed
    status = _status(pid, exits)
    if terminal is not None:
        _take_back(*terminal)
    if failure:
        return _explain(setup.decode_failure(failure))
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _child(spec: Spec, report: int, exits: int) -> NoReturn:
    step = "prepare"
    try:
        spec.report = report
        for function in setup.NAMESPACE_STEPS:
            step = setup.STEP_NAMES[function]
            function(spec)
        if spec.init:
            program = os.fork()
            if program != 0:
                os.closerange(0, exits)  # the terminal and whatever else was inherited belong to the program
                os.closerange(exits + 1, 0x7FFF_FFFF)
                init.run(program, exits)
        # What the interpreter has changed for itself.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        step = "execute"
        setup.execute(spec)
    except setup.StepError as error:
        setup.tell_failure(report, step, str(error), error.number)
    except BaseException as error:
        setup.tell_failure(report, step, f"{type(error).__name__}: {error}", getattr(error, "errno", None) or 0)
    finally:
        os._exit(setup.EXIT_SETUP)


def _status(pid: int, exits: int) -> int:
    """The program's wait status: from the init, where there is one that lived to tell."""
    with os.fdopen(exits, "rb") as file:
        told = file.read(init.STATUS.size)
    _, status = os.waitpid(pid, 0)
    return int(init.STATUS.unpack(told)[0]) if told else status


def _pass_signals_on(pidfd: int) -> None:
    """What a terminal sends reaches the program by itself; what somebody sends to this process is meant for it too."""

    def forward(signum: int, _: FrameType | None) -> None:
        try:
            signal.pidfd_send_signal(pidfd, signum)
        except ProcessLookupError:
            pass

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGHUP, forward)


def _terminal() -> tuple[int, int] | None:
    """The terminal on standard input and the process group in its foreground, when that is ours."""
    try:
        group = os.tcgetpgrp(0)
    except OSError:
        return None
    return (0, group) if group == os.getpgrp() else None


def _take_back(fd: int, group: int) -> None:
    """A shell in a PID namespace cannot name the process group outside that it took the terminal from."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # which changing it from the background would bring
    try:
        os.tcsetpgrp(fd, group)
    except OSError:  # the terminal has been hung up
        pass


def _explain(failure: dict[str, Any]) -> int:
    if failure["step"] == "execute":
        missing = failure["errno"] == errno.ENOENT
        return _complain(failure["message"], setup.EXIT_NOT_FOUND if missing else setup.EXIT_NOT_EXECUTABLE)
    forbidden = failure["errno"] in (errno.EPERM, errno.EACCES)
    return _complain(failure["message"], NOT_PERMITTED if forbidden else FAILED)


def _complain(message: str, code: int) -> int:
    print(f"nsupervisor shell: {message}", file=sys.stderr)
    return code
