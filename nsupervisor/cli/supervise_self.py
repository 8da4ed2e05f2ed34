"""`nsupervisor run --supervise-self`: a small parent that restarts the supervisor after it has been killed.

It does nothing else: it waits, forwards signals, and takes over neither workloads nor state, which the next supervisor
does itself (docs/recovery.md). Standard library only, so that it is small and has little that could fail.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from nsupervisor.linux.controlling_terminal import ControllingTerminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
RESTART_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each further start; the last one is used repeatedly."""
EXIT_DEFECT = 70
"""The exit status of a supervisor that ended because of a defect of its own, the same as in `service.run`."""
UPGRADE_SIGNAL = signal.SIGURG
"""The signal by which the supervisor announces that it becomes another version.

However the next process ends, its exit status is not final. By default this signal is ignored, so it does no harm when
it is sent to a parent of an earlier version.
"""
HEALTHY_AFTER_S = 30.0
"""Seconds of life after which the delays start again from the first."""


def respawn(arguments: Sequence[str]) -> int:
    """Run `nsupervisor` with these arguments, and again after a signal or a defect; return its exit status.

    Any other exit status is final: the supervisor was asked to stop, or it cannot work. A second supervisor that finds
    the runtime directory in use exits like this, too. There are two exceptions. If it was becoming another version,
    this one is run again. After a kill, it is restarted until it works, because there are programs to supervise:
    meanwhile the file may have got a mistake, or the disk may be full.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED_SIGNALS, UPGRADE_SIGNAL, signal.SIGCHLD})
    failures, killed, terminal = 0, False, ControllingTerminal()
    while True:
        started_at = time.monotonic()
        argv = [sys.executable, "-P", "-m", "nsupervisor", *arguments]
        environment = {**os.environ, "NSUPERVISOR_PARENT": str(os.getpid())}  # the child moves this process, too
        child = os.posix_spawn(sys.executable, argv, environment, setsigmask=())
        status, stopping, upgrading = _wait(child, terminal)
        code = os.waitstatus_to_exitcode(status)
        killed = killed or code < 0 or code == EXIT_DEFECT or upgrading
        if code >= 0 and (stopping or code == 0 or not killed):
            return code
        if stopping:  # it was killed while it was stopping
            return 128 - code
        failures = 0 if time.monotonic() - started_at >= HEALTHY_AFTER_S else failures + 1
        delay = RESTART_DELAYS_S[min(failures, len(RESTART_DELAYS_S)) - 1] if failures else 0.0
        _write_record(child, code, delay)
        if _wait_for_stop_signal(delay, terminal):
            return 128 - code if code < 0 else code


def _wait(child: int, terminal: ControllingTerminal) -> tuple[int, bool, bool]:
    """Wait until the child has ended; return (wait status, whether it was asked to stop, whether it was upgrading).

    As process 1 of a container, this process also reaps orphans here.
    """
    stopping = upgrading = False
    while True:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0, stopping, upgrading
            if pid == child:  # a signal that came before its end may wait still
                waiting = signal.sigpending()
                return status, stopping or not waiting.isdisjoint((signal.SIGTERM, signal.SIGINT)), upgrading
            if pid == 0:
                break
        info = signal.sigwaitinfo({*FORWARDED_SIGNALS, UPGRADE_SIGNAL, signal.SIGCHLD})
        if info.si_signo == UPGRADE_SIGNAL:
            upgrading = True
        elif info.si_signo != signal.SIGCHLD:
            stopping |= _is_stop_signal(info.si_signo, terminal)
            if info.si_signo == signal.SIGHUP and terminal.is_outlived and terminal.is_gone():
                terminal.forget()  # the child must not take it for a request to reload
            # A signal from a terminal has reached the child as well, as it is in the same process group. SIGHUP may not
            # have: the kernel sends it to the leader of the session, which this process may be.
            elif info.si_code != 0x80 or info.si_signo == signal.SIGHUP:
                os.kill(child, info.si_signo)


def _is_stop_signal(signum: int, terminal: ControllingTerminal) -> bool:
    """Return whether the supervisor stops after this signal: see `core.service_signals`."""
    if signum == signal.SIGHUP:
        return terminal.is_gone() and not terminal.is_outlived
    return signum in (signal.SIGTERM, signal.SIGINT)


def _wait_for_stop_signal(delay: float, terminal: ControllingTerminal) -> bool:
    """Wait for `delay` seconds; return whether a signal to stop has arrived instead."""
    deadline = time.monotonic() + delay
    while (remaining := deadline - time.monotonic()) > 0:
        info = signal.sigtimedwait(FORWARDED_SIGNALS, remaining)
        if info is not None and _is_stop_signal(info.si_signo, terminal):
            return True
    return False


def _write_record(pid: int, code: int, delay: float) -> None:
    """Write a record to standard error: no other process can report this."""
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    name = signal.Signals(-code).name if code < 0 else ""
    outcome = f"by {name}" if name else f"it has failed, exit status {code}"
    record = {
        "timestamp": f"{seconds}.{int(now % 1 * 1_000_000):06}Z",
        "level": "critical",
        "event": "supervisor killed" if name else "supervisor failed",
        "message": f"{outcome}; it is started again in {delay:g} s, and takes over what runs",
        "pid": pid,
        **({"signal": name} if name else {"code": code}),
    }
    try:
        os.write(2, json.dumps(record).encode() + b"\n")
    except OSError:
        pass
