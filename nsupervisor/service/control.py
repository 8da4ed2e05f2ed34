"""The service as the API sees it: queries about everything, and the commands of operators."""

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
from nsupervisor.api.control import ExecRefused, ExecTerms, UnknownName, is_glob
from nsupervisor.api.exec_frames import PROTOCOL
from nsupervisor.api.http.messages import Channel, Switch
from nsupervisor.config.files import IncludedFile
from nsupervisor.config.model import Config
from nsupervisor.config.problems import ConfigError
from nsupervisor.core import events
from nsupervisor.core.initiators import OPERATOR, Initiator, by_workload, person
from nsupervisor.core.lifecycle import State, awaits_freeze
from nsupervisor.json_codec import decode
from nsupervisor.linux.peers import Peer
from nsupervisor.metrics.exposition import Exposition
from nsupervisor.service.activation.optional import OptionalPathTriggers
from nsupervisor.service.context import ServiceContext
from nsupervisor.service.group.groups import PREFIX, Groups
from nsupervisor.service.instance.actor import Actor
from nsupervisor.service.jobs.jobs import Jobs, Result
from nsupervisor.service.jobs.registry import Registry
from nsupervisor.service.observe.history import Follower, History
from nsupervisor.service.observe.output_follower import OutputFollower, OutputFollowers
from nsupervisor.service.observe.recorder import Recorder, Recording, RecordingTerms
from nsupervisor.service.observe.snapshots import read_snapshots
from nsupervisor.service.observe.stats import usage_sample
from nsupervisor.service.recovery.upgrade import Upgrade, UpgradeError
from nsupervisor.service.reload.reload import Reloader
from nsupervisor.service.timers.optional import OptionalTimers

EXECS_LIMIT = 256
"""The number of commands that may run in workloads at a time: each has some descriptors and buffers."""
_EXECS_FULL = f"{EXECS_LIMIT} commands run already, which is the limit; end one of them"
FREEZE_TIMEOUT_S = 2.0
"""Seconds that `freeze` waits until the kernel has frozen every process; one in uninterruptible sleep takes longer."""


@attrs.define(eq=False)
class Supervisor:
    """The service as the API sees it: queries, and commands by operators. Implements the API's `Control`."""

    jobs: Jobs
    reloader: Reloader
    timers: OptionalTimers
    paths: OptionalPathTriggers
    actors: Registry
    groups: Groups
    context: ServiceContext
    nursery: trio.Nursery
    mode: str
    """Mode of the host's cgroup hierarchies: "unified", "hybrid", or "none"."""
    cgroup: str | None
    missing: Mapping[str, str]
    """The features of isolation that are not used, by name, with the reason."""
    exposition: Exposition
    output_followers: OutputFollowers
    records_file: str | None
    """The path of the file that has the stream's records as JSON lines; None: the stream goes elsewhere."""
    event_log: History = attrs.field(factory=History)
    recorder: Recorder = attrs.field(factory=Recorder)
    started_at: float = attrs.field(factory=time.time)
    _started: float = attrs.field(factory=trio.current_time)
    _exec_count: int = attrs.field(init=False, default=0)
    """The number of commands that run in workloads for clients."""

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.reloader.config

    # ---- queries

    def info(self) -> dict[str, Any]:
        """Return the facts about the service itself."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "keeper_pid": self.exposition.keeper_pid,
            "name": self.config.supervisor.name,
            "config": self.config.path,
            "runtime_directory": self.config.supervisor.runtime_directory,
            "started_at": self.started_at,
            "uptime_sec": round(trio.current_time() - self._started, 3),
            "cgroup": self.cgroup,
            "mode": self.mode,
            "missing": dict(self.missing),
        }

    def status(self) -> list[dict[str, Any]]:
        """Return one status object per workload instance, in the order of the configuration."""
        return [actor.status() for actor in self.actors.values()]

    def timer_status(self) -> list[dict[str, Any]]:
        """Return one status object per timer, in the order of the configuration."""
        return self.timers.status()

    def group_status(self) -> list[dict[str, Any]]:
        """Return one status object per group, each after those that contain it."""
        return self.groups.status()

    def matching_groups(self, pattern: str) -> list[str]:
        """Return the full names of the groups that "group/batch" or "group/*" matches; none for workloads."""
        return [group.name for group in self.groups.matching(pattern)]

    async def set_group(
        self,
        name: str,
        changes: Mapping[str, Any],
        persist: Mapping[str, Any] | None = None,
        *,
        peer: Peer | None = None,
    ) -> dict[str, Any]:
        """Change a group's own limits; return the outcome."""
        (group,) = self.groups.matching(name)
        ok, message = await group.change_limits(changes, _person(peer))
        if ok and persist:
            problem = await self.reloader.persist_group_limits(group, changes, persist)
            ok, message = not problem, problem or message
        return {"name": name, "ok": ok, "state": None, "message": message}

    def stats(self) -> list[dict[str, Any]]:
        """Return the counters of each instance."""
        return [usage_sample(actor.status(), actor.cgroup) for actor in self.actors.values()]

    def history(self, name: str) -> dict[str, Any]:
        """Return the status of one instance, and the records about it."""
        actor = self.actors[name]
        lines, forgotten = self.event_log.records_of(name)
        return {
            **actor.status(),
            "config": self.config.path,
            "restart": actor.workload.restart,
            "since": self.started_at,
            "timer": self.timers.status_of(actor.workload.name),
            "paths": self.paths.status_of(actor.workload.name),
            "log": {**actor.output.location(), "stream": self.records_file},
            "forgotten": forgotten,
            "records": [decode(line) for line in lines],
        }

    def events(
        self, names: Collection[str] | None, events: Collection[str] | None, follow: bool, mark: bool = False
    ) -> AbstractContextManager[Follower]:
        """Follow the records about instances: past ones and, with `follow`, new ones; see `History.follow`."""
        return self.event_log.follow(names, events, news=follow, mark=mark)

    def logs(
        self, names: Collection[str] | None, last: int | None, follow: bool
    ) -> AbstractContextManager[OutputFollower]:
        """Follow the latest output of instances without a log file: past lines and, with `follow`, new ones."""
        ordered = [name for name in self.actors if names is None or name in names]
        return self.output_followers.follow(ordered, last, news=follow)

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
            affected = self.jobs.affected_by_stop(actor)
        elif verb == "restart" or (verb == "start" and not actor.lifecycle.is_alive):
            affected = self.jobs.affected_by_start(actor)
        else:
            affected = []
        return [instance.name for instance in affected]

    def check_command(self, verb: str, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
        """Accept every command: the operator may do everything."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics as text, and their content type."""
        return await self.exposition.render(partial(read_snapshots, self.actors, self.groups.by_name), accept)

    # ---- commands

    def exec(self, name: str, terms: ExecTerms, peer: Peer | None) -> Switch:
        """Prepare to execute a command in an instance: see `Actor.exec`."""
        actor = self.actors.get(name)
        if actor is None:
            raise ExecRefused(f"{name}: a reload has just removed it")
        session = actor.exec(terms, _person(peer))

        async def converse(channel: Channel) -> None:
            if self._exec_count >= EXECS_LIMIT:
                await session.refuse(channel, _EXECS_FULL)
                return
            self._exec_count += 1
            try:
                await session.run(channel)
            finally:
                self._exec_count -= 1

        if self._exec_count >= EXECS_LIMIT:
            raise ExecRefused(_EXECS_FULL, 503)
        return Switch(PROTOCOL, converse)

    async def plan(
        self, path: str | None, text: str | None, files: Sequence[IncludedFile] | None = None
    ) -> dict[str, Any]:
        """Return what a reload would do."""
        return await self.reloader.plan(path, text, files)

    async def reload(
        self,
        path: str | None,
        text: str | None,
        files: Sequence[IncludedFile] | None = None,
        *,
        peer: Peer | None = None,
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Reload a file; return a stream of its reports."""
        return await self.reloader.reload(path, text, _person(peer), files)

    async def scale(
        self, counts: Mapping[str, int], *, peer: Peer | None = None
    ) -> AbstractContextManager[AsyncIterator[bytes]]:
        """Run other numbers of instances; return a stream of reports."""
        return await self.reloader.scale(counts, _person(peer))

    async def reload_on_signal(self) -> None:
        """Read the file in force again, for SIGHUP."""
        try:
            await self.reloader.reload(None, None, Initiator("person", "SIGHUP"))
        except ConfigError:
            pass  # the reload has logged it, and a signal has no answer

    async def command(
        self, verb: str, name: str, *, workload: str = "", peer: Peer | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Run one command on one instance, and wait until it is done.

        `workload` gives it; "": an operator does, by the process `peer`.
        """
        by = by_workload(workload) if workload else _person(peer)
        actor = self.actors.get(name)
        if actor is None:
            return {"name": name, "ok": False, "state": None, "message": "a reload has just removed it"}
        if self.jobs.removal_of(actor) and verb in ("start", "restart"):
            ok, message = False, f"{self.config.path} does not have it any more; it is being removed"
        else:
            ok, message = await _COMMANDS[verb](self, actor, by, **parameters)
        return {"name": name, "ok": ok, "state": actor.lifecycle.state.value, "message": message}

    async def _start(self, actor: Actor, by: Initiator) -> Result:
        return await self.jobs.start_and_wait(actor, by)

    async def _restart(self, actor: Actor, by: Initiator) -> Result:
        return await self.jobs.restart_and_wait(actor, by)

    async def _stop(self, actor: Actor, by: Initiator) -> Result:
        return await self.jobs.stop_with_requirers(actor, by)

    async def _kill(self, actor: Actor, by: Initiator) -> Result:
        generation = actor.lifecycle.generation
        if not actor.lifecycle.is_alive:
            return False, "it does not run"
        await actor.ask(events.Kill(by))
        await actor.wait_until(lambda lifecycle: not lifecycle.is_alive or lifecycle.generation > generation)
        return True, ""

    async def _signal(self, actor: Actor, by: Initiator, signal: int) -> Result:
        ok = await actor.signal(signal, by)
        return ok, "" if ok else "it does not run"

    async def _reload(self, actor: Actor, by: Initiator) -> Result:
        return await actor.reload(by)

    async def _freeze(self, actor: Actor, by: Initiator) -> Result:
        if obstacle := actor.cgroup.freeze_obstacle:
            return False, obstacle
        if actor.lifecycle.state not in (State.STARTING, State.RUNNING, State.READY, State.FROZEN):
            return False, f"only what runs can be frozen; it is {actor.lifecycle.state.value}"
        await actor.ask(events.Freeze(by))
        await actor.wait_until(lambda lifecycle: not awaits_freeze(lifecycle))
        if actor.lifecycle.state is not State.FROZEN:
            return False, f"it is {actor.lifecycle.state.value} by now: {actor.lifecycle.reason}"
        with trio.move_on_after(FREEZE_TIMEOUT_S):
            while actor.lifecycle.state is State.FROZEN and not actor.cgroup.is_frozen():  # noqa: ASYNC110 - a moment, rarely
                await trio.sleep(0.005)
        return actor.lifecycle.state is State.FROZEN, ""

    async def _thaw(self, actor: Actor, by: Initiator) -> Result:
        if actor.lifecycle.state is not State.FROZEN:
            return False, f"it is not frozen; it is {actor.lifecycle.state.value}"
        await actor.ask(events.Thaw(by))
        return True, ""

    async def _set(
        self, actor: Actor, by: Initiator, changes: Mapping[str, Any], persist: Mapping[str, Any] | None = None
    ) -> Result:
        done, message = await actor.change_limits(changes, by)
        if done and persist:
            message = await self.reloader.persist_limits(actor, changes, persist)
        return done and not message, message

    async def upgrade(self, python: str, package: str, timeout_s: float) -> Result:
        """Upgrade to another version in place, shortly after this has returned: see `upgrade.py`."""
        try:
            upgrade = Upgrade(self.config, python, package, timeout_s)
            version = await upgrade.prepare(self.context)
        except UpgradeError as error:
            self.context.journal.log.error("not upgraded", message=str(error))
            return False, str(error)
        self.nursery.start_soon(upgrade.execute, self.context)
        return True, version


def _person(peer: Peer | None) -> Initiator:
    """Return the operator whose process has connected; None: it is not known."""
    return OPERATOR if peer is None else person(peer.uid, peer.pid)


_COMMANDS: Mapping[str, Callable[..., Awaitable[Result]]] = {
    "start": Supervisor._start,
    "restart": Supervisor._restart,
    "stop": Supervisor._stop,
    "kill": Supervisor._kill,
    "signal": Supervisor._signal,
    "reload": Supervisor._reload,
    "freeze": Supervisor._freeze,
    "thaw": Supervisor._thaw,
    "set": Supervisor._set,
}
"""The verbs of the API (`VERBS` of `nsupervisor.api.routes`)."""
