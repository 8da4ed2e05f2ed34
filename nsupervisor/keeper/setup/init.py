"""PID 1 of a workload's PID namespace: pass signals on, reap everybody, and tell how the program ended.

A process that is PID 1 ignores every signal that it has no handler for and inherits all orphans, which few programs
expect (pid_namespaces(7)). So this small process is PID 1, and the program is its child. It is a fork of the zygote and
changes little any more, so that most of its memory stays shared. Where it can be, small_init.py does the same without
Python; whoever changes the rules here changes them there.

Its first child is no program yet, but the forerunner of one (forerunner.py), and ends when the program has begun.
"""

from __future__ import annotations

import os
import signal
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from typing import NoReturn

SI_KERNEL = 0x80  # siginfo's si_code, sigaction(2)

STATUS = struct.Struct("i")

_SIGCHLD = int(signal.SIGCHLD)  # comparing with an enum's member would cost some pages
SIGNALS = tuple(int(number) for number in signal.valid_signals())
"""All of them; made in the keeper, once, because it costs a process that makes it much memory of its own."""


def run(program: int, exits: int, told: ctypes.Array[ctypes.c_uint32] | None = None) -> NoReturn:
    """Look after `program` (a pid in this namespace) until it ends; write its wait status to `exits`, which all inits
    share, and leave. The kernel adds who has written.

    With `told`, the pid is that of the program's forerunner, whose successor it tells of (keeper/native/handoff.py).

    All signals are blocked since before the fork, so none gets lost: one that came before there is a program waits, and
    what is blocked is queued even for a PID 1 without handlers. When this process leaves, the kernel kills the rest.

    All in one function: each further one that an init calls would cost each init some pages of its own.
    """
    pid, status = 0, 0
    if told is not None:
        pid, status = os.waitpid(-1, 0)  # the forerunner, or already the program
        program = told[0] or program  # without a successor, this is the end
    while pid != program:
        if pid == 0:
            info = signal.sigwaitinfo(SIGNALS)
            if info.si_signo != _SIGCHLD:
                if info.si_code != SI_KERNEL:  # what comes from a terminal has reached the program too
                    try:
                        # Not reaped yet, so the pid can't have become somebody else's.
                        os.kill(program, info.si_signo)
                    except PermissionError:  # it has become another user in a way that not even root may follow
                        pass
                continue
        pid, status = os.waitpid(-1, os.WNOHANG)
    try:
        os.write(exits, STATUS.pack(status))
    except OSError:  # the keeper is gone; who reaps this process learns something from its own code
        pass
    os.nice(19)  # what is still to be done, taking down the namespaces, may wait for those who react to the news
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
