"""All workloads together: the order of starting and stopping, and what people ask for over the API."""

import difflib
import fnmatch
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import attrs
import trio

from nsupervisor import __version__
from nsupervisor.api.control import UnknownName
from nsupervisor.config.model import Config
from nsupervisor.config.problems import ConfigError
from nsupervisor.core import events, order
from nsupervisor.core.lifecycle import Life, State
from nsupervisor.metrics.exposition import Exposition
from nsupervisor.service.actor import Actor
from nsupervisor.service.groups import PREFIX, Groups
from nsupervisor.service.history import Follower, History
from nsupervisor.service.persist import Writer
from nsupervisor.service.recorder import Recorder, Recording, Terms
from nsupervisor.service.reload import Reloader
from nsupervisor.service.roster import Roster
from nsupervisor.service.stats import sample
from nsupervisor.service.upgrade import Upgrade, UpgradeError
from nsupervisor.service.world import World

FREEZE_PATIENCE = 2.0
"""Seconds that `freeze` waits until the kernel has stopped each process; one that sleeps in the kernel takes longer."""
STARTS_AT_ONCE = 16
"""How many may be between the decision to start and the execution of the program; the others wait for their turn. Else
the last of thousands would be given up as not started in time, and an urgent restart would queue behind them all."""
AT_REST = frozenset({State.STOPPED, State.EXITED, State.FAILED})
"""Nothing lives, and nothing will by itself."""


@attrs.define(eq=False)
class Supervisor:
    """The actors by name, and what concerns more than one of them. It is the API's `Control`."""

    config: Config
    actors: Roster
    groups: Groups
    world: World
    nursery: trio.Nursery
    keeper_pid: int
    mode: str
    """The host's cgroup hierarchies: "unified" or "hybrid"."""
    cgroup: str
    exposition: Exposition
    past: History = attrs.field(factory=History)
    recorder: Recorder = attrs.field(factory=Recorder)
    reloader: Reloader = attrs.field(init=False)
    stopping: bool = False
    """Everything is to end: nothing new is begun any more."""
    started_at: float = attrs.field(factory=time.time)
    _born: float = attrs.field(factory=trio.current_time)
    _file: Writer = attrs.field(factory=Writer)
    _edges_of: Config | None = None
    _known: dict[str, tuple[str, ...]] = attrs.field(init=False)
    _turns: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(STARTS_AT_ONCE))

    # ---- what a person sees

    def info(self) -> dict[str, Any]:
        """About the service itself."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "keeper_pid": self.keeper_pid,
            "name": self.config.supervisor.name,
            "config": self.config.path,
            "runtime_directory": self.config.supervisor.runtime_directory,
            "started_at": self.started_at,
            "uptime_sec": round(trio.current_time() - self._born, 3),
            "cgroup": self.cgroup,
            "mode": self.mode,
        }

    def status(self) -> list[dict[str, Any]]:
        """One object per workload instance, in the configuration's order."""
        return [actor.status() for actor in self.actors.values()]

    def group_status(self) -> list[dict[str, Any]]:
        """One object per group, each after those around it."""
        return self.groups.status()

    def matching_groups(self, pattern: str) -> list[str]:
        """The full names of the groups that "group/batch" or "group/*" mean; none where it means workloads."""
        return [group.name for group in self.groups.matching(pattern)]

    async def set_group(
        self, name: str, changes: Mapping[str, Any], persist: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Change a group's own limits."""
        ok, message = await self.groups.change(name, changes)
        if ok and persist:
            problem = await self._file.persist(self.config.path, "group", name.removeprefix(PREFIX), persist)
            ok, message = not problem, problem or message
        return {"name": name, "ok": ok, "state": None, "message": message}

    def stats(self) -> list[dict[str, Any]]:
        """The counters of each instance."""
        return [
            sample(actor.status(), actor.cgroup, bool(actor.workload.namespaces.network))
            for actor in self.actors.values()
        ]

    def history(self, name: str) -> dict[str, Any]:
        """One instance, and what has been said about it."""
        actor = self.actors[name]
        lines, forgotten = self.past.of(name)
        return {
            **actor.status(),
            "config": self.config.path,
            "restart": actor.workload.restart,
            "since": self.started_at,
            "log": {**actor.output.place(), "stream": self._stream()},
            "forgotten": forgotten,
            "records": [json.loads(line) for line in lines],
        }

    def _stream(self) -> str | None:
        """The file that the journal is, if it is one of records."""
        output = self.config.supervisor.log_output
        is_file = isinstance(output, str) and output.startswith("/") and self.config.supervisor.log_format == "json"
        return output if isinstance(output, str) and is_file else None

    def events(
        self, names: Collection[str] | None, events: Collection[str] | None, news: bool
    ) -> AbstractContextManager[Follower]:
        """What has been said about instances, and what will be."""
        return self.past.follow(names, events, news=news)

    def trace(
        self, names: Collection[str] | None, interval: float | None, seconds: float, most: float
    ) -> AbstractContextManager[Recording]:
        """A recording of what instances go through."""
        actors = {name: actor for name, actor in self.actors.items() if names is None or name in names}
        return self.recorder.record(actors, self.groups, Terms(interval, seconds, most), self.config.path)

    def resolve(self, patterns: Sequence[str]) -> list[str]:
        """The instances that ``patterns`` mean: "web" is all of web's, "group/batch" all in that group; globs match
        either. Raises UnknownName."""
        found: dict[str, None] = {}
        for pattern in patterns:
            names = list(self._matching(pattern))
            groups = self.groups.matching(pattern)
            names += [actor.name for group in groups for actor in group.members]
            if not names and not groups:
                known = [*self.actors, *self.config.workloads, *(f"{PREFIX}{name}" for name in self.config.groups)]
                raise UnknownName(pattern, next(iter(difflib.get_close_matches(pattern, known, 1)), None))
            found |= dict.fromkeys(names)
        return list(found)

    def _matching(self, pattern: str) -> Iterable[str]:
        if not set(pattern) & set("*?["):  # without looking at all of them, as there may be as many patterns
            found = dict.fromkeys([pattern] if pattern in self.actors else [])
            return found | dict.fromkeys(actor.name for actor in self.actors.instances(pattern))
        match = re.compile(fnmatch.translate(pattern)).match
        return (name for name, actor in self.actors.items() if match(name) or match(actor.workload.name))

    def controllable_by(self, workload: str) -> list[str]:
        """The instances that processes of the instance `workload` may control."""
        actor = self.actors.get(workload)
        names = actor.configured.may_control if actor is not None else ()
        return [one.name for name in names for one in self.actors.instances(name)]

    def also_affected(self, verb: str, name: str) -> list[str]:
        """The other instances that `verb` would start or stop with it now."""
        actor = self.actors[name]
        if verb == "stop":
            chain = [actor]
            for one in chain:  # grows meanwhile
                chain += [other for other in self.actors.requirers(one.workload.name) if other not in chain]
            others = [one for one in chain[1:] if one.life.state not in AT_REST or one.pending]
        elif verb in ("start", "restart") and not (verb == "start" and actor.life.alive):
            edges = self._edges()
            closure = order.closure(edges[actor.workload.name], edges)
            others = [one for needed in closure for one in self.actors.instances(needed) if not one.up]
        else:
            others = []
        return [one.name for one in others if one is not actor]

    def check_command(self, verb: str, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """The operator may do everything."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """What is measured, as text, and its content type."""
        return await self.exposition.text(self.actors.values(), self.groups.by_name.values(), accept)

    # ---- what a person wants

    async def plan(self, path: str | None, text: str | None) -> dict[str, Any]:
        """What a reload would do."""
        return await self.reloader.plan(path, text)

    async def reload(self, path: str | None, text: str | None) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Go over to a file, and tell of it as it is done."""
        return await self.reloader.reload(path, text, "operator")

    async def reread(self) -> None:
        """The file that is in force is read again: SIGHUP."""
        try:
            await self.reloader.reload(None, None, "SIGHUP")
        except ConfigError:
            pass  # it has been said, and there is nobody else to tell

    async def command(self, verb: str, name: str, **parameters: Any) -> dict[str, Any]:
        """Do one thing to one instance, and wait until it is done."""
        actor = self.actors[name]
        if actor.leaving and verb in ("start", "restart"):
            ok, message = False, f"{self.config.path} does not have it any more; it goes"
        else:
            ok, message = await _COMMANDS[verb](self, actor, **parameters)
        return {"name": name, "ok": ok, "state": actor.life.state.value, "message": message}

    async def _start(self, actor: Actor) -> tuple[bool, str]:
        if actor.life.alive:
            await actor.ask(events.Start())
        else:
            self.start(extra=[actor])
        return await self.settled(actor)

    async def _restart(self, actor: Actor) -> tuple[bool, str]:
        """As systemd does: what it requires or wants starts, too, where it does not run; what runs is left alone."""
        edges = self._edges()
        asleep = [
            name
            for name in order.closure(edges[actor.workload.name], edges)
            if not all(one.up or one.life.alive or one.pending for one in self.actors.instances(name))
        ]
        if not actor.life.alive:
            self.start(extra=[actor])
        elif asleep:
            self.start(asleep)
            self.launch(actor, asleep, "operator", partial(self.lay_down, actor, "operator"))
        else:
            if actor.pending is not None:
                actor.pending.cancel()
            await actor.ask(events.Restart())
        return await self.settled(actor)

    async def settled(self, actor: Actor) -> tuple[bool, str]:
        """Wait until a start has led to something: it is up, it is down, or it will take a while (back-off, frozen)."""
        await actor.until(
            lambda life: actor.pending is None and (actor.up or life.state in {*AT_REST, State.BACKOFF, State.FROZEN})
        )
        return actor.up, "" if actor.up else actor.waits_for or actor.life.reason

    async def _stop(self, actor: Actor) -> tuple[bool, str]:
        requirers = self.actors.requirers(actor.workload.name)
        awake = [other for other in requirers if other.life.state not in AT_REST or other.pending]
        if awake:
            async with trio.open_nursery() as nursery:
                for other in awake:
                    nursery.start_soon(self._stop, other)
        return await self.down(actor, "operator")

    async def down(self, actor: Actor, by: str) -> tuple[bool, str]:
        if actor.pending is not None:
            actor.pending.cancel()
        await actor.ask(events.Stop(by))
        await actor.until(lambda life: life.wanted or life.state is State.STOPPED)
        if actor.life.wanted:
            return False, "a later start overruled it"
        return True, ""

    async def _kill(self, actor: Actor) -> tuple[bool, str]:
        generation = actor.life.generation
        if not actor.life.alive:
            return False, "it does not run"
        await actor.ask(events.Kill())
        await actor.until(lambda life: not life.alive or life.generation > generation)
        return True, ""

    async def _signal(self, actor: Actor, signal: int) -> tuple[bool, str]:
        ok = await actor.signal(signal)
        return ok, "" if ok else "it does not run"

    async def _freeze(self, actor: Actor) -> tuple[bool, str]:
        if actor.life.state not in (State.STARTING, State.RUNNING, State.READY, State.FROZEN):
            return False, f"only what runs can be frozen; it is {actor.life.state.value}"
        await actor.ask(events.Freeze())
        await actor.until(lambda life: life.state is not State.STARTING)  # it is done as soon as the program runs
        if actor.life.state is not State.FROZEN:
            return False, f"it is {actor.life.state.value} by now: {actor.life.reason}"
        with trio.move_on_after(FREEZE_PATIENCE):
            while actor.life.state is State.FROZEN and not actor.cgroup.frozen():  # noqa: ASYNC110 - a moment, rarely
                await trio.sleep(0.005)
        return actor.life.state is State.FROZEN, ""

    async def _thaw(self, actor: Actor) -> tuple[bool, str]:
        if actor.life.state is not State.FROZEN:
            return False, f"it is not frozen; it is {actor.life.state.value}"
        await actor.ask(events.Thaw())
        return True, ""

    async def _set(
        self, actor: Actor, changes: Mapping[str, Any], persist: Mapping[str, Any] | None = None
    ) -> tuple[bool, str]:
        done, message = await actor.change(changes)
        if done and persist:
            message = await self._file.persist(self.config.path, "workload", actor.workload.name, persist)
        return done and not message, message

    async def upgrade(self, python: str, package: str, patience: float) -> tuple[bool, str]:
        """Become another version, in place, a moment after this has returned: see `service.upgrade`."""
        try:
            upgrade = Upgrade(self.config, python, package, patience)
            version = await upgrade.prepare(self.world)
        except UpgradeError as error:
            self.world.journal.log.error("not upgraded", message=str(error))
            return False, str(error)
        self.nursery.start_soon(upgrade.go, self.world)
        return True, version

    # ---- order

    def start(self, names: Iterable[str] = (), *, extra: Iterable[Actor] = (), by: str = "operator") -> None:
        """Start workloads with all that they require or want and that is not up, each after those it waits for. Returns
        at once."""
        edges = self._edges()
        chosen = dict.fromkeys(extra)
        needed = [n for actor in chosen for n in edges[actor.workload.name]]
        for name in order.closure([*names, *needed], edges):
            chosen |= dict.fromkeys(one for one in self.actors.instances(name) if not one.up)  # a oneshot may be done
        starting = {actor.workload.name for actor in chosen}
        for actor in chosen:
            if actor.pending is None and not actor.life.alive:
                self.launch(actor, starting, by)

    def launch(
        self, actor: Actor, starting: Collection[str], by: str, first: Callable[[], Awaitable[bool]] | None = None
    ) -> trio.CancelScope:
        """Start ``actor`` once what it waits for is up; not at all when something that it requires cannot be had.
        Returns at once, with what is `Actor.pending` until then.

        ``starting`` are workloads that somebody starts as well. ``first`` is done before, and says whether there is
        still something to start. A launch before this one that is still pending is called off.
        """
        if actor.pending is not None:
            actor.pending.cancel()
        actor.pending = scope = trio.CancelScope()
        actor.trail.pending = by
        actor.remember()
        self.nursery.start_soon(self._launch, actor, scope, starting, by, first)
        return scope

    async def _launch(
        self,
        actor: Actor,
        scope: trio.CancelScope,
        starting: Collection[str],
        by: str,
        first: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        missing = ""
        with scope:
            if first is None or await first():
                missing = actor.waits_for = await self._wait_for_others(actor, starting)
                if not missing:
                    turn = object()
                    await self._turns.acquire_on_behalf_of(turn)
                    try:
                        await actor.ask(events.Start(by))
                    finally:
                        self.nursery.start_soon(self._end_turn, turn, actor)
        if missing:
            actor.world.journal.log.error("not started", workload=actor.name, message=missing)
        if actor.pending is scope:
            actor.pending, actor.trail.pending = None, ""
            actor.waits_for = missing
            actor.remember()
        actor.poke()

    async def _end_turn(self, turn: object, actor: Actor) -> None:
        """Let the next one start, once this one's program has been executed, or will not be."""
        await actor.until(lambda life: life.state is not State.STARTING)
        self._turns.release_on_behalf_of(turn)

    async def _wait_for_others(self, actor: Actor, starting: Collection[str]) -> str:
        """Until those that come before it are up; or what it requires and cannot have, in words."""
        for name in order.before(actor.workload):
            for other in self.actors.instances(name):
                if not (name in starting or name in actor.workload.requires or other.life.alive):
                    continue  # nobody asked for it
                actor.waits_for = f"waits for {other.name}"
                if not _up_or_hopeless(other, other.life):
                    actor.world.journal.log.info("waiting", workload=actor.name, message=actor.waits_for)
                await other.until(partial(_up_or_hopeless, other))
                if not other.up and name in actor.workload.requires:
                    return f"requires {other.name}, which is {other.life.state.value}: {other.life.reason}"
        return ""

    async def lay_down(self, actor: Actor, by: str) -> bool:
        """Stop it, for a start that follows; False when somebody has started it meanwhile."""
        await actor.ask(events.Stop(by))
        await actor.until(lambda life: life.wanted or life.state is State.STOPPED)
        return not actor.life.wanted

    def _edges(self) -> dict[str, tuple[str, ...]]:
        """What each workload has started when it is started; made once for each configuration, as all may be started
        one by one."""
        if self._edges_of is not self.config:
            self._edges_of = self.config
            self._known = {name: (*one.requires, *one.wants) for name, one in self.config.workloads.items()}
        return self._known

    async def stop_all(self) -> None:
        """Stop everything, those first that others do not wait for; returns when no process is left."""
        dependants = order.dependants(self.config.workloads)

        async def stop_after(actor: Actor) -> None:
            for name in dependants.get(actor.workload.name, ()):
                for other in self.actors.instances(name):
                    await other.until(lambda life: life.state is State.STOPPED)
            await self.down(actor, events.SHUTDOWN)

        self.stopping = True
        async with trio.open_nursery() as nursery:
            for actor in self.actors.values():
                nursery.start_soon(stop_after, actor)

    def kill_all(self) -> None:
        """SIGKILL for everything that still lives: somebody is in a hurry."""
        for actor in self.actors.values():
            actor.post(events.Kill(events.SHUTDOWN))

    async def drained(self) -> None:
        """Wait until all output of what has ended is in the journal."""
        for actor in list(self.actors.values()):
            await actor.drained()


def _up_or_hopeless(actor: Actor, life: Life) -> bool:
    """Nobody has to wait for this one any longer: it is up; or it is down, and nothing is under way to start it."""
    return actor.up or (actor.pending is None and life.state in AT_REST)


_COMMANDS: Mapping[str, Callable[..., Awaitable[tuple[bool, str]]]] = {
    "start": Supervisor._start,
    "restart": Supervisor._restart,
    "stop": Supervisor._stop,
    "kill": Supervisor._kill,
    "signal": Supervisor._signal,
    "freeze": Supervisor._freeze,
    "thaw": Supervisor._thaw,
    "set": Supervisor._set,
}
"""The API's verbs (`VERBS` of `nsupervisor.api.routes`)."""
