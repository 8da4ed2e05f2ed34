"""Exit statuses, messages and the cache of the virtual machine."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

CACHE = Path(os.environ.get("NSUPERVISOR_VM_CACHE", "/var/cache/nsupervisor-vm"))
"""Holds the unpacked kernel and the directories of running machines; may be deleted when none runs."""

FAILED = 125
"""Exit status when the machine could not be prepared, did not boot, or died."""

PR_SET_PDEATHSIG = 1

TIMED_OUT = 124
"""Exit status after the command's time limit."""


def say(message: str) -> None:
    """Write a line about the machine itself (not the command's) to stderr."""
    print(f"vm: {message}", file=sys.stderr, flush=True)


class MachineError(Exception):
    """A machine cannot be started; the text gives the reason."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command of the preparation and return its output. Raises MachineError with its last lines if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    if done.returncode:
        raise MachineError(f"{' '.join(map(str, command))}: exit status {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a process that has not been waited for has ended.

    Not by `poll`: a signal handler that raises an exception at the wrong moment leaves its lock locked, and the next
    `wait` waits forever.
    """
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def die_with_parent(signum: signal.Signals) -> Callable[[], None]:
    """Return a preexec_fn: the child gets `signum` when this process has ended, even by SIGKILL.

    The signal is kept across execve(2) of ordinary programs; prctl(2), PR_SET_PDEATHSIG.
    """
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return arm
