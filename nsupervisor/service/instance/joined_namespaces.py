"""Open the namespaces that the program of an instance joins."""

import errno
from collections.abc import Mapping

import trio

from nsupervisor.config.kinds import JOIN_PATH, JOIN_WORKLOAD
from nsupervisor.logs import call_in_thread
from nsupervisor.service.context import ServiceContext

OPEN_TIMEOUT_S = 5.0
"""Seconds until a namespace behind a file must be open; a network file system may not answer."""


async def open_joined(joins: Mapping[str, str], context: ServiceContext) -> list[int]:
    """Open each namespace of `joins` (by kind, "workload:NAME" or "path:/FILE"); the caller closes the descriptors.

    A start waits for the workloads that it joins, but one of them may end at this instant. Then the start fails, and
    the next one waits for its next program. Raises OSError.
    """
    fds: list[int] = []
    try:
        for kind, source in joins.items():
            try:
                fds.append(await _open(kind, source, context))
            except OSError as error:
                raise OSError(f"cannot join the {kind} namespace of {source}: {error.strerror or error}") from None
    except BaseException:
        for fd in fds:
            context.kernel.processes.close(fd)
        raise
    return fds


async def _open(kind: str, source: str, context: ServiceContext) -> int:
    if source.startswith(JOIN_WORKLOAD):
        pidfd = context.find_pidfd(source.removeprefix(JOIN_WORKLOAD))
        if pidfd < 0:
            raise OSError(errno.ESRCH, "it does not run")
        return context.kernel.open_namespace_of(pidfd, kind)
    with trio.move_on_after(OPEN_TIMEOUT_S):
        path = source.removeprefix(JOIN_PATH)
        return await call_in_thread(context.kernel.open_namespace_file, path, kind, abandon_on_cancel=True)
    raise OSError(errno.ETIMEDOUT, f"no answer within {OPEN_TIMEOUT_S:g} s")
