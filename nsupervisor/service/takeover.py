"""Take over running programs: at the start from a supervisor that died, and later from a keeper that died.

There are two sources. The keeper's table, if the keeper lives, holds the processes and their pipes. The state file of
an earlier supervisor (`nsupervisor.service.state.file`) holds what they mean: the generation, the requested state, the
back-off, the rules. If the two differ, the keeper is right about processes, because it is their parent. If the keeper
is dead, the kernel decides: a process is the saved one if it has the same pid and the same start time and is in the
cgroup. Its exit is then reported by its pidfd (`nsupervisor.linux.processes`), and its pipes are opened again.
"""

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import trio

from nsupervisor.cgroups import Cgroup, Tree
from nsupervisor.config.model import Workload
from nsupervisor.core import events
from nsupervisor.core.actions import FreezeAll, KillAll, Signal, ThawAll
from nsupervisor.core.lifecycle import State, Then
from nsupervisor.keeper.client import Keeper
from nsupervisor.keeper.told import Child, Ended, Execed, KeeperLost, Spawned
from nsupervisor.linux import processes
from nsupervisor.service import kept
from nsupervisor.service.actor import Actor
from nsupervisor.service.mailbox import Again
from nsupervisor.service.notify import host_owner
from nsupervisor.service.spec import spawn_spec
from nsupervisor.service.state import Body, Found, Process, Record
from nsupervisor.service.trail import fits, recalled
from nsupervisor.service.world import World

if TYPE_CHECKING:
    from nsupervisor.service.supervisor import Supervisor

_OURS = "nsupervisor-"
"""Prefix of the names of the service's own processes: `linux.syscalls.set_process_name`."""


# ---- at the start of the supervisor


def resume(actor: Actor, record: Record | None, children: Sequence[Child]) -> None:
    """Restore an actor that has not run yet from its checkpoint and the keeper's children of its name.

    Closes the descriptors of the children, or hands them on.
    """
    if record is not None:
        mind = actor.thinker.mind
        engine = recalled(mind.engine, record.rules)
        actor.thinker.mind = attrs.evolve(mind, life=record.life, engine=engine)
        actor.last_exit = record.last_exit
        actor.trail.oom_kills = record.oom_kills
        actor.trail.print, actor.trail.files = record.print, record.files
        actor.trail.acting = record.acting
        actor.cgroup.killed = record.renew
        if record.body is not None and record.life.alive:
            actor.pid = record.body.program.pid
            actor.trail.body = record.body
            actor.trail.pin = processes.pin(record.body.program.pid, record.body.program.started)
            actor.trail.pipes = record.body.pipes
        over = record.life.generation + (record.life.exit is not None or not record.life.alive)
        # Exits of the other generations are reported by the keeper.
        actor.ends.say_again(tuple(end for end in record.untold if end.generation < over))
    before: Child | None = None
    for child in sorted(children, key=lambda child: generation(child.id)):
        _attach(actor, child, record, before)
        before = child
    if record is not None or children:
        actor.catch_up = partial(_catch_up, actor, record)


def _attach(actor: Actor, child: Child, record: Record | None, before: Child | None) -> None:
    """Attach a child of the keeper: of the saved generation, of an earlier one, or of one that was not saved yet.

    `previous` is the child of the generation before, if the keeper still has it.
    """
    number, life = generation(child.id), actor.life
    if number > life.generation:
        if life.alive and life.exit is None and life.generation:  # its exit was received, but not recorded
            _tell_end(actor, before)
        _begin_unknown(actor, number, "taken over")
        actor.trail.end()
        if record is None and actor.workload.type == "notify" and child.status is None:
            actor.post(events.Ready(number))  # its readiness is unknown, and it will not be reported again
    current = child.id == actor.id
    actor.output.expect(Spawned(child.id, child.pid, child.stdout, child.stderr))
    if not current or not actor.life.alive or actor.life.exit is not None:
        actor.output.begin(number, child.program)
        _close(child.notify)
        return
    actor.pid = child.program or child.pid
    actor.trail.pipes = processes.inode(child.stdout), processes.inode(child.stderr)
    if child.notify >= 0 and child.status is None:
        actor.listen(fd=child.notify)
    else:
        _close(child.notify)
    if child.program is None:
        actor.trail.end()
    elif child.status is None and (actor.life.state is State.STARTING or actor.trail.body is None):
        actor.pid = child.pid
        actor.trail.end()
        actor.post(Execed(child.id, child.program))
    else:
        actor.output.begin(number, child.program)


def _begin_unknown(actor: Actor, number: int, reason: str) -> None:
    """Create the lifecycle of a generation that was started but not saved; its start must have been requested."""
    life, now = actor.life, trio.current_time()
    timeout = actor.workload.timeout_start_sec
    life = attrs.evolve(
        life,
        state=State.STARTING,
        reason=reason,
        wanted=True,
        generation=number,
        deadline=now + timeout if 0 < timeout < float("inf") else None,
        then=Then.DECIDE,
        killed=False,
        exit=None,
        fault=None,
        to_freeze="",
        started_at=now,
        starts=(*life.starts, now),
    )
    actor.thinker.mind = attrs.evolve(actor.thinker.mind, life=life)


def _tell_end(actor: Actor, child: Child | None) -> None:
    """Report the exit of the current generation, since the next one has been started.

    If the keeper still has the child, it knows the exit status.
    """
    current = child if child is not None and child.id == actor.id else None
    if current is None or current.status is None:
        actor.say_end(-1, current.failure if current else None)
    else:
        actor.say_end(current.status, current.failure)


async def _catch_up(actor: Actor, record: Record | None) -> None:
    """Complete what an earlier supervisor decided but may not have carried out, before anything else."""
    life = actor.life
    if actor.pid is not None and life.state is not State.STARTING:
        actor.judge.started_at = life.started_at
    actor.judge.resume()
    actor.judge.look_at_counters()  # changes since the latest sample count as changes, not as the base line
    await actor.judge.carry_out()
    if actor.life is not life or not life.alive:
        actor.trail.acting = False
        actor.remember()
        return
    if record is not None and record.acting and record.life.generation == life.generation:
        match life.state:
            case State.STOPPING if life.killed:
                await actor.do(KillAll())
            case State.STOPPING:
                await actor.do(Signal(actor.workload.kill_signal, everyone=life.exit is not None))
            case State.FROZEN:
                await actor.do(FreezeAll())
            case State.RUNNING | State.READY:
                await actor.do(ThawAll())
    actor.trail.acting = False
    actor.remember()
    if life.exit is not None and not actor.populated():
        actor.post(events.Emptied(life.generation))
    if record is not None and record.print and life.state is not State.STOPPING:
        _say_if_changed(actor)


def _say_if_changed(actor: Actor) -> None:
    actor.trail.outdated = not fits(actor, actor.workload)
    if actor.trail.outdated:
        text = "its configuration has changed since it was started; restart it to apply the change"
        actor.voice.say(actor.life.generation, "warning", "warning", message=text)


def by_name(children: Iterable[Child]) -> Mapping[str, list[Child]]:
    """Return the keeper's children by the names of their instances."""
    by_instance: dict[str, list[Child]] = defaultdict(list)
    for child in children:
        by_instance[child.id.rpartition("#")[0]].append(child)
    return by_instance


def removed(name: str, record: Record | None) -> Workload:
    """Return a placeholder for a workload that the configuration no longer has, with what an orderly stop needs."""
    record = record or Record()
    return Workload(
        name=name.partition("@")[0],
        command=("true",),
        restart="no",
        kill_signal=record.kill_signal,
        timeout_stop_sec=record.timeout_stop_sec,
    )


async def take_over(
    actors: Mapping[str, Actor],
    found: Found,
    children: Mapping[str, Sequence[Child]],
    world: World,
    orphans: str,
) -> int:
    """Restore each actor from what an earlier supervisor left, before any actor runs; return the number that live."""
    records, keeper = found.records, world.keeper
    for name, actor in actors.items():
        record, own = records.get(name), children.get(name, ())
        resume(actor, record, own)
        life = actor.life
        if life.alive and life.exit is None and actor.id not in {child.id for child in own}:
            await _reattach_fresh(actor, keeper.direct)
        elif not life.alive and actor.cgroup.populated():
            await see_to_orphans(actor, keeper.direct, orphans)
    if records or children:
        changed, same = {}, {}
        for name, actor in actors.items():
            before = records.get(name)
            now = actor.trail.record(actor)
            if now == before:
                same[name] = found.lines[name]
            else:
                changed[name] = now
        world.state.write_all(changed, same)
    for actor in actors.values():
        actor.ends.settle()
    keeper.go_on()
    return sum(actor.life.alive for actor in actors.values())


async def see_off(actor: Actor) -> None:
    """Stop an instance that the configuration no longer has, and remove it."""
    world = actor.world
    if actor.life.alive:
        actor.voice.say(actor.life.generation, "warning", "warning", message="no longer in the configuration: stopped")
    await actor.ask(events.Stop("configuration"))
    await actor.until(lambda life: life.state is State.STOPPED)
    await actor.drained()
    await actor.retire()
    if not actor.cgroup.populated():
        actor.cgroup.remove()
    world.state.keep(actor.name, None)


# ---- without the keeper that started the program


async def _reattach_fresh(actor: Actor, keeper: Keeper) -> None:
    """Reattach at the start; if the keeper is lost, its replacement is later given all programs."""
    with suppress(KeeperLost):
        await reattach(actor, keeper, fresh=True)


async def reattach(actor: Actor, keeper: Keeper, fresh: bool) -> None:
    """Give a living generation to the present keeper, which does not know it, or find out how it ended.

    `without_descriptors`: this supervisor has none of its descriptors yet. If no process of it is found, its start is
    repeated.
    """
    trail, id_ = actor.trail, actor.id
    body = trail.body or find(actor.cgroup, trail.pipes)
    if body is None:
        actor.post(Again() if actor.life.state is State.STARTING else Ended(id_, -1))
        return
    if trail.body is None:
        trail.body, actor.pid = body, body.first.pid
        if actor.life.state is State.STARTING:
            trail.body = None  # until the report that the program runs
            actor.post(Execed(id_, body.program.pid))
        trail.pin = processes.pin(body.program.pid, body.program.started)
    members = [body.program.pid, *actor.cgroup.procs()]
    program = os.dup(trail.pin) if trail.pin >= 0 else -1
    lives = processes.start_time(body.first.pid) == body.first.started
    pipes = [processes.open_pipe(inode, members) if inode else -1 for inode in body.pipes]
    fds = [program, *(fd if fd >= 0 else _at_its_end() for fd in pipes)]
    if fresh:
        actor.output.expect(Spawned(id_, body.first.pid, *map(os.dup, fds[1:])))
        if trail.body is not None:
            actor.output.begin(actor.life.generation, body.program.pid)
    try:
        if program >= 0 and lives and not processes.ended(program):
            notify = actor.listen(_owner(actor), again=True)[0] if fresh and actor.workload.speaks else actor.notify
            first = body.first.pid, body.first.started
            await keeper.adopt(id_, first, body.program.pid, [*fds, *([notify] if notify >= 0 else ())])
        else:
            status = processes.exit_status(program, body.program.pid) if program >= 0 else None
            actor.post(Ended(id_, -1 if status is None else status))
    finally:
        for fd in fds:
            _close(fd)


def find(cgroup: Cgroup, pipes: tuple[int, int] = (0, 0)) -> Body | None:
    """Find the program in a cgroup: the oldest process whose parent is outside.

    None if the cgroup is empty, or if the set-up is not complete, so that the process is still one of the service.
    """
    members = cgroup.procs()
    roots = []
    for pid in members:
        started, parent = processes.start_time(pid), processes.parent(pid)
        if started is not None and parent is not None and parent not in members:
            roots.append((started, pid, parent))
    if not roots:
        return None
    started, pid, parent = min(roots)
    if processes.name(pid).startswith(_OURS):
        return None
    program = first = Process(pid, started)
    if processes.name(parent).startswith(f"{_OURS}ini") and (begun := processes.start_time(parent)) is not None:
        first = Process(parent, begun)
    if not any(pipes):
        pipes = processes.read_write_pipe(pid, 1), processes.read_write_pipe(pid, 2)
    return Body(first, program, pipes)


async def see_to_orphans(actor: Actor, keeper: Keeper, policy: str) -> None:
    """Handle processes in the cgroup of a workload that has no known generation, as [supervisor] orphans says."""
    cgroup, say = actor.cgroup, partial(actor.voice.say, actor.life.generation)
    pids = cgroup.procs()
    body = find(cgroup)
    problem = f"its cgroup {cgroup.path} has processes of which nothing is known"
    if policy == "adopt" and body is not None:
        _begin_unknown(actor, actor.life.generation + 1, "taken over from a supervisor and a keeper that died")
        actor.trail.pipes = body.pipes
        if actor.workload.type == "notify":
            actor.post(events.Ready(actor.life.generation))
        actor.catch_up = actor.catch_up or partial(_catch_up, actor, None)
        say("orphans", "warning", message=f'{problem}: adopted, as orphans = "adopt" says', pids=pids[:10])
        await _reattach_fresh(actor, keeper)
    elif policy == "leave":
        text = f'{problem}: left alone, as orphans = "leave" says, so it cannot start; end them, or set orphans'
        say("orphans", "error", message=text, pids=pids[:10])
    else:
        say("orphans", "warning", message=f"{problem}: killed", pids=pids[:10])
        cgroup.kill()
        with trio.move_on_after(actor.workload.timeout_stop_sec):
            while cgroup.populated():  # noqa: ASYNC110 - briefly
                await trio.sleep(0.005)


def _owner(actor: Actor) -> tuple[int, int] | None:
    return host_owner(
        spawn_spec(
            actor.workload, actor.name, actor.instance, actor.life.generation, actor.cgroup, actor.world.directory
        )
    )


def _at_its_end() -> int:
    """Return a pipe without a writer, in place of one that the program has closed."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.close(write)
    return read


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def generation(id_: str) -> int:
    """Return the generation in an id: "web#3" → 3."""
    return int(id_.rpartition("#")[2])


async def readopt(actors: Iterable[Actor], present: kept.Kept) -> int:
    """Give the present keeper the programs that it does not know, after a loss; return the number that live."""
    # Without descriptors: this supervisor has them already, and for thousands of programs twice as many may be too
    # many.
    children = {child.id: child for child in await present.children(bare=True)}
    alive_count = 0
    for actor in actors:
        if not actor.life.alive or actor.starting or actor.life.exit is not None:
            continue
        alive_count += 1
        child = children.pop(actor.id, None)
        if child is None:
            await reattach(actor, present.direct, fresh=False)
            continue
        if child.program is not None and actor.trail.body is None:
            actor.post(Execed(child.id, child.program))
    present.go_on(await present.children(list(children)) if children else ())
    return alive_count


async def follow_keeper(
    keeper: kept.Kept, actors: Mapping[str, Actor], supervisor: "Supervisor", tree: Tree
) -> NoReturn:
    """Pass each report of the keeper to its actor; connect to a new keeper when one is lost."""
    log = supervisor.exposition.journal.log
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
            alive_count = await readopt(actors.values(), keeper)
        except KeeperLost:
            continue
        supervisor.keeper_pid = supervisor.exposition.keeper_pid = keeper.pid
        tree.supervisor_join(keeper.pid)
        event = "keeper upgraded" if expected and keeper.pid == lost else "keeper replaced"
        log.warning(event, message=f"{alive_count} programs are in its hands", pid=keeper.pid)


async def _replace(keeper: kept.Kept, log: Any, expected: bool) -> None:
    for delay in itertools.chain(kept.DELAYS, itertools.repeat(kept.DELAYS[-1])):
        await trio.sleep(delay)
        try:
            await keeper.connect()
            return
        except (KeeperLost, OSError) as error:
            log.critical("no keeper", message=f"{error}; trying again")
            if expected:  # the new version was executed but does not come up; it is our child, or adopted
                with suppress(ProcessLookupError):
                    os.kill(keeper.pid, signal.SIGKILL)
