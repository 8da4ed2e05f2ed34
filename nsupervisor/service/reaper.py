"""Reaping strangers, for a supervisor that is process 1 of its PID namespace (a container's first process).

Process 1 inherits every process whose parent has gone (pid_namespaces(7)). Orphans of workloads fall to the keeper.
What falls to us are those of others, such as of commands that somebody runs in the container; nobody else reaps them.
What we have started ourselves, and wait for, is left alone (`nsupervisor.linux.children`).
"""

import os
import signal
from collections.abc import Callable

import trio

from nsupervisor.linux.children import spoken_for

SOON = 0.02
"""Seconds between two looks at whether the status of a child of our own has been taken."""


async def reap_strangers(spared: Callable[[], int]) -> None:
    """For ever, if this is process 1; else returns at once. ``spared`` says who our own child is at the moment, the
    keeper: its status is not taken."""
    if os.getpid() != 1:
        return
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        await reap_all(spared)  # those that ended before we listened
        async for _ in signals:
            await reap_all(spared)


async def reap_all(spared: Callable[[], int]) -> None:
    """Reap all strangers that have ended. Where a child of our own is among the dead, those behind it have to wait
    until its status has been taken; where it is the keeper, until there is a new one."""
    while True:
        reap(spared())
        if not _ended():
            return
        await trio.sleep(SOON)


def reap(spared: int) -> list[int]:
    """Reap all children that have ended, but not ``spared``, nor one that somebody waits for, nor those that the kernel
    tells of after it; their pids. One signal may stand for many of them."""
    reaped = []
    # Look first (WNOWAIT), because there is no way to ask for "any but this one".
    while (ended := _ended()) and ended != spared and not spoken_for(ended):
        os.waitpid(ended, 0)
        reaped.append(ended)
    return reaped


def _ended() -> int:
    """A child that has ended and is not reaped; 0 where there is none."""
    try:
        seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    return seen.si_pid if seen is not None else 0
