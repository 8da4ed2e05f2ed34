"""Open the namespaces that the program of an instance joins."""

import errno

import trio

from nsupervisor.config.kinds import JOIN_PATH, JOIN_WORKLOAD
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core.cni import NetworkError
from nsupervisor.logs import call_in_thread
from nsupervisor.service.context import ServiceContext

OPEN_TIMEOUT_S = 5.0
"""Seconds until a namespace behind a file must be open; a network file system may not answer."""


async def open_joined(instance: str, workload: WorkloadConfig, context: ServiceContext) -> list[int]:
    """Open each namespace of `NamespacesConfig.joined`, and have its network set up; the caller closes the descriptors.

    A start waits for the workloads that it joins, but one of them may end at this instant. Then the start fails, and
    the next one waits for its next program. Raises OSError.
    """
    fds: list[int] = []
    try:
        for kind, source in workload.namespaces.joined.items():
            try:
                fds.append(await _open(instance, workload, kind, source, context))
            except NetworkError as error:
                raise OSError(str(error)) from None
            except OSError as error:
                raise OSError(f"cannot join the {kind} namespace of {source}: {error.strerror or error}") from None
    except BaseException:
        for fd in fds:
            context.kernel.processes.close(fd)
        raise
    return fds


async def _open(instance: str, workload: WorkloadConfig, kind: str, source: str, context: ServiceContext) -> int:
    if name := workload.namespaces.cni_network if kind == "network" else "":
        keys = workload.network
        namespace = await context.networks.attach(instance, name, keys.publish, keys.bandwidth_max)
        return context.kernel.processes.duplicate(namespace)
    if source.startswith(JOIN_WORKLOAD):
        pidfd = context.find_pidfd(source.removeprefix(JOIN_WORKLOAD))
        if pidfd < 0:
            raise OSError(errno.ESRCH, "it does not run")
        return context.kernel.open_namespace_of(pidfd, kind)
    with trio.move_on_after(OPEN_TIMEOUT_S):
        path = source.removeprefix(JOIN_PATH)
        return await call_in_thread(context.kernel.open_namespace_file, path, kind, abandon_on_cancel=True)
    raise OSError(errno.ETIMEDOUT, f"no answer within {OPEN_TIMEOUT_S:g} s")
