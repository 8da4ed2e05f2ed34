"""PID 1 of a workload's PID namespace: pass signals on, reap everybody, and tell how the program ended.

A process that is PID 1 ignores every signal that it has no handler for and inherits all orphans, which few programs
expect (pid_namespaces(7)). So this small process is PID 1, and the program is its child. It is a fork of the keeper and
changes next to nothing any more, so that almost all of its memory stays shared with the keeper.
"""

from __future__ import annotations

import os
import signal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

SI_KERNEL = 0x80  # siginfo's si_code, sigaction(2)

STATUS = struct.Struct("i")

SIGNALS = tuple(int(number) for number in signal.valid_signals())
"""All of them; made in the keeper, once, because it costs a process that makes it much memory of its own."""


def run(program: int, exits: int) -> NoReturn:
    """Look after `program` (a pid in this namespace) until it ends; write its wait status to `exits`, and leave.

    All signals are blocked since before the fork, so none gets lost: one that came before this loop waits here, and
    what is blocked is queued even for a PID 1 without handlers. When this process leaves, the kernel kills the rest.
    """
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGCHLD:
            _reap(program, exits)
        elif info.si_code != SI_KERNEL:  # what comes from a terminal has reached the program too
            try:
                # Not reaped yet, so the pid can't have become somebody else's.
                os.kill(program, info.si_signo)
            except PermissionError:  # the program has become another user in a way that not even root may follow
                pass


def _reap(program: int, exits: int) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:  # not before the program has been reaped
            return
        if pid == 0:
            return
        if pid == program:
            try:
                os.write(exits, STATUS.pack(status))
            except BrokenPipeError:  # the keeper is gone; who reaps this process learns something from its own code
                pass
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
