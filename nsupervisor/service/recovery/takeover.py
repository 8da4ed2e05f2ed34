"""Take over running programs: at the start from a supervisor that died, and later from a keeper that died.

There are two sources. The keeper's table, if the keeper lives, holds the processes and their pipes. The state file of
an earlier supervisor (`nsupervisor.service.state.file.file`) holds what they mean: the generation, the requested state,
the back-off, the rules. If the two differ, the keeper is right about processes, because it is their parent. If the
keeper is dead, the kernel decides: a process is the saved one if it has the same pid and the same start time and is in
the cgroup. Its exit is then reported by its pidfd (`nsupervisor.linux.processes`), and its pipes are opened again.

`nsupervisor.service.instance.restore` does the part of this that concerns one instance.
"""

import itertools
import os
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

import trio

from nsupervisor.config.model import WorkloadConfig
from nsupervisor.keeper import reconnecting
from nsupervisor.keeper.connection import KeeperConnection
from nsupervisor.keeper.messages import Child, Ended, Execed, KeeperLost
from nsupervisor.logs import Journal
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.instance.program import find_program
from nsupervisor.service.instance.restore import adopt_found, reattach
from nsupervisor.service.state.file import InstanceCheckpoint, SavedState
from nsupervisor.terminal.numbers import format_count

# ---- at the start of the supervisor


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
        after=checkpoint.dependencies,
        kill_signal=checkpoint.kill_signal,
        timeout_stop_sec=checkpoint.timeout_stop_sec,
        kill_mode=checkpoint.kill_mode,
        send_sighup=checkpoint.send_sighup,
        final_kill_signal=checkpoint.final_kill_signal,
    )


async def take_over(
    actors: Mapping[str, Actor],
    saved: SavedState,
    children: Mapping[str, Sequence[Child]],
    context: ServiceContext,
    orphans: str,
) -> int:
    """Find the programs that the keeper does not have, before any actor runs; return the number of those that live."""
    records, keeper = saved.instances, context.keeper
    await _take_over_hooks(actors, context)
    for name, actor in actors.items():
        own, lifecycle = {child.id for child in children.get(name, ())}, actor.lifecycle
        with actor.contain_errors("cannot take over what runs"):
            if lifecycle.is_alive and lifecycle.exit is None and actor.id not in own:
                await _reattach_without_descriptors(actor, keeper.direct)
            elif not lifecycle.is_alive and not lifecycle.has_left and actor.cgroup.is_populated():
                await handle_orphans(actor, keeper.direct, orphans)
    if records or children:
        changed, same = {}, {}
        for name, actor in actors.items():
            before = records.get(name)
            now = actor.to_checkpoint()
            if now == before:
                same[name] = saved.lines[name]
            else:
                changed[name] = now
        context.state.write_all(changed, same)
    for actor in actors.values():
        actor.exit_reports.release()
    keeper.release_waiters()
    return sum(actor.lifecycle.is_alive for actor in actors.values())


async def _take_over_hooks(actors: Mapping[str, Actor], context: ServiceContext) -> None:
    """Find the commands of hooks that the keeper has kept; end those that no actor waits for."""
    if not context.keeper.direct.kept_at_start:
        return
    from nsupervisor.service.instance.hook_commands import discard  # there are few

    with suppress(KeeperLost):
        for kept in await context.keeper.direct.list_kept():
            actor = actors.get(kept.entry.id.partition("/")[0].rpartition("#")[0])
            if actor is None or not actor.expect_hook(kept):
                context.nursery.start_soon(discard, context, kept)


# ---- without the keeper that started the program


async def _reattach_without_descriptors(actor: Actor, keeper: KeeperConnection) -> None:
    """Reattach at the start; if the keeper is lost, its replacement is later given all programs."""
    with suppress(KeeperLost):
        await reattach(actor, keeper, without_descriptors=True)


async def handle_orphans(actor: Actor, keeper: KeeperConnection, policy: str) -> None:
    """Handle processes in the cgroup of a workload that has no known generation, as [supervisor] orphans says."""
    cgroup, say = actor.cgroup, partial(actor.log.write, actor.lifecycle.generation)
    pids = cgroup.pids()
    process = find_program(cgroup, actor.context)
    problem = f"its cgroup {cgroup.path} has processes of which nothing is known"
    if policy == "adopt" and process is not None:
        adopt_found(actor, process)
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
            with actor.contain_errors("cannot give it to the new keeper"):
                await reattach(actor, keeper.direct, without_descriptors=False)
            continue
        if child.program_pid is not None and actor.program.process is None:
            actor.post(Execed(child.id, child.program_pid))
    keeper.release_waiters(await keeper.children(list(children)) if children else ())
    return alive_count


async def follow_keeper(
    keeper: reconnecting.ReconnectingKeeper,
    actors: Mapping[str, Actor],
    journal: Journal,
    on_replaced: Callable[[int], None],
    hand_over: Callable[[KeeperConnection], Awaitable[None]],
) -> NoReturn:
    """Pass each report of the keeper to its actor; connect to a new keeper when one is lost.

    `on_replaced` is called with the pid of each further keeper, when it has all programs; before, `hand_over` gives it
    what else its predecessor had.
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
            await hand_over(keeper.direct)
            alive_count = await hand_over_to_keeper(actors.values(), keeper)
        except KeeperLost:
            continue
        on_replaced(keeper.pid)
        event = "keeper upgraded" if expected and keeper.pid == lost else "keeper replaced"
        log.warning(event, message=f"it is the parent of {format_count(alive_count, 'program')}", pid=keeper.pid)


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
