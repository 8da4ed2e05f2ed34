"""Take over running programs: at the start from a supervisor that died, and later from a keeper that died.

There are two sources. The keeper's table, if the keeper lives, holds the processes and their pipes. The state file of
an earlier supervisor (`nsupervisor.service.state.file.file`) holds what they mean: the generation, the requested state,
the back-off, the rules. If the two differ, the keeper is right about processes, because it is their parent. If the
keeper is dead, the kernel decides: a process is the saved one if it has the same pid and the same start time and is in
the cgroup. Its exit is then reported by its pidfd (`nsupervisor.linux.processes`), and its pipes are opened again.
"""

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import attrs
import trio

from nsupervisor.cgroups import Cgroup
from nsupervisor.config.model import WorkloadConfig
from nsupervisor.core import events
from nsupervisor.core.actions import FreezeAll, KillAll, Signal, ThawAll
from nsupervisor.core.lifecycle import AfterStop, State
from nsupervisor.keeper import reconnecting
from nsupervisor.keeper.connection import KeeperConnection
from nsupervisor.keeper.messages import Child, Ended, Execed, KeeperLost, Spawned
from nsupervisor.logs import Journal
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.mailbox import RetrySpawn
from nsupervisor.service.instance.readiness import host_owner
from nsupervisor.service.instance.spawn_spec import spawn_spec
from nsupervisor.service.kernel import Processes
from nsupervisor.service.state.checkpoint import matches_spawn, restore_rules
from nsupervisor.service.state.file import InstanceCheckpoint, Process, ProcessRef, SavedState

_OWN_PROCESS_PREFIX = "nsupervisor-"
"""Prefix of the names of the service's own processes: `linux.syscalls.set_process_name`."""


# ---- at the start of the supervisor


def restore_actor(actor: Actor, checkpoint: InstanceCheckpoint | None, children: Sequence[Child]) -> None:
    """Restore an actor that has not run yet from its checkpoint and the keeper's children of its name.

    Closes the descriptors of the children, or hands them on.
    """
    if checkpoint is not None:
        state = actor.decisions.state
        engine = restore_rules(state.engine, checkpoint.rules)
        actor.decisions.state = attrs.evolve(state, lifecycle=checkpoint.lifecycle, engine=engine)
        actor.last_exit = checkpoint.last_exit
        actor.checkpoint.oom_kills = checkpoint.oom_kills
        actor.checkpoint.spawn_digest, actor.checkpoint.environment_digest = (
            checkpoint.spawn_digest,
            checkpoint.environment_digest,
        )
        actor.checkpoint.has_unfinished_actions = checkpoint.has_unfinished_actions
        actor.cgroup.was_killed = checkpoint.recreate_cgroup
        if checkpoint.process is not None and checkpoint.lifecycle.is_alive:
            actor.pid = checkpoint.process.program.pid
            actor.checkpoint.process = checkpoint.process
            actor.checkpoint.pidfd = actor.context.kernel.processes.open_pidfd(
                checkpoint.process.program.pid, checkpoint.process.program.start_ticks
            )
            actor.checkpoint.pipe_inodes = checkpoint.process.pipes
        over = checkpoint.lifecycle.generation + (
            checkpoint.lifecycle.exit is not None or not checkpoint.lifecycle.is_alive
        )
        # Exits of the other generations are reported by the keeper.
        actor.exit_reports.redeliver(tuple(end for end in checkpoint.undelivered if end.generation < over))
    before: Child | None = None
    for child in sorted(children, key=lambda child: generation_of(child.id)):
        _attach_child(actor, child, checkpoint, before)
        before = child
    if checkpoint is not None or children:
        actor.recovery_step = partial(_recover, actor, checkpoint)


def _attach_child(actor: Actor, child: Child, checkpoint: InstanceCheckpoint | None, previous: Child | None) -> None:
    """Attach a child of the keeper: of the saved generation, of an earlier one, or of one that was not saved yet.

    `previous` is the child of the generation before, if the keeper still has it.
    """
    number, lifecycle = generation_of(child.id), actor.lifecycle
    if number > lifecycle.generation:
        # The exit was received, but not recorded.
        if lifecycle.is_alive and lifecycle.exit is None and lifecycle.generation:
            _report_missed_exit(actor, previous)
        _adopt_unrecorded_generation(actor, number, "taken over")
        actor.checkpoint.program_ended()
        if checkpoint is None and actor.workload.type == "notify" and child.status is None:
            actor.post(events.Ready(number))  # its readiness is unknown, and it will not be reported again
    current = child.id == actor.id
    actor.output.expect(Spawned(child.id, child.pid, child.stdout, child.stderr))
    if not current or not actor.lifecycle.is_alive or actor.lifecycle.exit is not None:
        actor.output.begin(number, child.program_pid)
        _close_fd(actor, child.notify)
        return
    actor.pid = child.program_pid or child.pid
    pipe_inode = actor.context.kernel.processes.pipe_inode
    actor.checkpoint.pipe_inodes = pipe_inode(child.stdout), pipe_inode(child.stderr)
    if child.notify >= 0 and child.status is None:
        actor.open_notify_socket(fd=child.notify)
    else:
        _close_fd(actor, child.notify)
    if child.program_pid is None:
        actor.checkpoint.program_ended()
    elif child.status is None and (actor.lifecycle.state is State.STARTING or actor.checkpoint.process is None):
        actor.pid = child.pid
        actor.checkpoint.program_ended()
        actor.post(Execed(child.id, child.program_pid))
    else:
        actor.output.begin(number, child.program_pid)


def _adopt_unrecorded_generation(actor: Actor, generation: int, reason: str) -> None:
    """Create the lifecycle of a generation that was started but not saved; its start must have been requested."""
    lifecycle, now = actor.lifecycle, trio.current_time()
    timeout = actor.workload.timeout_start_sec
    lifecycle = attrs.evolve(
        lifecycle,
        state=State.STARTING,
        reason=reason,
        should_run=True,
        generation=generation,
        deadline=now + timeout if 0 < timeout < float("inf") else None,
        after_stop=AfterStop.POLICY,
        sigkill_sent=False,
        exit=None,
        fault_outcome=None,
        freeze_requested_by="",
        started_at=now,
        recent_starts=(*lifecycle.recent_starts, now),
    )
    actor.decisions.state = attrs.evolve(actor.decisions.state, lifecycle=lifecycle)


def _report_missed_exit(actor: Actor, child: Child | None) -> None:
    """Report the exit of the current generation, since the next one has been started.

    If the keeper still has the child, it knows the exit status.
    """
    current = child if child is not None and child.id == actor.id else None
    if current is None or current.status is None:
        actor.report_exit(-1, current.failure if current else None)
    else:
        actor.report_exit(current.status, current.failure)


async def _recover(actor: Actor, checkpoint: InstanceCheckpoint | None) -> None:
    """Complete what an earlier supervisor decided but may not have carried out, before anything else."""
    lifecycle = actor.lifecycle
    if actor.pid is not None and lifecycle.state is not State.STARTING:
        actor.policy.started_at = lifecycle.started_at
    actor.policy.resume_sampling()
    actor.policy.read_counters()  # changes since the latest sample count as changes, not as the base line
    await actor.policy.run_pending()
    if actor.lifecycle is not lifecycle or not lifecycle.is_alive:
        actor.checkpoint.has_unfinished_actions = False
        actor.save_checkpoint()
        return
    if (
        checkpoint is not None
        and checkpoint.has_unfinished_actions
        and checkpoint.lifecycle.generation == lifecycle.generation
    ):
        match lifecycle.state:
            case State.STOPPING if lifecycle.sigkill_sent:
                await actor.perform(KillAll())
            case State.STOPPING:
                await actor.perform(Signal(actor.workload.kill_signal, whole_cgroup=lifecycle.exit is not None))
            case State.FROZEN:
                await actor.perform(FreezeAll())
            case State.RUNNING | State.READY:
                await actor.perform(ThawAll())
    actor.checkpoint.has_unfinished_actions = False
    actor.save_checkpoint()
    if lifecycle.exit is not None and not actor.is_populated():
        actor.post(events.Emptied(lifecycle.generation))
    if checkpoint is not None and checkpoint.spawn_digest and lifecycle.state is not State.STOPPING:
        _warn_if_outdated(actor)


def _warn_if_outdated(actor: Actor) -> None:
    actor.checkpoint.is_outdated = not matches_spawn(actor, actor.workload)
    if actor.checkpoint.is_outdated:
        text = "its configuration has changed since it was started; restart it to apply the change"
        actor.log.write(actor.lifecycle.generation, "warning", "warning", message=text)


def group_by_instance(children: Iterable[Child]) -> Mapping[str, list[Child]]:
    """Return the keeper's children by the names of their instances."""
    by_instance: dict[str, list[Child]] = defaultdict(list)
    for child in children:
        by_instance[child.id.rpartition("#")[0]].append(child)
    return by_instance


def placeholder_workload(name: str, checkpoint: InstanceCheckpoint | None) -> WorkloadConfig:
    """Return a placeholder for a workload that the configuration no longer has, with what an orderly stop needs."""
    checkpoint = checkpoint or InstanceCheckpoint()
    return WorkloadConfig(
        name=name.partition("@")[0],
        command=("true",),
        restart="no",
        kill_signal=checkpoint.kill_signal,
        timeout_stop_sec=checkpoint.timeout_stop_sec,
    )


async def take_over(
    actors: Mapping[str, Actor],
    saved: SavedState,
    children: Mapping[str, Sequence[Child]],
    context: ServiceContext,
    orphans: str,
) -> int:
    """Restore each actor from what an earlier supervisor left, before any actor runs; return the number that live."""
    records, keeper = saved.instances, context.keeper
    for name, actor in actors.items():
        record, own = records.get(name), children.get(name, ())
        restore_actor(actor, record, own)
        lifecycle = actor.lifecycle
        if lifecycle.is_alive and lifecycle.exit is None and actor.id not in {child.id for child in own}:
            await _reattach_without_descriptors(actor, keeper.direct)
        elif not lifecycle.is_alive and actor.cgroup.is_populated():
            await handle_orphans(actor, keeper.direct, orphans)
    if records or children:
        changed, same = {}, {}
        for name, actor in actors.items():
            before = records.get(name)
            now = actor.checkpoint.to_checkpoint(actor)
            if now == before:
                same[name] = saved.lines[name]
            else:
                changed[name] = now
        context.state.write_all(changed, same)
    for actor in actors.values():
        actor.exit_reports.release()
    keeper.release_waiters()
    return sum(actor.lifecycle.is_alive for actor in actors.values())


# ---- without the keeper that started the program


async def _reattach_without_descriptors(actor: Actor, keeper: KeeperConnection) -> None:
    """Reattach at the start; if the keeper is lost, its replacement is later given all programs."""
    with suppress(KeeperLost):
        await reattach(actor, keeper, without_descriptors=True)


async def reattach(actor: Actor, keeper: KeeperConnection, without_descriptors: bool) -> None:
    """Give a living generation to the present keeper, which does not know it, or find out how it ended.

    `without_descriptors`: this supervisor has none of its descriptors yet. If no process of it is found, its start is
    repeated.
    """
    checkpoint, id_, processes = actor.checkpoint, actor.id, actor.context.kernel.processes
    process = checkpoint.process or find_program(actor.cgroup, processes, checkpoint.pipe_inodes)
    if process is None:
        actor.post(RetrySpawn() if actor.lifecycle.state is State.STARTING else Ended(id_, -1))
        return
    if checkpoint.process is None:
        checkpoint.process, actor.pid = process, process.first.pid
        if actor.lifecycle.state is State.STARTING:
            checkpoint.process = None  # until the report that the program runs
            actor.post(Execed(id_, process.program.pid))
        checkpoint.pidfd = processes.open_pidfd(process.program.pid, process.program.start_ticks)
    members = [process.program.pid, *actor.cgroup.pids()]
    program = processes.duplicate(checkpoint.pidfd) if checkpoint.pidfd >= 0 else -1
    is_running = processes.start_time(process.first.pid) == process.first.start_ticks
    pipes = [processes.open_pipe(inode, members) if inode else -1 for inode in process.pipes]
    fds = [program, *(fd if fd >= 0 else processes.open_ended_pipe() for fd in pipes)]
    if without_descriptors:
        actor.output.expect(Spawned(id_, process.first.pid, *map(processes.duplicate, fds[1:])))
        if checkpoint.process is not None:
            actor.output.begin(actor.lifecycle.generation, process.program.pid)
    try:
        if program >= 0 and is_running and not processes.has_ended(program):
            notify = (
                actor.open_notify_socket(_notify_owner(actor), again=True)[0]
                if without_descriptors and actor.workload.uses_notify_socket
                else actor.notify_fd
            )
            first = process.first.pid, process.first.start_ticks
            await keeper.adopt(id_, first, process.program.pid, [*fds, *([notify] if notify >= 0 else ())])
        else:
            status = processes.exit_status(program, process.program.pid) if program >= 0 else None
            actor.post(Ended(id_, -1 if status is None else status))
    finally:
        for fd in fds:
            _close_fd(actor, fd)


def find_program(cgroup: Cgroup, processes: Processes, pipes: tuple[int, int] = (0, 0)) -> ProcessRef | None:
    """Find the program in a cgroup: the oldest process whose parent is outside.

    None if the cgroup is empty, or if the set-up is not complete, so that the process is still one of the service.
    """
    members = cgroup.pids()
    roots = []
    for pid in members:
        started, parent = processes.start_time(pid), processes.parent_pid(pid)
        if started is not None and parent is not None and parent not in members:
            roots.append((started, pid, parent))
    if not roots:
        return None
    started, pid, parent = min(roots)
    if processes.command_name(pid).startswith(_OWN_PROCESS_PREFIX):
        return None
    program = first = Process(pid, started)
    if (
        processes.command_name(parent).startswith(f"{_OWN_PROCESS_PREFIX}ini")
        and (begun := processes.start_time(parent)) is not None
    ):
        first = Process(parent, begun)
    if not any(pipes):
        pipes = processes.read_write_pipe_inode(pid, 1), processes.read_write_pipe_inode(pid, 2)
    return ProcessRef(first, program, pipes)


async def handle_orphans(actor: Actor, keeper: KeeperConnection, policy: str) -> None:
    """Handle processes in the cgroup of a workload that has no known generation, as [supervisor] orphans says."""
    cgroup, say = actor.cgroup, partial(actor.log.write, actor.lifecycle.generation)
    pids = cgroup.pids()
    process = find_program(cgroup, actor.context.kernel.processes)
    problem = f"its cgroup {cgroup.path} has processes of which nothing is known"
    if policy == "adopt" and process is not None:
        _adopt_unrecorded_generation(
            actor, actor.lifecycle.generation + 1, "taken over from a supervisor and a keeper that died"
        )
        actor.checkpoint.pipe_inodes = process.pipes
        if actor.workload.type == "notify":
            actor.post(events.Ready(actor.lifecycle.generation))
        actor.recovery_step = actor.recovery_step or partial(_recover, actor, None)
        say("orphans", "warning", message=f'{problem}: adopted, as orphans = "adopt" says', pids=pids[:10])
        await _reattach_without_descriptors(actor, keeper)
    elif policy == "leave":
        text = f'{problem}: left alone, as orphans = "leave" says, so it cannot start; end them, or set orphans'
        say("orphans", "error", message=text, pids=pids[:10])
    else:
        say("orphans", "warning", message=f"{problem}: killed", pids=pids[:10])
        cgroup.kill()
        with trio.move_on_after(actor.workload.timeout_stop_sec):
            while cgroup.is_populated():  # noqa: ASYNC110 - briefly
                await trio.sleep(0.005)


def _notify_owner(actor: Actor) -> tuple[int, int] | None:
    return host_owner(
        spawn_spec(
            actor.workload,
            actor.name,
            actor.instance,
            actor.lifecycle.generation,
            actor.cgroup,
            actor.context.runtime_directory,
        )
    )


def _close_fd(actor: Actor, fd: int) -> None:
    if fd >= 0:
        actor.context.kernel.processes.close(fd)


def generation_of(id_: str) -> int:
    """Return the generation in an id: "web#3" → 3."""
    return int(id_.rpartition("#")[2])


async def hand_over_to_keeper(actors: Iterable[Actor], keeper: reconnecting.ReconnectingKeeper) -> int:
    """Give the present keeper the programs that it does not know, after a loss; return the number that live."""
    # Without descriptors: this supervisor has them already, and for thousands of programs twice as many may be too
    # many.
    children = {child.id: child for child in await keeper.children(without_descriptors=True)}
    alive_count = 0
    for actor in actors:
        if not actor.lifecycle.is_alive or actor.is_spawning or actor.lifecycle.exit is not None:
            continue
        alive_count += 1
        child = children.pop(actor.id, None)
        if child is None:
            await reattach(actor, keeper.direct, without_descriptors=False)
            continue
        if child.program_pid is not None and actor.checkpoint.process is None:
            actor.post(Execed(child.id, child.program_pid))
    keeper.release_waiters(await keeper.children(list(children)) if children else ())
    return alive_count


async def follow_keeper(
    keeper: reconnecting.ReconnectingKeeper,
    actors: Mapping[str, Actor],
    journal: Journal,
    on_replaced: Callable[[int], None],
) -> NoReturn:
    """Pass each report of the keeper to its actor; connect to a new keeper when one is lost.

    `on_replaced` is called with the pid of each further keeper, when it has all programs.
    """
    log = journal.log
    while True:
        async for report in keeper.events():
            actor = actors.get(report.id.rpartition("#")[0])
            if actor is not None:
                actor.post(report)
            elif isinstance(report, Ended):
                with suppress(KeeperLost):  # then the next keeper does not know the child
                    await keeper.direct.acknowledge(report.id)
        lost, expected = keeper.pid, keeper.expected
        if not expected:
            log.critical("keeper lost", message="the programs run on; a new keeper takes them over", pid=lost)
        try:
            await _replace(keeper, log, expected)
            alive_count = await hand_over_to_keeper(actors.values(), keeper)
        except KeeperLost:
            continue
        on_replaced(keeper.pid)
        event = "keeper upgraded" if expected and keeper.pid == lost else "keeper replaced"
        log.warning(event, message=f"{alive_count} programs are in its hands", pid=keeper.pid)


async def _replace(keeper: reconnecting.ReconnectingKeeper, log: Any, expected: bool) -> None:
    for delay in itertools.chain(
        reconnecting.RECONNECT_DELAYS_S, itertools.repeat(reconnecting.RECONNECT_DELAYS_S[-1])
    ):
        await trio.sleep(delay)
        try:
            await keeper.connect()
            return
        except (KeeperLost, OSError) as error:
            log.critical("no keeper", message=f"{error}; trying again")
            if expected:  # the new version was executed but does not come up; it is our child, or adopted
                with suppress(ProcessLookupError):
                    os.kill(keeper.pid, signal.SIGKILL)
