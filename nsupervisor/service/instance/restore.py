"""Make the actor of an instance that an earlier supervisor ran, and attach the processes that were left to it.

There are three sources: the checkpoint, the keeper's table of its children, and the processes in the cgroup. If they
differ, the keeper is right about processes, because it is their parent; without the keeper, the kernel decides.
"""

from collections.abc import Callable, Sequence

from nsupervisor.cgroups import Cgroup
from nsupervisor.config.expansion import Instance
from nsupervisor.config.model import Resources, WorkloadConfig
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.core.phases import PHASES_BEFORE_PROGRAM
from nsupervisor.keeper.connection import KeeperConnection
from nsupervisor.keeper.messages import Child, Ended, Execed, Spawned
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.actor import Actor, generation_of
from nsupervisor.service.instance.mailbox import RetrySpawn
from nsupervisor.service.state.file import InstanceCheckpoint, ProcessRef


def restore_actor(
    saved: InstanceCheckpoint | None,
    children: Sequence[Child],
    name: str,
    configured: WorkloadConfig,
    workload: WorkloadConfig,
    instance: Instance | None,
    cgroup: Cgroup,
    context: ServiceContext,
    on_started: Callable[[], None],
    limits: Resources,
) -> Actor:
    """Make an actor from its checkpoint; the other arguments are those of `Actor`.

    children: the keeper's children of this name. Their descriptors are closed, or handed on. If the keeper does not
    have the present generation, `reattach` follows.
    """
    lifecycle = saved.lifecycle if saved is not None else Lifecycle()
    actor = Actor(name, configured, workload, instance, cgroup, context, on_started, limits, lifecycle)
    if saved is not None:
        actor.restore(saved)
    previous: Child | None = None
    for child in sorted(children, key=lambda child: generation_of(child.id)):
        _attach_child(actor, saved, child, previous)
        previous = child
    return actor


def _attach_child(actor: Actor, saved: InstanceCheckpoint | None, child: Child, previous: Child | None) -> None:
    """Attach a child of the keeper: of the saved generation, of an earlier one, or of one that was not saved yet.

    `previous` is the child of the generation before, if the keeper still has it.
    """
    number, before = generation_of(child.id), actor.lifecycle
    if number > before.generation:
        # The exit was received, but not recorded.
        if before.is_alive and before.exit is None and before.generation:
            _report_missed_exit(actor, previous)
        actor.adopt_generation(number, "taken over", assume_ready=saved is None and child.status is None)
        actor.program.forget_process()
    lifecycle = actor.lifecycle
    actor.output.expect(Spawned(child.id, child.pid, child.stdout, child.stderr))
    if child.id != actor.id or not lifecycle.is_alive or lifecycle.exit is not None:
        actor.output.begin(number, child.program_pid)
        actor.program.close(child.notify, child.readiness)
        return
    actor.cgroup.track(child.pid)
    if actor.program.attach_child(child, actor.workload, number, lifecycle.state is State.STARTING):
        actor.output.begin(number, child.program_pid)
    elif child.program_pid is not None:
        actor.post(Execed(child.id, child.program_pid))


def _report_missed_exit(actor: Actor, child: Child | None) -> None:
    """Report the exit of the current generation, since the next one has been started.

    If the keeper still has the child, it knows the exit status.
    """
    current = child if child is not None and child.id == actor.id else None
    if current is None or current.status is None:
        actor.report_exit(-1, current.failure if current else None)
    else:
        actor.report_exit(current.status, current.failure)


def adopt_found(actor: Actor, process: ProcessRef) -> None:
    """Adopt a program in the cgroup that neither a keeper nor a checkpoint knows; `reattach` follows."""
    reason = "taken over from a supervisor and a keeper that died"
    actor.adopt_generation(actor.lifecycle.generation + 1, reason, assume_ready=True)
    actor.program.expect_pipes(process.pipes)


async def reattach(actor: Actor, keeper: KeeperConnection, without_descriptors: bool) -> None:
    """Give a living generation to the present keeper, which does not know it, or find out how it ended.

    `without_descriptors`: this supervisor has none of its descriptors yet. If no process of it is found, its start is
    repeated; if its start has failed, there is none. Raises KeeperLost; the next keeper is then given all programs.
    """
    if actor.start_has_failed or actor.lifecycle.phase in PHASES_BEFORE_PROGRAM:
        return
    id_, generation, program = actor.id, actor.lifecycle.generation, actor.program
    is_starting, processes = actor.lifecycle.state is State.STARTING, actor.context.kernel.processes
    process = program.find(actor.cgroup)
    if process is None:
        actor.post(RetrySpawn(id_) if is_starting else Ended(id_, -1))
        return
    if program.process is None:
        program.attach_found(process, is_starting)
        if is_starting:
            actor.post(Execed(id_, process.program.pid))
    fds = program.open_descriptors(process, actor.cgroup)
    if without_descriptors:
        actor.output.expect(Spawned(id_, process.first.pid, *map(processes.duplicate, fds[1:])))
        if program.process is not None:
            actor.output.begin(generation, process.program.pid)
    try:
        pidfd = fds[0]
        is_running = processes.start_time(process.first.pid) == process.first.start_ticks
        if pidfd >= 0 and is_running and not processes.has_ended(pidfd):
            notify = program.notify_fd(actor.workload, actor.lifecycle, actor.cgroup, without_descriptors)
            first = process.first.pid, process.first.start_ticks
            if (readiness := program.open_readiness_pipe()) >= 0:
                fds.append(readiness)
            own = (*fds[:3], *([notify] if notify >= 0 else ()), *fds[3:])
            await keeper.adopt(id_, first, process.program.pid, own, readiness >= 0)
        else:
            status = processes.exit_status(pidfd, process.program.pid) if pidfd >= 0 else None
            actor.post(Ended(id_, -1 if status is None else status))
    finally:
        program.close(*fds)
