"""SIGUSR1: reopen the log files after another program, such as logrotate, has renamed them."""

import signal
from collections.abc import Iterable

import trio

from nsupervisor.logs import Journal, LogFile, run_in_thread
from nsupervisor.service.instance.actor import Actor

REOPEN = signal.SIGUSR1


async def reopen_on_signal(actors: Iterable[Actor], journal: Journal) -> None:
    """Reopen the log files of the journal and all workloads at each signal, which the caller has blocked until now."""
    with trio.open_signal_receiver(REOPEN) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [REOPEN])
        try:
            async with trio.open_nursery() as nursery:
                async for _ in signals:
                    nursery.start_soon(_reopen, actors, journal)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, [REOPEN])


async def _reopen(actors: Iterable[Actor], journal: Journal) -> None:
    """Reopen all files at once, so that a disk that does not answer delays only its own files."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_reopen_stream, journal)
        for actor in actors:
            for file in set(actor.output.files.values()):
                nursery.start_soon(_reopen_file, actor.name, file, journal)
    journal.log.info("logs reopened")


async def _reopen_stream(journal: Journal) -> None:
    try:
        await journal.reopen()
    except OSError as error:
        journal.log.error("log file", message=f"cannot reopen supervisor.log_output: {error}")


async def _reopen_file(name: str, file: LogFile, journal: Journal) -> None:
    try:
        await run_in_thread(file.path.parent, file.reopen)
    except OSError as error:
        journal.log.error("log file", workload=name, message=f"cannot reopen {error.filename}: {error}")
