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
HEALTHY = 30.0
"""Seconds of life after which the delays begin anew."""


def respawn(arguments: Sequence[str]) -> int:
    """Run `nsupervisor` with these arguments, again and again while a signal ends it; returns its exit status.

    An exit status of its own is its last word: it was told to end, or it cannot work. A second supervisor that finds
    the runtime directory in use exits so, too.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    failures = 0
    while True:
        began = time.monotonic()
        argv = [sys.executable, "-P", "-m", "nsupervisor", *arguments]
        environment = {**os.environ, "NSUPERVISOR_PARENT": str(os.getpid())}  # so that it may be moved along
        child = os.posix_spawn(sys.executable, argv, environment, setsigmask=())
        status, ending = _wait(child)
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return code
        if ending:  # somebody has lost patience with one that had been told to end
            return 128 - code
        failures = 0 if time.monotonic() - began >= HEALTHY else failures + 1
        delay = DELAYS[min(failures, len(DELAYS)) - 1] if failures else 0.0
        _say(child, -code, delay)
        if _told_to_end(delay):
            return 128 - code


def _wait(child: int) -> tuple[int, bool]:
    """Until the child has ended: its wait status, and whether it had been told to end. Orphans that fall to this
    process, as process 1 of a container, are reaped on the way."""
    ending = False
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0, ending
            if pid == child:
                return status, ending
            if pid == 0:
                break
        info = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
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


def _say(pid: int, signum: int, delay: float) -> None:
    """As a record, on standard error: it is the one thing that nobody else can tell."""
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    name = signal.Signals(signum).name
    record = {
        "timestamp": f"{seconds}.{int(now % 1 * 1_000_000):06}Z",
        "level": "critical",
        "event": "supervisor killed",
        "message": f"by {name}; it is started again in {delay:g} s, and takes over what runs",
        "pid": pid,
        "signal": name,
    }
    try:
        os.write(2, json.dumps(record).encode() + b"\n")
    except OSError:
        pass
