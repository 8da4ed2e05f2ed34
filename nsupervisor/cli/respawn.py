"""`nsupervisor run --supervise-self`: a small parent that starts the supervisor again when it has been killed.

It does nothing else: it waits, passes signals on, and takes over neither workloads nor state, which the next supervisor
does by itself (docs/recovery.md). Standard library only, so that it is small and has little that could fail.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
DELAYS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each further start; the last one again and again."""
DEFECT = 70
"""As `service.run` has it: the exit status of a supervisor that has failed over a mistake of its own."""
UPGRADING = signal.SIGURG
"""The supervisor becomes another version: what follows may end in whatever way, that is not its last word. By default
this signal is ignored, so one that is sent to a parent of an earlier version does no harm."""
HEALTHY = 30.0
"""Seconds of life after which the delays begin anew."""


def respawn(arguments: Sequence[str]) -> int:
    """Run `nsupervisor` with these arguments, again while a signal or a defect ends it; returns its exit status.

    Any other exit status is its last word: it was told to end, or it cannot work. A second supervisor that finds the
    runtime directory in use exits so, too. But where it was becoming another version, this one is run again; and what
    comes after one that was killed is tried until it works, as there are programs to be looked after: the file may have
    a mistake by then, or the disk be full.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, UPGRADING, signal.SIGCHLD})
    failures, killed = 0, False
    while True:
        began = time.monotonic()
        argv = [sys.executable, "-P", "-m", "nsupervisor", *arguments]
        environment = {**os.environ, "NSUPERVISOR_PARENT": str(os.getpid())}  # so that it may be moved along
        child = os.posix_spawn(sys.executable, argv, environment, setsigmask=())
        status, ending, upgrading = _wait(child)
        code = os.waitstatus_to_exitcode(status)
        killed = killed or code < 0 or code == DEFECT or upgrading
        if code >= 0 and (ending or code == 0 or not killed):
            return code
        if ending:  # somebody has lost patience with one that had been told to end
            return 128 - code
        failures = 0 if time.monotonic() - began >= HEALTHY else failures + 1
        delay = DELAYS[min(failures, len(DELAYS)) - 1] if failures else 0.0
        _say(child, code, delay)
        if _told_to_end(delay):
            return 128 - code if code < 0 else code


def _wait(child: int) -> tuple[int, bool, bool]:
    """Until the child has ended: its wait status, whether it had been told to end, and whether it has become another
    version. Orphans that fall to this process, as process 1 of a container, are reaped on the way."""
    ending = upgrading = False
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0, ending, upgrading
            if pid == child:
                return status, ending, upgrading
            if pid == 0:
                break
        info = signal.sigwaitinfo({*PASSED_ON, UPGRADING, signal.SIGCHLD})
        if info.si_signo == UPGRADING:
            upgrading = True
        elif info.si_signo != signal.SIGCHLD:
            ending |= info.si_signo in (signal.SIGTERM, signal.SIGINT)
            # What comes from a terminal has reached the child as well: it is in the same process group.
            if info.si_code != 0x80:
                os.kill(child, info.si_signo)


def _told_to_end(delay: float) -> bool:
    """Wait; whether a signal to end has come instead."""
    end = time.monotonic() + delay
    while (rest := end - time.monotonic()) > 0:
        info = signal.sigtimedwait(PASSED_ON, rest)
        if info is not None and info.si_signo in (signal.SIGTERM, signal.SIGINT):
            return True
    return False


def _say(pid: int, code: int, delay: float) -> None:
    """As a record, on standard error: it is the one thing that nobody else can tell."""
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    name = signal.Signals(-code).name if code < 0 else ""
    how = f"by {name}" if name else f"it has failed, exit status {code}"
    record = {
        "timestamp": f"{seconds}.{int(now % 1 * 1_000_000):06}Z",
        "level": "critical",
        "event": "supervisor killed" if name else "supervisor failed",
        "message": f"{how}; it is started again in {delay:g} s, and takes over what runs",
        "pid": pid,
        **({"signal": name} if name else {"code": code}),
    }
    try:
        os.write(2, json.dumps(record).encode() + b"\n")
    except OSError:
        pass
