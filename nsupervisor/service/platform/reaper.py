"""Reap orphans of other programs, for a supervisor that is process 1 of its PID namespace (in a container).

Process 1 inherits every process whose parent has ended (pid_namespaces(7)). Orphans of workloads fall to the keeper.
The others fall to this process, such as those of commands that are executed in the container; no other process reaps
them. Children that the service started itself and waits for are left alone (`nsupervisor.linux.children`).
"""

import os
import signal
from collections.abc import Callable

import trio

from nsupervisor.linux.children import is_expected

REAP_DELAY_S = 0.02
"""Seconds between two checks whether the status of an expected child has been collected."""


async def reap_orphans(exempt_pid: Callable[[], int]) -> None:
    """Reap orphans until cancelled if this is process 1; otherwise return at once.

    `exempt_pid` returns the pid of the keeper at the moment, a child whose status is not collected here.
    """
    if os.getpid() != 1:
        return
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        await reap_all(exempt_pid)  # those that ended before the signal receiver was open
        async for _ in signals:
            await reap_all(exempt_pid)


async def reap_all(exempt_pid: Callable[[], int]) -> None:
    """Reap all orphans that have ended.

    If an expected child is among the ended ones, those after it wait until its status has been collected; if it is the
    keeper, until there is a new one.
    """
    while True:
        reap(exempt_pid())
        if not _ended():
            return
        await trio.sleep(REAP_DELAY_S)


def reap(exempt_pid: int) -> list[int]:
    """Reap all ended children up to the exempt one or one that is expected; return their pids.

    The kernel reports the children after such a one only later. One signal may stand for several children.
    """
    reaped = []
    # Peek first (WNOWAIT), because waitid(2) cannot ask for "any child but this one".
    while (ended := _ended()) and ended != exempt_pid and not is_expected(ended):
        os.waitpid(ended, 0)
        reaped.append(ended)
    return reaped


def _ended() -> int:
    """Return the pid of a child that has ended and is not reaped; 0 if there is none."""
    try:
        seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return seen.si_pid if seen is not None else 0
