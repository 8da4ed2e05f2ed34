"""SIGUSR1: log files were renamed by somebody, such as logrotate, and are to be made anew."""

import signal
from collections.abc import Iterable

import trio

from nsupervisor.logs import Journal
from nsupervisor.service.actor import Actor

REOPEN = signal.SIGUSR1


async def reopen_on_signal(actors: Iterable[Actor], journal: Journal) -> None:
    """Reopen the stream's file and those of all workloads at each signal; the caller has blocked it until now."""
    with trio.open_signal_receiver(REOPEN) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [REOPEN])
        try:
            async for _ in signals:
                await _reopen(actors, journal)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, [REOPEN])


async def _reopen(actors: Iterable[Actor], journal: Journal) -> None:
    try:
        journal.reopen()
    except OSError as error:
        journal.log.error("log file", message=f"cannot reopen supervisor.log_output: {error}")
    for actor in actors:
        if actor.output.file is None:
            continue
        try:
            await trio.to_thread.run_sync(actor.output.file.reopen, abandon_on_cancel=True)
        except OSError as error:
            journal.log.error("log file", workload=actor.name, message=f"cannot reopen {error.filename}: {error}")
    journal.log.info("logs reopened")
