"""Signals that this process was started to ignore. Standard library only.

execve(2) keeps an ignored signal ignored, and turns one with a handler back to its default action. So a handler that
does nothing ignores a signal for this process alone, and not for the commands that it executes.
"""

from __future__ import annotations

import signal

_SIGNALS = signal.valid_signals() - {
    *(signal.SIGKILL, signal.SIGSTOP),
    *(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores these itself, and `subprocess` restores them
    *(
        signal.SIGTTIN,
        signal.SIGTTOU,
    ),  # if they are ignored, reads and writes of a terminal go on; a handler stops them
}


def _do_nothing(_signum: int, _frame: object) -> None:
    pass


def ignore_for_this_process_alone() -> None:
    """Put a handler in the place of each ignored signal. Call it in the main thread."""
    for signum in _SIGNALS:
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, _do_nothing)


def ignore_again() -> None:
    """Before this process executes itself: ignore these signals as at its start."""
    for signum in _SIGNALS:
        if signal.getsignal(signum) is _do_nothing:
            signal.signal(signum, signal.SIG_IGN)
