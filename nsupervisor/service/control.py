"""All workloads together: the order of starts and stops, and the commands of the API."""

import difflib
import fnmatch
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
from nsupervisor.api.control import UnknownName, is_glob
from nsupervisor.config.model import Config
from nsupervisor.config.problems import ConfigError
from nsupervisor.core import dependencies, events
from nsupervisor.core.lifecycle import Lifecycle, State
from nsupervisor.json_codec import decode
from nsupervisor.metrics.exposition import Exposition
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.group.groups import PREFIX, Groups
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.observe.history import Follower, History
from nsupervisor.service.observe.recorder import Recorder, Recording, RecordingTerms
from nsupervisor.service.observe.stats import usage_sample
from nsupervisor.service.recovery.upgrade import Upgrade, UpgradeError
from nsupervisor.service.registry import Registry
from nsupervisor.service.reload.persist import ConfigEditor
from nsupervisor.service.reload.reload import Reloader

FREEZE_TIMEOUT_S = 2.0
"""Seconds that `freeze` waits until the kernel has frozen every process; one in uninterruptible sleep takes longer."""
MAX_CONCURRENT_STARTS = 16
"""Most instances between the decision to start and the execution of the program; others wait for a slot. Otherwise the
last of thousands would reach its start timeout, and an urgent restart would queue behind all of them."""
DOWN_STATES = frozenset({State.STOPPED, State.EXITED, State.FAILED})
"""States in which no process lives and none will start by itself."""


@attrs.define(eq=False)
class Supervisor:
    """The actors by name, and operations that concern more than one of them. Implements the API's `Control`."""

    config: Config
    actors: Registry
    groups: Groups
    context: ServiceContext
    nursery: trio.Nursery
    keeper_pid: int
    mode: str
    """Mode of the host's cgroup hierarchies: "unified" or "hybrid"."""
    cgroup: str
    exposition: Exposition
    event_log: History = attrs.field(factory=History)
    recorder: Recorder = attrs.field(factory=Recorder)
    reloader: Reloader = attrs.field(init=False)
    is_stopping: bool = False
    """Whether everything is being stopped; nothing new is started then."""
    started_at: float = attrs.field(factory=time.time)
    _started: float = attrs.field(factory=trio.current_time)
    _config_editor: ConfigEditor = attrs.field(factory=ConfigEditor)
    _start_edges_config: Config | None = None
    _start_edges: dict[str, tuple[str, ...]] = attrs.field(init=False)
    _start_slots: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_CONCURRENT_STARTS))

    # ---- queries

    def info(self) -> dict[str, Any]:
        """Return the facts about the service itself."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "keeper_pid": self.keeper_pid,
            "name": self.config.supervisor.name,
            "config": self.config.path,
            "runtime_directory": self.config.supervisor.runtime_directory,
            "started_at": self.started_at,
            "uptime_sec": round(trio.current_time() - self._started, 3),
            "cgroup": self.cgroup,
            "mode": self.mode,
        }

    def status(self) -> list[dict[str, Any]]:
        """Return one status object per workload instance, in the order of the configuration."""
        return [actor.status() for actor in self.actors.values()]

    def group_status(self) -> list[dict[str, Any]]:
        """Return one status object per group, each after those that contain it."""
        return self.groups.status()

    def matching_groups(self, pattern: str) -> list[str]:
        """Return the full names of the groups that "group/batch" or "group/*" matches; none for workloads."""
        return [group.name for group in self.groups.matching(pattern)]

    async def set_group(
        self, name: str, changes: Mapping[str, Any], persist: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Change a group's own limits; return the outcome."""
        ok, message = await self.groups.change_limits(name, changes)
        if ok and persist:
            problem = await self._config_editor.persist(self.config.path, "group", name.removeprefix(PREFIX), persist)
            ok, message = not problem, problem or message
        return {"name": name, "ok": ok, "state": None, "message": message}

    def stats(self) -> list[dict[str, Any]]:
        """Return the counters of each instance."""
        return [
            usage_sample(actor.status(), actor.cgroup, bool(actor.workload.namespaces.network))
            for actor in self.actors.values()
        ]

    def history(self, name: str) -> dict[str, Any]:
        """Return the status of one instance, and the records about it."""
        actor = self.actors[name]
        lines, forgotten = self.event_log.records_of(name)
        return {
            **actor.status(),
            "config": self.config.path,
            "restart": actor.workload.restart,
            "since": self.started_at,
            "log": {**actor.output.location(), "stream": self._journal_file()},
            "forgotten": forgotten,
            "records": [decode(line) for line in lines],
        }

    def _journal_file(self) -> str | None:
        """Return the path of the journal's file, or None if it is not a file of JSON records."""
        output = self.config.supervisor.log_output
        is_file = isinstance(output, str) and output.startswith("/") and self.config.supervisor.log_format == "json"
        return output if isinstance(output, str) and is_file else None

    def events(
        self, names: Collection[str] | None, events: Collection[str] | None, follow: bool
    ) -> AbstractContextManager[Follower]:
        """Follow the records about instances: past ones and, with `follow`, new ones."""
        return self.event_log.follow(names, events, news=follow)

    def trace(
        self, names: Collection[str] | None, interval: float | None, seconds: float, max_bytes: float
    ) -> AbstractContextManager[Recording]:
        """Record the inputs of instances as a trace."""
        actors = {name: actor for name, actor in self.actors.items() if names is None or name in names}
        return self.recorder.record(actors, self.groups, RecordingTerms(interval, seconds, max_bytes), self.config.path)

    def resolve(self, patterns: Sequence[str]) -> list[str]:
        """Return the instances that `patterns` match: "web" is all of web's, "group/batch" all in that group.

        Globs match workloads, instances and groups. Raises UnknownName.
        """
        matched: dict[str, None] = {}
        for pattern in patterns:
            names = list(self._matching(pattern))
            groups = self.groups.matching(pattern)
            names += [actor.name for group in groups for actor in group.members]
            if not names and not groups:
                known = [*self.actors, *self.config.workloads, *(f"{PREFIX}{name}" for name in self.config.groups)]
                raise UnknownName(pattern, next(iter(difflib.get_close_matches(pattern, known, 1)), None))
            matched |= dict.fromkeys(names)
        return list(matched)

    def _matching(self, pattern: str) -> Iterable[str]:
        if not is_glob(pattern):  # without a scan of all actors, since there may be as many patterns
            candidates = dict.fromkeys([pattern] if pattern in self.actors else [])
            return candidates | dict.fromkeys(actor.name for actor in self.actors.instances(pattern))
        match = re.compile(fnmatch.translate(pattern)).match
        return (name for name, actor in self.actors.items() if match(name) or match(actor.workload.name))

    def controllable_by(self, workload: str) -> list[str]:
        """Return the instances that processes of the instance `workload` may control."""
        actor = self.actors.get(workload)
        names = actor.configured.may_control if actor is not None else ()
        return [instance.name for name in names for instance in self.actors.instances(name)]

    def also_affected(self, verb: str, name: str) -> list[str]:
        """Return the other instances that `verb` would start or stop with this one now."""
        actor = self.actors.get(name)
        if actor is None:  # a reload has removed it since its name was looked up
            return []
        if verb == "stop":
            chain = [actor]
            for instance in chain:  # grows in the loop
                chain += [
                    requirer for requirer in self.actors.requirers(instance.workload.name) if requirer not in chain
                ]
            affected = [
                instance
                for instance in chain[1:]
                if instance.lifecycle.state not in DOWN_STATES or instance.pending_start
            ]
        elif verb in ("start", "restart") and not (verb == "start" and actor.lifecycle.is_alive):
            edges = self._dependency_edges()
            closure = dependencies.transitive_closure(edges[actor.workload.name], edges)
            affected = [
                instance for needed in closure for instance in self.actors.instances(needed) if not instance.is_up
            ]
        else:
            affected = []
        return [instance.name for instance in affected if instance is not actor]

    def check_command(self, verb: str, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Accept every command: the operator may do everything."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and their content type."""
        return await self.exposition.render(self.actors.values(), self.groups.by_name.values(), accept)

    # ---- commands

    async def plan(self, path: str | None, text: str | None) -> dict[str, Any]:
        """Return what a reload would do."""
        return await self.reloader.plan(path, text)

    async def reload(self, path: str | None, text: str | None) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Reload a file; return a stream of its reports."""
        return await self.reloader.reload(path, text, "operator")

    async def reload_on_signal(self) -> None:
        """Read the file in force again, for SIGHUP."""
        try:
            await self.reloader.reload(None, None, "SIGHUP")
        except ConfigError:
            pass  # the reload has logged it, and a signal has no answer

    async def command(self, verb: str, name: str, *, workload: str = "", **parameters: Any) -> dict[str, Any]:
        """Run one command on one instance, and wait until it is done. `workload` gives it; "": an operator does."""
        by = events.by_workload(workload) if workload else events.OPERATOR
        actor = self.actors.get(name)
        if actor is None:
            return {"name": name, "ok": False, "state": None, "message": "a reload has just removed it"}
        if actor.removal and verb in ("start", "restart"):
            ok, message = False, f"{self.config.path} does not have it any more; it is being removed"
        else:
            ok, message = await _COMMANDS[verb](self, actor, by, **parameters)
        return {"name": name, "ok": ok, "state": actor.lifecycle.state.value, "message": message}

    async def _start(self, actor: Actor, by: str) -> tuple[bool, str]:
        if actor.lifecycle.is_alive:
            await actor.ask(events.Start(by))
        else:
            self.start(extra=[actor], by=by)
        return await self.wait_settled(actor)

    async def _restart(self, actor: Actor, by: str) -> tuple[bool, str]:
        """Restart as systemd does: dependencies that do not run are started too, those that run stay untouched."""
        edges = self._dependency_edges()
        not_running = [
            name
            for name in dependencies.transitive_closure(edges[actor.workload.name], edges)
            if not all(
                other.is_up or other.lifecycle.is_alive or other.pending_start for other in self.actors.instances(name)
            )
        ]
        if not actor.lifecycle.is_alive:
            self.start(extra=[actor], by=by)
        elif not_running:
            self.start(not_running, by=by)
            self.enqueue_start(actor, not_running, by, partial(self.stop_for_restart, actor, by))
        else:
            if actor.pending_start is not None:
                actor.pending_start.cancel()
            await actor.ask(events.Restart(by))
        return await self.wait_settled(actor)

    async def wait_settled(self, actor: Actor) -> tuple[bool, str]:
        """Wait until a start has an outcome: up, down, or a state that lasts (back-off, frozen)."""
        await actor.wait_until(
            lambda lifecycle: (
                actor.pending_start is None
                and (actor.is_up or lifecycle.state in {*DOWN_STATES, State.BACKOFF, State.FROZEN})
            )
        )
        return actor.is_up, "" if actor.is_up else actor.waits_for or actor.lifecycle.reason

    async def _stop(self, actor: Actor, by: str) -> tuple[bool, str]:
        requirers = self.actors.requirers(actor.workload.name)
        running = [other for other in requirers if other.lifecycle.state not in DOWN_STATES or other.pending_start]
        if running:
            async with trio.open_nursery() as nursery:
                for other in running:
                    nursery.start_soon(self._stop, other, by)
        return await self.stop_and_wait(actor, by)

    async def stop_and_wait(self, actor: Actor, by: str) -> tuple[bool, str]:
        if actor.pending_start is not None:
            actor.pending_start.cancel()
        await actor.ask(events.Stop(by))
        await actor.wait_until(lambda lifecycle: lifecycle.should_run or lifecycle.state is State.STOPPED)
        if actor.lifecycle.should_run:
            return False, "a later start overruled it"
        return True, ""

    async def _kill(self, actor: Actor, by: str) -> tuple[bool, str]:
        generation = actor.lifecycle.generation
        if not actor.lifecycle.is_alive:
            return False, "it does not run"
        await actor.ask(events.Kill(by))
        await actor.wait_until(lambda lifecycle: not lifecycle.is_alive or lifecycle.generation > generation)
        return True, ""

    async def _signal(self, actor: Actor, by: str, signal: int) -> tuple[bool, str]:
        ok = await actor.signal(signal, by)
        return ok, "" if ok else "it does not run"

    async def _freeze(self, actor: Actor, by: str) -> tuple[bool, str]:
        if actor.lifecycle.state not in (State.STARTING, State.RUNNING, State.READY, State.FROZEN):
            return False, f"only what runs can be frozen; it is {actor.lifecycle.state.value}"
        await actor.ask(events.Freeze(by))
        await actor.wait_until(
            lambda lifecycle: lifecycle.state is not State.STARTING
        )  # it is frozen as soon as the program runs
        if actor.lifecycle.state is not State.FROZEN:
            return False, f"it is {actor.lifecycle.state.value} by now: {actor.lifecycle.reason}"
        with trio.move_on_after(FREEZE_TIMEOUT_S):
            while actor.lifecycle.state is State.FROZEN and not actor.cgroup.is_frozen():  # noqa: ASYNC110 - a moment, rarely
                await trio.sleep(0.005)
        return actor.lifecycle.state is State.FROZEN, ""

    async def _thaw(self, actor: Actor, by: str) -> tuple[bool, str]:
        if actor.lifecycle.state is not State.FROZEN:
            return False, f"it is not frozen; it is {actor.lifecycle.state.value}"
        await actor.ask(events.Thaw(by))
        return True, ""

    async def _set(
        self, actor: Actor, by: str, changes: Mapping[str, Any], persist: Mapping[str, Any] | None = None
    ) -> tuple[bool, str]:
        done, message = await actor.change_limits(changes, by)
        if done and persist:
            message = await self._config_editor.persist(self.config.path, "workload", actor.workload.name, persist)
        return done and not message, message

    async def upgrade(self, python: str, package: str, timeout_s: float) -> tuple[bool, str]:
        """Upgrade to another version in place, shortly after this has returned: see `upgrade.py`."""
        try:
            upgrade = Upgrade(self.config, python, package, timeout_s)
            version = await upgrade.prepare(self.context)
        except UpgradeError as error:
            self.context.journal.log.error("not upgraded", message=str(error))
            return False, str(error)
        self.nursery.start_soon(upgrade.execute, self.context)
        return True, version

    # ---- start and stop order

    def start(self, names: Iterable[str] = (), *, extra: Iterable[Actor] = (), by: str = "operator") -> None:
        """Start workloads with everything that they require or want and that is not up, each after its dependencies.

        Returns at once.
        """
        edges = self._dependency_edges()
        chosen = dict.fromkeys(extra)
        needed = [n for actor in chosen for n in edges[actor.workload.name]]
        for name in dependencies.transitive_closure([*names, *needed], edges):
            chosen |= dict.fromkeys(
                instance for instance in self.actors.instances(name) if not instance.is_up
            )  # or a done oneshot
        starting = {actor.workload.name for actor in chosen}
        for actor in chosen:
            if actor.pending_start is None and not actor.lifecycle.is_alive:
                self.enqueue_start(actor, starting, by)

    def enqueue_start(
        self,
        actor: Actor,
        starting: Collection[str],
        by: str,
        before_start: Callable[[], Awaitable[bool]] | None = None,
    ) -> trio.CancelScope:
        """Start `actor` once its dependencies are up, or not at all if a requirement cannot be met.

        Returns at once, with what is `Actor.pending_start` until then.

        `starting` are the workloads that are started as well. `before_start` runs first, and returns whether there is
        still something to start. An earlier start that is still pending is cancelled.
        """
        if actor.pending_start is not None:
            actor.pending_start.cancel()
        actor.pending_start = scope = trio.CancelScope()
        actor.checkpoint.pending_start = by
        actor.save_checkpoint()
        self.nursery.start_soon(self._run_start, actor, scope, starting, by, before_start)
        return scope

    async def _run_start(
        self,
        actor: Actor,
        scope: trio.CancelScope,
        starting: Collection[str],
        by: str,
        before_start: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        missing = ""
        with scope:
            if before_start is None or await before_start():
                missing = actor.waits_for = await self._wait_for_others(actor, starting)
                if not missing:
                    slot = object()
                    await self._start_slots.acquire_on_behalf_of(slot)
                    try:
                        await actor.ask(events.Start(by))
                    finally:
                        self.nursery.start_soon(self._release_start_slot, slot, actor)
        if missing:
            actor.context.journal.log.error("not started", workload=actor.name, message=missing)
        if actor.pending_start is scope:
            actor.pending_start, actor.checkpoint.pending_start = None, ""
            actor.waits_for = missing
            actor.save_checkpoint()
        actor.wake_waiters()

    async def _release_start_slot(self, slot: object, actor: Actor) -> None:
        """Release the start slot once the program has been executed, or will not be."""
        await actor.wait_until(lambda lifecycle: lifecycle.state is not State.STARTING)
        self._start_slots.release_on_behalf_of(slot)

    async def _wait_for_others(self, actor: Actor, starting: Collection[str]) -> str:
        """Wait until the dependencies are up; return the requirement that cannot be met, in words, or ""."""
        for name in dependencies.start_dependencies(actor.workload):
            for other in self.actors.instances(name):
                if not (name in starting or name in actor.workload.requires or other.lifecycle.is_alive):
                    continue  # its start was not requested
                actor.waits_for = f"waits for {other.name}"
                if not _is_settled(other, other.lifecycle):
                    actor.context.journal.log.info("waiting", workload=actor.name, message=actor.waits_for)
                await other.wait_until(partial(_is_settled, other))
                if not other.is_up and name in actor.workload.requires:
                    return f"requires {other.name}, which is {other.lifecycle.state.value}: {other.lifecycle.reason}"
        return ""

    async def stop_for_restart(self, actor: Actor, by: str) -> bool:
        """Stop an instance for a start that follows; return False if another command has started it meanwhile."""
        await actor.ask(events.Stop(by))
        await actor.wait_until(lambda lifecycle: lifecycle.should_run or lifecycle.state is State.STOPPED)
        return not actor.lifecycle.should_run

    def _dependency_edges(self) -> dict[str, tuple[str, ...]]:
        """Return the workloads that each workload starts along with itself.

        The result is cached for each configuration, since all workloads may be started one by one.
        """
        if self._start_edges_config is not self.config:
            self._start_edges_config = self.config
            self._start_edges = {
                name: (*workload.requires, *workload.wants) for name, workload in self.config.workloads.items()
            }
        return self._start_edges

    async def stop_all(self) -> None:
        """Stop everything, dependents first; return when no process is left."""
        dependants = dependencies.stop_dependents(self.config.workloads)

        async def stop_after(actor: Actor) -> None:
            for name in dependants.get(actor.workload.name, ()):
                for other in self.actors.instances(name):
                    await other.wait_until(lambda lifecycle: lifecycle.state is State.STOPPED)
            await self.stop_and_wait(actor, events.SHUTDOWN)

        self.is_stopping = True
        async with trio.open_nursery() as nursery:
            for actor in self.actors.values():
                nursery.start_soon(stop_after, actor)

    def kill_all(self) -> None:
        """Send SIGKILL to everything that still lives, for a second stop signal."""
        for actor in self.actors.values():
            actor.post(events.Kill(events.SHUTDOWN))

    async def wait_drained(self) -> None:
        """Wait until all output of ended programs is in the journal."""
        for actor in list(self.actors.values()):
            await actor.wait_drained()


def _is_settled(actor: Actor, lifecycle: Lifecycle) -> bool:
    """Return whether a dependent need not wait any longer: it is up, or down with no start in progress."""
    return actor.is_up or (actor.pending_start is None and lifecycle.state in DOWN_STATES)


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
"""The verbs of the API (`VERBS` of `nsupervisor.api.routes`)."""
